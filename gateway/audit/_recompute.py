"""Every bill once more: each event's cost from its usage and the price book, the sums from the events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from gateway.metering import UsageEvent, usage_sums
from gateway.store import BUCKET_SECONDS, BucketSize, StoreUnavailable, TenantKeys

from ._events import events, tenants
from ._prices import PriceBook, read_prices

DIFFERENCES_MAX: Final = 100
"""More are counted, not kept."""
TRIES: Final = 3
"""What differs is read again: events may have been booked between the stream and the sums."""
OPEN_MS: Final = 25 * 3_600_000
"""So long after a bucket's end events for it may still be booked; then it is compared and forgotten."""
_GONE_AFTER_S: Final[Mapping[BucketSize, int]] = {"1m": 86_400, "1h": 7 * 86_400}
"""Buckets may be gone at this age; what was in them is in the larger ones too."""

_Sums = dict[tuple[BucketSize, int], dict[str, int]]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not what it was computed to be. `where` is an event's id, a bucket's field, or `budgets`."""

    tenant: str
    where: str
    stored: int | None
    computed: int | None


class Recomputed(msgspec.Struct, kw_only=True):
    """How much was compared, and the first differences of `differing`. `budgets_unknown` are tenants whose budgets hold
    money of events that are no longer kept.
    """

    events: int = 0
    buckets: int = 0
    budgets: int = 0
    budgets_unknown: int = 0
    differing: int = 0
    differences: list[Difference] = []

    def differ(self, difference: Difference) -> None:
        """Notes a difference."""
        self.differing += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)


async def recompute(redis: Redis, *, start_s: int, end_s: int, now_s: int) -> Recomputed:
    """Computes every tenant's costs and sums again, of events that ended from `start_s` to before `end_s`, and of
    buckets that lie wholly in there; and, where all of a tenant's events are still kept, what all its budgets spent.
    All to the nano-dollar. Corrections cost what they say.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    total = Recomputed(differences=[])
    book = await read_prices(redis)
    try:
        for tenant in await tenants(redis):
            for _ in range(TRIES):
                one = _Tenant(redis, tenant, book, start_s=start_s, end_s=end_s, now_s=now_s)
                await one.run()
                if not one.found.differing:
                    break
            for name in ("events", "buckets", "budgets", "budgets_unknown"):
                setattr(total, name, getattr(total, name) + getattr(one.found, name))
            for difference in one.found.differences:
                total.differ(difference)
            total.differing += one.found.differing - len(one.found.differences)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return total


class _Tenant:
    """One tenant, once."""

    def __init__(self, redis: Redis, tenant: str, book: PriceBook, *, start_s: int, end_s: int, now_s: int) -> None:
        self.found = Recomputed(differences=[])
        self._redis, self._tenant, self._keys, self._book = redis, tenant, TenantKeys(tenant), book
        self._start_s, self._end_s, self._now_s = start_s, end_s, now_s
        self._sums: _Sums = {}
        self._spent_nanousd = 0

    async def run(self) -> None:
        first_s, is_whole = await self._kept()
        self._start_s = max(self._start_s, first_s)
        swept_ms = 0
        booked_from_ms = 0 if is_whole else self._start_s * 1000 - 60_000
        read = events(self._redis, self._tenant, UsageEvent, booked_from_ms=booked_from_ms)
        async for booked_ms, piece in read:
            self._spent_nanousd += sum(event.cost_nanousd for event in piece)
            inside = [event for event in piece if self._start_s <= event.ended_ms // 1000 < self._end_s]
            for event in inside:
                self._check_cost(event)
            self._add(inside)
            if booked_ms - swept_ms > OPEN_MS // 25:
                swept_ms = booked_ms
                await self._compare(before_s=(booked_ms - OPEN_MS) // 1000)
        await self._compare(before_s=self._end_s)
        await self._check_budgets(is_whole=is_whole)

    async def _kept(self) -> tuple[int, bool]:
        """From when on every event is there (Unix seconds), and whether that is every event there ever was."""
        try:
            told = cast(dict[str, object], await self._redis.xinfo_stream(self._keys.events))
        except ResponseError:
            return 0, True
        first = cast(tuple[bytes, object] | None, told["first-entry"])
        if told["entries-added"] == told["length"] or first is None:
            return 0, told["entries-added"] == told["length"]
        return int(first[0].partition(b"-")[0]) // 1000 + 1, False

    def _check_cost(self, event: UsageEvent) -> None:
        self.found.events += 1
        if event.status == "correction":
            return
        if not event.price_epoch:
            computed: int | None = 0
        else:
            price = self._book.get((event.price_epoch, event.model))
            computed = None if price is None else price.cost_nanousd(event.usage)
        if computed != event.cost_nanousd:
            self._differ(event.id, event.cost_nanousd, computed)

    def _add(self, piece: list[UsageEvent]) -> None:
        for size, start_s, increments in usage_sums(piece):
            sums = self._sums.setdefault((size, start_s), {})
            for field, n in increments.items():
                sums[field] = sums.get(field, 0) + n

    async def _compare(self, *, before_s: int) -> None:
        """Compares and forgets the buckets that end by then."""
        done = [place for place in self._sums if place[1] + BUCKET_SECONDS[place[0]] <= before_s]
        for size, start_s in done:
            sums = self._sums.pop((size, start_s))
            if start_s < self._start_s:
                continue
            stored = cast(dict[bytes, bytes], await self._redis.hgetall(self._keys.usage(size, start_s)))
            if not stored and self._now_s - start_s > _GONE_AFTER_S.get(size, self._now_s):
                continue
            self.found.buckets += 1
            self._compare_bucket(f"{size} {start_s}", {field.decode(): int(n) for field, n in stored.items()}, sums)

    def _compare_bucket(self, name: str, stored: dict[str, int], computed: dict[str, int]) -> None:
        for field in sorted(stored.keys() | computed.keys()):
            if stored.get(field, 0) != computed.get(field, 0):
                shown = " ".join(part for part in field.split("\x1f") if part)
                self._differ(f"{name} {shown}", stored.get(field), computed.get(field))

    async def _check_budgets(self, *, is_whole: bool) -> None:
        spent = [money async for money in self._spent()]
        if not spent:
            return
        if not is_whole:
            self.found.budgets_unknown += 1
            return
        self.found.budgets += len(spent)
        if sum(spent) != self._spent_nanousd:
            self._differ("budgets", sum(spent), self._spent_nanousd)

    async def _spent(self) -> AsyncIterator[int]:
        async for key in self._redis.scan_iter(match=self._keys.budget_prefix + "*", count=10_000):
            yield int(cast(bytes | None, await self._redis.hget(key, "spent")) or 0)

    def _differ(self, where: str, stored: int | None, computed: int | None) -> None:
        self.found.differ(Difference(tenant=self._tenant, where=where, stored=stored, computed=computed))
