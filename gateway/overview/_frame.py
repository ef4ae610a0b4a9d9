"""What happened between two states: rates, waits, what is left. No clock: the states carry their times."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from ._state import LimitState, ModelState, ReplicaState, State, TenantState

QUANTILE = 0.99


class TenantRow(msgspec.Struct, kw_only=True):
    """A tenant, per second. `refused` is by limit or code, `audited` by limit, the most frequent first; `limits` the
    fullest first."""

    tenant: str
    requests: float
    input_tokens: float
    output_tokens: float
    usd_per_hour: float
    running: int | None
    refused: dict[str, float]
    audited: dict[str, float]
    limits: dict[str, LimitState]


class QueueRow(msgspec.Struct, kw_only=True):
    """A model's queue: its length now; `waited` requests per second left it to run, 99 of 100 within `wait_p99_s`
    (None: nobody waited; infinite: longer than the metric tells). `retries` is their part of what came."""

    model: str
    queued: int
    waited: float
    wait_p99_s: float | None
    retries: float


class ShadowRow(msgspec.Struct, kw_only=True):
    """What a strategy would have done that is not used: the part of the requests that it would have sent elsewhere, and
    in pairs, of what was taken and of the shadow: the cached part of prompts, and the mean expected time to first
    token."""

    elsewhere: float
    cached: tuple[float, float]
    ttft_s: tuple[float, float]


class RoutingRow(msgspec.Struct, kw_only=True):
    """Where a model's requests went: `pools` per second, of a model that has several."""

    model: str
    pools: dict[str, float]
    shadow: ShadowRow | None


class ReplicaRow(msgspec.Struct, kw_only=True):
    """A replica: requests there, and load and limit of each quantity of its knee that is bounded. `states` are those
    that most workers see it in first."""

    replica: str
    healthy: bool
    states: dict[str, float]
    in_flight: int
    knee: dict[str, tuple[float, float]]


class Frame(msgspec.Struct, kw_only=True):
    """One picture: `seconds` are between the two states. Tenants with the most to do come first, and of limits the
    fullest."""

    at_ms: int
    seconds: float
    tenants: list[TenantRow]
    shared: dict[str, dict[str, LimitState]]
    queues: list[QueueRow]
    replicas: list[ReplicaRow]
    warnings: list[str]
    routing: list[RoutingRow] = []


def frame(before: State, now: State) -> Frame:
    """Rates between two states. A counter that fell belongs to a gateway that has started anew: it counts from 0."""
    seconds = max(0.001, (now.at_ms - before.at_ms) / 1000)
    tenants = [
        _tenant_row(name, before.tenants.get(name, TenantState()), tenant, seconds)
        for name, tenant in now.tenants.items()
    ]
    tenants.sort(key=lambda row: (-row.input_tokens - row.output_tokens, -row.requests, row.tenant))
    queues = [
        _queue_row(name, before.models.get(name, ModelState()), model, seconds)
        for name, model in sorted(now.models.items())
        if model.attempts or model.queued
    ]
    replicas = [_replica_row(name, replica) for name, replica in sorted(now.replicas.items())]
    routing = [
        _routing_row(name, before.models.get(name, ModelState()), model, seconds)
        for name, model in sorted(now.models.items())
        if model.pools or model.shadow
    ]
    return Frame(
        at_ms=now.at_ms,
        seconds=seconds,
        tenants=tenants,
        shared={of: _fullest_first(limits) for of, limits in now.shared.items()},
        queues=queues,
        replicas=replicas,
        warnings=now.warnings,
        routing=routing,
    )


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now


def _tenant_row(name: str, before: TenantState, now: TenantState, seconds: float) -> TenantRow:
    return TenantRow(
        tenant=name,
        requests=_grown(before.requests, now.requests) / seconds,
        input_tokens=_grown(before.input_tokens, now.input_tokens) / seconds,
        output_tokens=_grown(before.output_tokens, now.output_tokens) / seconds,
        usd_per_hour=_grown(before.cost_usd, now.cost_usd) / seconds * 3600,
        running=now.running,
        refused=_rates(before.refused, now.refused, seconds),
        audited=_rates(before.audited, now.audited, seconds),
        limits=_fullest_first(now.limits),
    )


def _rates(before: dict[str, float], now: dict[str, float], seconds: float) -> dict[str, float]:
    rates = ((why, _grown(before.get(why, 0), count) / seconds) for why, count in now.items())
    return dict(sorted(((why, rate) for why, rate in rates if rate), key=lambda one: -one[1]))


def _fullest_first(limits: dict[str, LimitState]) -> dict[str, LimitState]:
    return dict(sorted(limits.items(), key=lambda one: (_free(one[1]), one[0])))


def _free(limit: LimitState) -> Decimal:
    whole = Decimal(limit.limit)
    return Decimal(limit.left) / whole if whole else Decimal(0)


def _queue_row(name: str, before: ModelState, now: ModelState, seconds: float) -> QueueRow:
    earlier = dict(before.waits)
    waits = [(up_to_s, _grown(earlier.get(up_to_s, 0), count)) for up_to_s, count in now.waits]
    waited = max((count for _, count in waits), default=0)
    came = {kind: _grown(before.attempts.get(kind, 0), count) for kind, count in now.attempts.items()}
    return QueueRow(
        model=name,
        queued=int(now.queued),
        waited=waited / seconds,
        wait_p99_s=_quantile(waits),
        retries=came.get("retry", 0) / max(1, sum(came.values())),
    )


def _quantile(waits: list[tuple[float | None, float]]) -> float | None:
    """The bound below which 99 of 100 are: bounds are what the metric keeps."""
    bounded = sorted(((up_to_s, count) for up_to_s, count in waits if up_to_s is not None), key=lambda one: one[0])
    total = max((count for _, count in waits), default=0)
    if not total:
        return None
    return next((up_to_s for up_to_s, count in bounded if count >= QUANTILE * total), float("inf"))


def _routing_row(name: str, before: ModelState, now: ModelState, seconds: float) -> RoutingRow:
    seen = {what: _grown(before.shadow.get(what, 0), count) for what, count in now.shadow.items()}
    elsewhere = seen.get("elsewhere", 0)
    requests, tokens = elsewhere + seen.get("same", 0), max(1, seen.get("tokens_all", 0))
    shadow = None
    if requests:
        shadow = ShadowRow(
            elsewhere=elsewhere / requests,
            cached=(seen.get("tokens_cached_taken", 0) / tokens, seen.get("tokens_cached_shadow", 0) / tokens),
            ttft_s=(seen.get("ttft_taken", 0) / requests, seen.get("ttft_shadow", 0) / requests),
        )
    return RoutingRow(model=name, pools=_rates(before.pools, now.pools, seconds), shadow=shadow)


def _replica_row(name: str, now: ReplicaState) -> ReplicaRow:
    knee = {quantity: (now.load.get(quantity, 0.0), limit) for quantity, limit in now.limits.items() if limit}
    states = dict(sorted(now.states.items(), key=lambda one: (-one[1], one[0])))
    return ReplicaRow(replica=name, healthy=now.healthy, states=states, in_flight=int(now.in_flight), knee=knee)
