"""What is left of a tenant's limits and budget, without taking anything."""

from __future__ import annotations

from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import period_at, usd
from gateway.metering import windows_at
from gateway.policy import LimitsSpec
from gateway.pricing import nanousd_of_usd
from gateway.store import StoreUnavailable, TenantKeys

UNITS_PER_ONE = 60_000
"""scripts/account.lua counts buckets in 1/60000, so that a limit per minute refills whole units per millisecond."""


class LimitLeft(msgspec.Struct, frozen=True, kw_only=True):
    """`remaining` of `limit`; `resets_at` (Unix seconds) is when all of it is there again, None when that depends on
    running requests."""

    limit: int
    remaining: int
    resets_at: int | None


class BudgetLeft(msgspec.Struct, frozen=True, kw_only=True):
    """A budget in decimal strings: spent, reserved by running requests, remaining after both; a new one at
    `resets_at` (Unix seconds)."""

    limit_usd: str
    period: str
    spent_usd: str
    reserved_usd: str
    remaining_usd: str
    resets_at: int


Limits = dict[str, LimitLeft | BudgetLeft]


async def read_limits(redis: Redis, keys: TenantKeys, limits: LimitsSpec, now_s: int) -> Limits:
    """What is left of each limit; unlimited ones are left out.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    period = period_at(limits.budget_period, now_s, limits.time_zone)
    pipeline = redis.pipeline(transaction=False)
    windows = windows_at(limits, now_s, limits.time_zone)
    pipeline.hmget(keys.limits, "requests", "tokens", "input", "output", "held")
    pipeline.zcount(keys.leases, f"({now_s * 1000}", "+inf")
    pipeline.hmget(keys.budget(period.name), "spent", "reserved")
    for window in windows:
        counted = ("tokens", "tokens_reserved") if window.dimension == "tokens_per_day" else ("spent", "reserved")
        pipeline.hmget(keys.window(window.name), *counted)
    try:
        buckets, running, money, *used = await pipeline.execute()
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    *levels, held = cast(list[bytes | None], buckets)
    spent, reserved = (int(amount or 0) for amount in cast(list[bytes | None], money))
    left: Limits = {}
    per_minute = {
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "input_tokens_per_minute": limits.input_tokens_per_minute,
        "output_tokens_per_minute": limits.output_tokens_per_minute,
    }
    for (name, limit), stored in zip(per_minute.items(), levels, strict=True):
        if limit is not None:
            left[name] = _bucket_left(limit, stored, now_s)
    if limits.concurrent_tokens is not None:
        remaining = max(0, limits.concurrent_tokens - int(held or 0))
        left["concurrent_tokens"] = LimitLeft(limit=limits.concurrent_tokens, remaining=remaining, resets_at=None)
    if limits.concurrent_requests is not None:
        remaining = max(0, limits.concurrent_requests - cast(int, running))
        left["concurrent_requests"] = LimitLeft(limit=limits.concurrent_requests, remaining=remaining, resets_at=None)
    if limits.budget_usd is not None:
        budget = nanousd_of_usd(limits.budget_usd)
        left["budget_usd"] = _budget_left(budget, limits.budget_period, spent, reserved, period.end_s)
    for window, amounts in zip(windows, cast(list[list[bytes | None]], used), strict=True):
        spent, reserved = (int(amount or 0) for amount in amounts)
        if window.dimension == "tokens_per_day":
            remaining = max(0, window.limit - spent - reserved)
            left[window.dimension] = LimitLeft(limit=window.limit, remaining=remaining, resets_at=window.end_s)
        else:
            kind = window.name.partition(":")[0]
            left[window.dimension] = _budget_left(window.limit, kind, spent, reserved, window.end_s)
    return left


def _budget_left(budget: int, period: str, spent: int, reserved: int, end_s: int) -> BudgetLeft:
    return BudgetLeft(
        limit_usd=usd(budget),
        period=period,
        spent_usd=usd(spent),
        reserved_usd=usd(reserved),
        remaining_usd=usd(max(0, budget - spent - reserved)),
        resets_at=end_s,
    )


def _bucket_left(limit: int, stored: bytes | None, now_s: int) -> LimitLeft:
    """As account.lua would find it now."""
    capacity = limit * UNITS_PER_ONE
    level = capacity
    if stored is not None:
        level_then, at_ms, _ = (int(part) for part in stored.split())
        level = min(capacity, level_then + max(0, now_s * 1000 - at_ms) * limit)
    full_in_ms = -(-(capacity - level) // limit) if limit else 0
    return LimitLeft(limit=limit, remaining=max(0, level // UNITS_PER_ONE), resets_at=now_s - (-full_in_ms // 1000))
