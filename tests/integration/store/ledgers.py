"""What tests of the ledger share: a clock they move by hand, events, and readers of what Redis holds."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec
from redis.asyncio import Redis

from gateway.admission import Lease
from gateway.metering import Ledger, Status, UsageEvent
from gateway.policy import LimitsSpec, TenantSpec
from gateway.store import TenantKeys
from gateway.wire import Usage

T0_MS = 1_790_000_000_000
"""2026-09-21T14:13:20Z."""


class ManualClock:
    """Unix milliseconds that move when a test says so."""

    def __init__(self, now_ms: int = T0_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance_s(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


def tenant(
    name: str = "acme",
    *,
    requests: int | None = None,
    tokens: int | None = None,
    concurrent: int | None = None,
    budget_usd: str | None = None,
) -> TenantSpec:
    limits = LimitsSpec(
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        concurrent_requests=concurrent,
        budget_usd=None if budget_usd is None else Decimal(budget_usd),
    )
    return TenantSpec(name=name, limits=limits)


def event(
    request: str,
    *,
    of: str = "acme",
    status: Status = "ok",
    code: str = "",
    model: str = "tiny",
    key: str = "ci",
    input_tokens: int = 0,
    cached_tokens: int = 0,
    output_tokens: int = 0,
    cost_nanousd: int = 0,
    ended_ms: int = T0_MS,
) -> UsageEvent:
    return UsageEvent(
        id=request,
        tenant=of,
        key=key,
        model=model,
        endpoint="chat",
        status=status,
        code=code,
        usage=Usage(input_tokens=input_tokens, input_cached_tokens=cached_tokens, output_tokens=output_tokens),
        cost_nanousd=cost_nanousd,
        arrived_ms=ended_ms,
        ended_ms=ended_ms,
    )


async def booked(ledger: Ledger) -> None:
    """Returns when Redis has everything that was settled."""
    async with asyncio.timeout(10):
        while ledger.statistics().unbooked:
            await asyncio.sleep(0.002)


class PatientLedger(Ledger):
    """Its settlements return when Redis has them too, so that a test can look at once."""

    async def settle(self, event: UsageEvent, lease: Lease) -> None:
        await super().settle(event, lease)
        await booked(self)

    async def record(self, event: UsageEvent, *, period: str = "") -> None:
        await super().record(event, period=period)
        await booked(self)


async def stream(redis: Redis, name: str = "acme") -> list[UsageEvent]:
    """The tenant's events, oldest first."""
    entries = await redis.xrange(TenantKeys(name).events)
    return [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]


async def money(redis: Redis, name: str = "acme", period: str = "month:2026-09") -> tuple[int, int]:
    """Spent and reserved nano-dollars."""
    spent, reserved = await redis.hmget(TenantKeys(name).budget(period), "spent", "reserved")
    return int(spent or 0), int(reserved or 0)


async def leases(redis: Redis, name: str = "acme") -> int:
    return int(await redis.zcard(TenantKeys(name).leases))
