"""One look at a gateway and all its workers: what `GET /admin/state` answers. Counters run since it started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

_Key = TypeVar("_Key")


class LimitState(msgspec.Struct, frozen=True):
    """What is left of a limit: exact decimals, of dollars where `is_usd`. `resets_at` (Unix seconds) is when
    it begins anew, None where it refills or depends on running requests."""

    limit: str
    left: str
    is_usd: bool = False
    resets_at: int | None = None


class TenantState(msgspec.Struct, kw_only=True):
    """A tenant's counters: `requests` are all that came, those in `refused` (by limit or code) among them; those in
    `audited` were served, and would not have been by that limit. `running` is over all gateways, None where Redis did
    not say."""

    requests: float = 0
    refused: dict[str, float] = {}
    audited: dict[str, float] = {}
    input_tokens: float = 0
    input_cached_tokens: float = 0
    output_tokens: float = 0
    cost_usd: float = 0
    running: int | None = None
    limits: dict[str, LimitState] = {}


class ModelState(msgspec.Struct, kw_only=True):
    """A model's queue. `waits` counts the waits that ended up to so many seconds (`inf` is written as None), each count
    with those of the shorter ones in it; `attempts` is by `first` and `retry`. `pools` counts requests by the pool they
    ran in, `shadow` what a shadow strategy is scored by: requests `same` and `elsewhere`, tokens, seconds."""

    queued: float = 0
    waits: list[tuple[float | None, float]] = []
    attempts: dict[str, float] = {}
    pools: dict[str, float] = {}
    shadow: dict[str, float] = {}


class ReplicaState(msgspec.Struct, kw_only=True):
    """A replica: requests there from here, and where a class has latency targets its knee, by quantity. `states` counts
    the workers that see it so, by state and reason: "quarantined stalled"."""

    healthy: bool = False
    states: dict[str, float] = {}
    in_flight: float = 0
    limits: dict[str, float] = {}
    load: dict[str, float] = {}


class State(msgspec.Struct, kw_only=True):
    """Everything at `at_ms` (Unix). `policies_sha256` names the policies in force; `shared` are the limits that tenants
    share, by whose they are; `warnings` are for people."""

    at_ms: int
    policies_sha256: str
    tenants: dict[str, TenantState] = {}
    shared: dict[str, dict[str, LimitState]] = {}
    models: dict[str, ModelState] = {}
    replicas: dict[str, ReplicaState] = {}
    warnings: list[str] = []


def merged(states: Sequence[State]) -> State:
    """Several gateways as one. Counters and loads are summed; running requests and limits are the same everywhere."""
    first, *others = states
    for other in others:
        for tenant, theirs in other.tenants.items():
            ours = first.tenants.setdefault(tenant, TenantState(running=theirs.running, limits=theirs.limits))
            ours.requests += theirs.requests
            ours.refused = _added(ours.refused, theirs.refused)
            ours.audited = _added(ours.audited, theirs.audited)
            ours.input_tokens += theirs.input_tokens
            ours.input_cached_tokens += theirs.input_cached_tokens
            ours.output_tokens += theirs.output_tokens
            ours.cost_usd += theirs.cost_usd
        for model, line in other.models.items():
            mine = first.models.setdefault(model, ModelState())
            mine.queued += line.queued
            mine.attempts = _added(mine.attempts, line.attempts)
            mine.pools = _added(mine.pools, line.pools)
            mine.shadow = _added(mine.shadow, line.shadow)
            mine.waits = list(_added(dict(mine.waits), dict(line.waits)).items())
        for name, replica in other.replicas.items():
            known = first.replicas.setdefault(name, ReplicaState(healthy=replica.healthy))
            known.healthy = known.healthy and replica.healthy
            known.states = _added(known.states, replica.states)
            known.in_flight += replica.in_flight
            known.limits = _added(known.limits, replica.limits)
            known.load = _added(known.load, replica.load)
        first.warnings += [warning for warning in other.warnings if warning not in first.warnings]
        if other.policies_sha256 != first.policies_sha256:
            first.warnings.append("the gateways have different policies")
    return first


def _added(one: dict[_Key, float], other: dict[_Key, float]) -> dict[_Key, float]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}
