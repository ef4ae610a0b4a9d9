"""Billed tokens of a time by tenant and model: what prices are measured by and bills are held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from redis.asyncio import Redis

from gateway.metering import CACHED, COST, INPUT, OUTPUT, REQUESTS, Dimensions
from gateway.store import BUCKET_SECONDS, BucketSize, TenantKeys

from ._buckets import Group, Grouping, Sums, field_counts, read_fields

_SIZES: Final[tuple[BucketSize, ...]] = ("1d", "1h", "1m")


class Billed(msgspec.Struct, frozen=True, kw_only=True):
    """What was billed. `input_tokens` is without cached ones."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.input_tokens + self.cached_tokens + self.output_tokens

    def __add__(self, other: Billed) -> Billed:
        return Billed(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_nanousd=self.cost_nanousd + other.cost_nanousd,
        )


async def billed_by_tenant_and_model(
    redis: Redis, tenants: Sequence[str], start_s: int, end_s: int
) -> dict[tuple[str, str], Billed]:
    """What was billed in [start, end), whole minutes, by tenant and model. Read in the fewest buckets that make it up.

    Raises `StoreUnavailable`.
    """
    buckets = list(_cover(start_s, end_s))
    names = [TenantKeys(tenant).usage(size, at_s) for tenant in tenants for size, at_s in buckets]
    owner = [tenant for tenant in tenants for _ in buckets]
    found: dict[tuple[str, str], Billed] = {}
    by_model = Grouping(_model)
    counts = await field_counts(redis, names)
    sums: dict[str, dict[int, int]] = {}
    async for position, fields in read_fields(redis, names, counts):
        by_model.add(fields, sums.setdefault(owner[position], {}))
    for tenant, slots in sums.items():
        groups: dict[Group, Sums] = {}
        by_model.groups(slots, groups)
        for (model,), metrics in groups.items():
            cached = metrics.get(CACHED, 0)
            found[tenant, model] = Billed(
                requests=metrics.get(REQUESTS, 0),
                input_tokens=metrics.get(INPUT, 0) - cached,
                cached_tokens=cached,
                output_tokens=metrics.get(OUTPUT, 0),
                cost_nanousd=metrics.get(COST, 0),
            )
    return found


def _model(dimensions: Dimensions) -> Group:
    return (dimensions.model,)


def _cover(start_s: int, end_s: int) -> Iterator[tuple[BucketSize, int]]:
    """The fewest buckets that are [start, end) together."""
    assert start_s % 60 == end_s % 60 == 0, "minutes are the smallest buckets"
    at_s = start_s
    while at_s < end_s:
        size = next(s for s in _SIZES if at_s % BUCKET_SECONDS[s] == 0 and at_s + BUCKET_SECONDS[s] <= end_s)
        yield size, at_s
        at_s += BUCKET_SECONDS[size]
