"""What is left of a tenant's limits and budget, without taking anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Final, NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import UNIT, Dimension, Left, Period, period_at, unit_of, usd
from gateway.metering import windows_at
from gateway.policy import LimitsSpec, RuleMode, RulesSpec, Scope
from gateway.pricing import nanousd_of_usd
from gateway.store import StoreUnavailable, TenantKeys


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


async def read_limits(redis: Redis, tenant: str, limits: LimitsSpec, now_s: int) -> Limits:
    """What is left of each of the tenant's own limits; unlimited ones are left out.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    shown: Limits = {}
    for one in await read_left(redis, tenant, limits, now_s * 1000):
        if unit_of(one.dimension) == "nanousd":
            shown[one.dimension] = BudgetLeft(
                limit_usd=usd(one.limit),
                period=one.period.partition(":")[0],
                spent_usd=usd(one.used),
                reserved_usd=usd(one.reserved),
                remaining_usd=usd(one.remaining),
                resets_at=one.resets_at_s,
            )
        else:
            resets_at = one.resets_at_s or (None if one.level is None else now_s - (-one.full_in_ms // 1000))
            shown[one.dimension] = LimitLeft(limit=one.limit, remaining=one.remaining, resets_at=resets_at)
    return shown


async def read_left(
    redis: Redis, tenant: str, limits: LimitsSpec, now_ms: int, *, scopes: Sequence[Scope] = ()
) -> list[Left]:
    """How the tenant's own limits stand, then those of each of `scopes`. Takes nothing and renews nothing. What the
    leases of a killed worker hold counts until the account is next asked.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    keys = TenantKeys(tenant)
    accounts = _accounts(keys, limits, scopes, now_ms // 1000)
    stored = await _read(redis, accounts, keys, now_ms)
    return [one for account, found in zip(accounts, stored, strict=True) for one in _left(account, found, now_ms)]


def whole_left(tenant: str, limits: LimitsSpec, now_ms: int, *, scopes: Sequence[Scope] = ()) -> list[Left]:
    """The same as if nobody had used any of them."""
    accounts = _accounts(TenantKeys(tenant), limits, scopes, now_ms // 1000)
    return [one for account in accounts for one in _left(account, _whole(account), now_ms)]


class _Counter(NamedTuple):
    """A limit that begins anew: where Redis counts it, in which fields."""

    dimension: Dimension
    limit: int
    period: str
    end_s: int
    key: str
    fields: tuple[str, str]


class _Account(NamedTuple):
    """What one scope limits: `state` is where its rates and what runs of it are counted."""

    scope: str
    mode: RuleMode
    state: str
    limits: RulesSpec
    counters: Sequence[_Counter]


class _Stored(NamedTuple):
    """What Redis has of an account; `used` is used and reserved of each of its counters."""

    levels: Sequence[bytes | None]
    running: int
    held: int
    used: Sequence[tuple[int, int]]


_RATES: Final[tuple[Dimension, ...]] = (
    "requests_per_minute",
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
)
_MONEY: Final = ("spent", "reserved")


def _budget(budget_usd: Decimal, period: Period, keys: TenantKeys) -> _Counter:
    limit = nanousd_of_usd(budget_usd)
    return _Counter("budget_usd", limit, period.name, period.end_s, keys.budget(period.name), _MONEY)


def _counters(limits: RulesSpec, now_s: int, time_zone: str, keys: TenantKeys, of: str) -> list[_Counter]:
    return [
        _Counter(
            window.dimension,
            window.limit,
            window.name.removeprefix(of),
            window.end_s,
            keys.window(window.name),
            ("tokens", "tokens_reserved") if window.dimension == "tokens_per_day" else _MONEY,
        )
        for window in windows_at(limits, now_s, time_zone, of=of)
    ]


def _accounts(keys: TenantKeys, limits: LimitsSpec, scopes: Sequence[Scope], now_s: int) -> list[_Account]:
    period = period_at(limits.budget_period, now_s, limits.time_zone)
    budget = () if limits.budget_usd is None else (_budget(limits.budget_usd, period, keys),)
    counters = (*budget, *_counters(limits, now_s, limits.time_zone, keys, ""))
    accounts = [_Account("", "enforce", keys.limits, limits, counters)]
    for scope in scopes:
        of_scope = _counters(scope.limits, now_s, scope.time_zone, keys, f"{scope.name}:")
        accounts.append(_Account(scope.label, scope.mode, keys.scope(scope.name), scope.limits, of_scope))
    return accounts


def _whole(account: _Account) -> _Stored:
    return _Stored([None] * len(_RATES), 0, 0, [(0, 0)] * len(account.counters))


async def _read(redis: Redis, accounts: Sequence[_Account], keys: TenantKeys, now_ms: int) -> list[_Stored]:
    pipeline = redis.pipeline(transaction=False)
    pipeline.zcount(keys.leases, f"({now_ms}", "+inf")
    pipeline.hget(keys.limits, "slices")
    for account in accounts:
        pipeline.hmget(account.state, "requests", "tokens", "input", "output", "running", "held")
        for counter in account.counters:
            pipeline.hmget(counter.key, *counter.fields)
    try:
        leases, slices, *told = await pipeline.execute()
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    read = iter(cast(list[list[bytes | None]], told))
    found = []
    for account in accounts:
        *levels, running, held = next(read)
        used = [(int(spent or 0), int(reserved or 0)) for spent, reserved in (next(read) for _ in account.counters)]
        runs = int(running or 0) if account.scope or account.mode != "enforce" else max(0, leases - int(slices or 0))
        found.append(_Stored(levels, runs, int(held or 0), used))
    return found


def _left(account: _Account, stored: _Stored, now_ms: int) -> Iterator[Left]:
    """The account's limits, those that it has."""
    limits = account.limits
    of = partial(Left, scope=account.scope, mode=account.mode)
    for name, level in zip(_RATES, stored.levels, strict=True):
        if (limit := getattr(limits, name)) is not None:
            yield of(dimension=name, limit=limit, level=_level(limit, level, now_ms))
    if limits.concurrent_tokens is not None:
        yield of(dimension="concurrent_tokens", limit=limits.concurrent_tokens, reserved=stored.held)
    if limits.concurrent_requests is not None:
        yield of(dimension="concurrent_requests", limit=limits.concurrent_requests, reserved=stored.running)
    for counter, (used, reserved) in zip(account.counters, stored.used, strict=True):
        yield of(
            dimension=counter.dimension,
            limit=counter.limit,
            used=used,
            reserved=reserved,
            period=counter.period,
            resets_at_s=counter.end_s,
        )


def _level(limit: int, stored: bytes | None, now_ms: int) -> int:
    """In 1/60000, as account.lua would find it now."""
    capacity = limit * UNIT
    if stored is None:
        return capacity
    level_then, at_ms, _ = (int(part) for part in stored.split())
    return min(capacity, level_then + max(0, now_ms - at_ms) * limit)
