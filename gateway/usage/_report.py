"""The usage report: what a tenant used, what it cost, what is left. Read in few round trips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal, Protocol, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import usd
from gateway.metering import CACHED, COST, INPUT, OUTPUT, REFUSED_PREFIX, REQUESTS, split_field
from gateway.policy import LimitsSpec
from gateway.store import BUCKET_SECONDS, BucketSize, StoreUnavailable, TenantKeys

from ._limits import BudgetLeft, LimitLeft, limits_left
from ._query import GroupKey

TRIP_BUCKETS: Final = 200
"""Buckets of one round trip. Redis' client reads a trip's answers without letting the event loop do anything else:
1,440 buckets at once held it for 12 ms, measured; most answers fit one trip."""


class PriceShown(Protocol):
    """A price as the report shows it; `pricing.Price` is one."""

    @property
    def epoch(self) -> str: ...
    @property
    def input_usd_per_mtok(self) -> Decimal: ...
    @property
    def cached_usd_per_mtok(self) -> Decimal: ...
    @property
    def output_usd_per_mtok(self) -> Decimal: ...


class UsageResult(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group. `requests` were served, even if only in part; `refused` counts the others by error code.
    `input_tokens` includes `input_cached_tokens`. `cost_usd` is exact. `model` and `key` are there if grouped by."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET
    requests: int
    refused: dict[str, int]
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    cost_usd: str


class UsageBucket(msgspec.Struct, frozen=True, kw_only=True):
    """`start` <= end of the request < `end`, Unix seconds. No results: nothing happened."""

    start: int
    end: int
    results: list[UsageResult]


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars per million tokens, decimal strings, in the price epoch that is current."""

    input_usd_per_mtok: str
    input_cached_usd_per_mtok: str
    output_usd_per_mtok: str
    epoch: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/usage`'s answer; `msgspec.json.encode` makes its body."""

    object: Literal["usage"] = "usage"
    tenant: str
    start: int
    end: int
    bucket: BucketSize
    data: list[UsageBucket]
    totals: UsageResult
    limits: dict[str, LimitLeft | BudgetLeft]
    price: dict[str, ModelPrice]


async def report(
    redis: Redis,
    tenant: str,
    *,
    start_s: int,
    end_s: int,
    bucket: BucketSize,
    group_by: Sequence[GroupKey],
    now_s: int,
    limits: LimitsSpec | None,
    prices: Mapping[str, PriceShown] | None,
) -> Report:
    """What `tenant` used from `start_s` to before `end_s`, in whole buckets: a bucket that the time begins or ends in
    counts whole. Without `limits` or `prices` those parts of the answer are empty.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    keys = TenantKeys(tenant)
    seconds = BUCKET_SECONDS[bucket]
    starts = range(start_s // seconds * seconds, end_s, seconds)
    answers: list[object] = []
    pipeline = redis.pipeline(transaction=False)
    try:
        for start in starts:
            pipeline.hgetall(keys.usage(bucket, start))
            if len(pipeline) == TRIP_BUCKETS:
                answers += cast(list[object], await pipeline.execute())
        left = limits_left(pipeline, keys, limits, now_s)
        answers += cast(list[object], await pipeline.execute())
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    totals = _Sums()
    data = []
    for start, fields in zip(starts, cast(list[dict[bytes, bytes]], answers), strict=False):
        groups: dict[tuple[str, ...], _Sums] = {}
        for name, value in fields.items():
            group, metric = split_field(name.decode())
            sums = groups.setdefault(tuple(getattr(group, part) for part in group_by), _Sums())
            sums.add(metric, int(value))
            totals.add(metric, int(value))
        results = [sums.result(dict(zip(group_by, group, strict=True))) for group, sums in sorted(groups.items())]
        data.append(UsageBucket(start=start, end=start + seconds, results=results))
    return Report(
        tenant=tenant,
        start=start_s,
        end=end_s,
        bucket=bucket,
        data=data,
        totals=totals.result({}),
        limits=left(answers[len(starts) :]),
        price={name: _shown(price) for name, price in sorted((prices or {}).items())},
    )


class _Sums:
    """Metrics of one group, added up."""

    def __init__(self) -> None:
        self._metrics: dict[str, int] = {}

    def add(self, metric: str, n: int) -> None:
        self._metrics[metric] = self._metrics.get(metric, 0) + n

    def result(self, group: Mapping[GroupKey, str]) -> UsageResult:
        metrics = self._metrics
        return UsageResult(
            model=group.get("model", msgspec.UNSET),
            key=group.get("key", msgspec.UNSET),
            requests=metrics.get(REQUESTS, 0),
            refused={
                metric.removeprefix(REFUSED_PREFIX): n
                for metric, n in sorted(metrics.items())
                if metric.startswith(REFUSED_PREFIX)
            },
            input_tokens=metrics.get(INPUT, 0),
            input_cached_tokens=metrics.get(CACHED, 0),
            output_tokens=metrics.get(OUTPUT, 0),
            cost_usd=usd(metrics.get(COST, 0)),
        )


def _shown(price: PriceShown) -> ModelPrice:
    return ModelPrice(
        input_usd_per_mtok=_plain(price.input_usd_per_mtok),
        input_cached_usd_per_mtok=_plain(price.cached_usd_per_mtok),
        output_usd_per_mtok=_plain(price.output_usd_per_mtok),
        epoch=price.epoch,
    )


def _plain(amount: Decimal) -> str:
    """Without an exponent and without zeros that say nothing."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
