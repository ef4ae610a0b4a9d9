"""A state out of metrics: the same numbers that `/metrics` shows, by whom they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isinf
from typing import Final

from ._state import ModelState, ReplicaState, State, TenantState

Metric = tuple[str, Mapping[str, str], float]
"""One sample: its name, its labels, its value."""

LIMIT_CODES: Final = frozenset({"rate_limit_exceeded", "insufficient_quota"})
"""Refusals with these codes are told by their limit."""
_TOKENS: Final = {"input": "input_tokens", "input_cached": "input_cached_tokens", "output": "output_tokens"}


def gather(metrics: Iterable[Metric], *, at_ms: int, policies_sha256: str, replicas: Iterable[str]) -> State:
    """What the samples say. Of replicas only these are shown: gauges of one that was taken out stay."""
    state = State(at_ms=at_ms, policies_sha256=policies_sha256)
    state.replicas = {name: ReplicaState() for name in replicas}
    for name, labels, value in metrics:
        if "tenant" in labels:
            _of_tenant(state.tenants.setdefault(labels["tenant"], TenantState()), name, labels, value)
        elif "replica" in labels:
            if (replica := state.replicas.get(labels["replica"])) is not None:
                _of_replica(replica, name, labels, value)
        elif "model" in labels:
            _of_model(state.models.setdefault(labels["model"], ModelState()), name, labels, value)
        elif value and name in _WARNINGS:
            state.warnings.append(_WARNINGS[name])
    return state


_WARNINGS: Final = {
    "mtok_policy_reload_failed": "the policies' directory cannot be used: the last good ones are in force",
    "mtok_journal_failing": "usage cannot be written to disk",
    "mtok_lost_events": "usage events could not be kept: see the log",
}


def _of_tenant(tenant: TenantState, name: str, labels: Mapping[str, str], value: float) -> None:
    if name == "mtok_requests_total":
        tenant.requests += value
        code = labels["code"]
        if labels["status"] == "refused" and code not in LIMIT_CODES:
            tenant.refused[code] = tenant.refused.get(code, 0) + value
    elif name == "mtok_denied_requests_total":
        _add(tenant.refused, labels["scope"], labels["limit"], value)
    elif name == "mtok_audited_refusals_total":
        _add(tenant.audited, labels["scope"], labels["dimension"], value)
    elif name == "mtok_tokens_total" and labels["kind"] in _TOKENS:
        field = _TOKENS[labels["kind"]]
        setattr(tenant, field, getattr(tenant, field) + value)
    elif name == "mtok_cost_usd_total":
        tenant.cost_usd += value


def _add(counts: dict[str, float], scope: str, limit: str, value: float) -> None:
    named = limit if scope == "tenant" else f"{scope} {limit}"
    counts[named] = counts.get(named, 0) + value


def _of_replica(replica: ReplicaState, name: str, labels: Mapping[str, str], value: float) -> None:
    if name == "mtok_replica_healthy":
        replica.healthy = bool(value)
    elif name == "mtok_replica_state":
        if value:
            replica.states[f"{labels['state']} {labels['reason']}".rstrip()] = value
    elif name == "mtok_replica_requests_in_flight":
        replica.in_flight = value
    elif name == "mtok_knee_limit":
        replica.limits[labels["quantity"]] = value
    elif name == "mtok_knee_load":
        replica.load[labels["quantity"]] = value


def _of_model(model: ModelState, name: str, labels: Mapping[str, str], value: float) -> None:
    if name == "mtok_queue_length":
        model.queued = value
    elif name == "mtok_client_attempts_total":
        model.attempts[labels["attempt"]] = value
    elif name == "mtok_pool_requests_total":
        model.pools[labels["pool"]] = value
    elif name == "mtok_shadow_requests_total":
        model.shadow[labels["to"]] = value
    elif name == "mtok_shadow_input_tokens_total":
        model.shadow[f"tokens_{labels['kind']}"] = value
    elif name == "mtok_shadow_ttft_seconds_total":
        model.shadow[f"ttft_{labels['kind']}"] = value
    elif name == "mtok_queue_wait_seconds_bucket":
        up_to_s = float(labels["le"])
        model.waits.append((None if isinf(up_to_s) else up_to_s, value))
