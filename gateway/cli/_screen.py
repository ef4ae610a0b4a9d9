"""A frame of `mtok top` as lines of text. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import isinf

from gateway.overview import Frame, LimitState, QueueRow, ReplicaRow, RoutingRow, TenantRow

from ._words import table

LIMITS_SHOWN = 3
_TENANTS = ("TENANT", "REQ/S", "IN TOK/S", "OUT TOK/S", "USD/H", "RUNNING", "REFUSED/S")
_AUDITED = "AUDITED/S"
_LEFT = "LEFT OF LIMITS"
_SHARED = ("SHARED", _LEFT)
_QUEUES = ("MODEL", "QUEUED", "WAITED/S", "P99 WAIT", "RETRIES")
_REPLICAS = ("REPLICA", "HEALTHY", "STATE", "RUNNING")
_ROUTING = ("MODEL", "POOLS REQ/S", "SHADOW ELSEWHERE", "CACHED", "EXPECTED TTFT")
_KNEE = {"sequences": "N", "prefill_tokens": "P", "kv_tokens": "K"}


def draw(frame: Frame, where: str, *, width: int | None = None, height: int | None = None) -> list[str]:
    """At most `height` lines of at most `width` characters; None: as many as it takes. Where there are too many tenants
    the ones with the most to do stay."""
    foot = [*_shared(frame.shared), *_queues(frame.queues), *_routing(frame.routing), *_replicas(frame.replicas)]
    head = [_summary(frame, where), *(f"! {warning}" for warning in frame.warnings), ""]
    room = None if height is None else max(1, height - len(head) - len(foot) - 1)
    lines = [*head, *_tenants(frame.tenants, room), *foot]
    return [line[:width] for line in lines[:height]]


def _summary(frame: Frame, where: str) -> str:
    rows = frame.tenants
    at = time.strftime("%H:%M:%S", time.gmtime(frame.at_ms / 1000))
    refused = sum(sum(row.refused.values()) for row in rows)
    healthy = sum(row.healthy for row in frame.replicas)
    return (
        f"mtok top  {where}  {at} UTC, over {frame.seconds:.1f} s: {sum(row.requests for row in rows):.1f} req/s, "
        f"{refused:.1f} refused/s, {_short(sum(row.input_tokens for row in rows))} in and "
        f"{_short(sum(row.output_tokens for row in rows))} out tok/s, "
        f"{sum(row.running or 0 for row in rows)} running, {healthy} of {len(frame.replicas)} replicas healthy"
    )


def _tenants(rows: Sequence[TenantRow], room: int | None) -> list[str]:
    if not rows:
        return ["No tenant has sent anything yet."]
    shown = rows if room is None or len(rows) <= room else rows[: max(1, room - 1)]
    audits = any(row.audited for row in shown)
    head = (*_TENANTS, *([_AUDITED] if audits else []), _LEFT)
    lines = table(head, [_tenant(row, audits=audits) for row in shown], right=range(1, 6)).split("\n")
    if len(shown) < len(rows):
        lines.append(f"and {len(rows) - len(shown)} more")
    return lines


def _tenant(row: TenantRow, *, audits: bool) -> tuple[str, ...]:
    return (
        row.tenant,
        f"{row.requests:.1f}",
        _short(row.input_tokens),
        _short(row.output_tokens),
        f"{row.usd_per_hour:.2f}",
        "?" if row.running is None else str(row.running),
        _reasons(row.refused),
        *([_reasons(row.audited)] if audits else []),
        _most_used(row.limits),
    )


def _reasons(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{why} {rate:.1f}" for why, rate in rates.items()) or "-"


def _most_used(limits: Mapping[str, LimitState]) -> str:
    return ", ".join(_left(name, limit) for name, limit in list(limits.items())[:LIMITS_SHOWN]) or "-"


def _shared(limits: Mapping[str, Mapping[str, LimitState]]) -> list[str]:
    if not limits:
        return []
    return ["", *table(_SHARED, [(of, _most_used(left)) for of, left in limits.items()]).split("\n")]


def _left(name: str, limit: LimitState) -> str:
    if limit.is_usd:
        return f"{name} ${float(limit.left):.2f}/{float(limit.limit):.2f}"
    return f"{name} {_short(float(limit.left))}/{_short(float(limit.limit))}"


def _queues(rows: Sequence[QueueRow]) -> list[str]:
    if not rows:
        return []
    cells = [
        (row.model, str(row.queued), f"{row.waited:.1f}", _wait(row.wait_p99_s), f"{100 * row.retries:.0f} %")
        for row in rows
    ]
    return ["", *table(_QUEUES, cells, right=range(1, 5)).split("\n")]


def _routing(rows: Sequence[RoutingRow]) -> list[str]:
    """Of a shadow strategy beside the one that is used: 31 % -> 64 %."""
    if not rows:
        return []
    return ["", *table(_ROUTING, [_routed(row) for row in rows]).split("\n")]


def _routed(row: RoutingRow) -> tuple[str, ...]:
    pools, shadow = _reasons(row.pools), row.shadow
    if shadow is None:
        return row.model, pools, "-", "-", "-"
    cached = " -> ".join(f"{100 * part:.0f} %" for part in shadow.cached)
    ttft = " -> ".join(f"{1000 * seconds:.0f} ms" for seconds in shadow.ttft_s)
    return row.model, pools, f"{100 * shadow.elsewhere:.0f} %", cached, ttft


def _wait(wait_s: float | None) -> str:
    if wait_s is None:
        return "-"
    return "> 600 s" if isinf(wait_s) else f"<= {wait_s:g} s"


def _replicas(rows: Sequence[ReplicaRow]) -> list[str]:
    quantities = [quantity for quantity in _KNEE if any(quantity in row.knee for row in rows)]
    head = (*_REPLICAS, *(_KNEE[quantity] for quantity in quantities))
    cells = [
        (
            row.replica,
            "yes" if row.healthy else "NO",
            _states(row.states),
            str(row.in_flight),
            *(_of(row.knee.get(one)) for one in quantities),
        )
        for row in rows
    ]
    return ["", *table(head, cells, right=range(3, len(head))).split("\n")]


def _states(states: Mapping[str, float]) -> str:
    """The state, or where workers differ each with how many see it."""
    if len(states) == 1:
        return next(iter(states)).replace("_", "-")
    return ", ".join(f"{state.replace('_', '-')} ({workers:.0f})" for state, workers in states.items()) or "?"


def _of(knee: tuple[float, float] | None) -> str:
    return "-" if knee is None else f"{_short(knee[0])}/{_short(knee[1])}"


def _short(number: float) -> str:
    """Three digits: 412, 9.61k, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
