"""The usage report: what a tenant used, what it cost, what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Literal, Protocol

import msgspec
from redis.asyncio import Redis

from gateway.admission import usd
from gateway.metering import (
    CACHED,
    COST,
    ESTIMATED,
    INPUT,
    OUTPUT,
    PARTS,
    REFUSED_PREFIX,
    REQUESTS,
    Dimensions,
)
from gateway.policy import LimitsSpec
from gateway.store import BUCKET_SECONDS, BucketSize, TenantKeys

from ._buckets import ANSWER_FIELDS, Group, Grouping, Sums, field_counts, first_that_fit, read_fields
from ._limits import BudgetLeft, LimitLeft, read_limits
from ._query import TAG_PREFIX, UsageQuery, page_cursor


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


class UsageResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sums of one group. `requests` were served, even if only in part; `refused` counts the others by error code.
    `input_tokens` and `output_tokens` are everything; what they hold of cached, written to the cache, reasoning, audio
    and images is said beside them, if it is not 0 and the engine tells. Of `estimated` requests the engine had not
    told every count. `cost_usd` is exact. What is grouped by is there, even if empty."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET
    endpoint: str | msgspec.UnsetType = msgspec.UNSET
    status: str | msgspec.UnsetType = msgspec.UNSET
    replica: str | msgspec.UnsetType = msgspec.UNSET
    user: str | msgspec.UnsetType = msgspec.UNSET
    tags: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    requests: int
    refused: dict[str, int]
    input_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int
    output_reasoning_tokens: int = 0
    output_audio_tokens: int = 0
    estimated: int = 0
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
    """`GET /v1/usage`'s answer; `msgspec.json.encode` makes its body. `totals` are of the buckets in `data`, which may
    not reach `end`: `next_page` is then the cursor of what follows."""

    object: Literal["usage"] = "usage"
    tenant: str
    start: int
    end: int
    bucket: BucketSize
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None
    totals: UsageResult
    limits: dict[str, LimitLeft | BudgetLeft]
    price: dict[str, ModelPrice]


async def report(
    redis: Redis,
    tenant: str,
    query: UsageQuery,
    *,
    now_s: int,
    limits: LimitsSpec | None,
    prices: Mapping[str, PriceShown] | None,
    replica_name: Callable[[str], str] = str,
    fields_max: int = ANSWER_FIELDS,
) -> Report:
    """What `tenant` used in the time of `query`, in whole buckets: a bucket that the time begins or ends in counts
    whole. Without `limits` or `prices` those parts of the answer are empty. `replica_name` says how replicas are shown.
    The answer ends after `query.limit` buckets, or before the bucket that would make it read more than `fields_max`
    fields.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    keys = TenantKeys(tenant)
    seconds = BUCKET_SECONDS[query.bucket]
    starts = range(query.from_s // seconds * seconds, query.end_s, seconds)[: query.limit]
    names = [keys.usage(query.bucket, start) for start in starts]
    left = await read_limits(redis, tenant, limits, now_s) if limits is not None else {}
    counts = await field_counts(redis, names)
    shown = first_that_fit(counts, fields_max)
    slots: list[dict[int, int]] = [{} for _ in range(shown)]
    grouping = Grouping(_group_of(query.group_by, replica_name))
    async for position, fields in read_fields(redis, names[:shown], counts[:shown]):
        grouping.add(fields, slots[position])
    buckets: list[dict[Group, Sums]] = [{} for _ in range(shown)]
    for sums, groups in zip(slots, buckets, strict=True):
        grouping.groups(sums, groups)
    next_page = page_cursor(starts[0] + shown * seconds, query.end_s)
    return Report(
        tenant=tenant,
        start=query.start_s,
        end=query.end_s,
        bucket=query.bucket,
        data=[
            UsageBucket(
                start=start,
                end=start + seconds,
                results=[_result(sums, query.group_by, group) for group, sums in sorted(groups.items())],
            )
            for start, groups in zip(starts, buckets, strict=False)
        ],
        has_more=next_page is not None,
        next_page=next_page,
        totals=_result(_total(buckets), (), ()),
        limits=left,
        price={name: _shown(price) for name, price in sorted((prices or {}).items())},
    )


def _group_of(group_by: Sequence[str], replica_name: Callable[[str], str]) -> Callable[[Dimensions], Group]:
    def part(dimensions: Dimensions, key: str) -> str:
        if key.startswith(TAG_PREFIX):
            return dimensions.tag(key.removeprefix(TAG_PREFIX))
        value: str = getattr(dimensions, key)
        return replica_name(value) if key == "replica" else value

    return lambda dimensions: tuple(part(dimensions, key) for key in group_by)


def _total(buckets: Sequence[Mapping[Group, Sums]]) -> Sums:
    total: Sums = {}
    for groups in buckets:
        for sums in groups.values():
            for metric, n in sums.items():
                total[metric] = total.get(metric, 0) + n
    return total


def _result(sums: Sums, group_by: Sequence[str], group: Group) -> UsageResult:
    values = dict(zip(group_by, group, strict=True))
    tags = {key.removeprefix(TAG_PREFIX): value for key, value in values.items() if key.startswith(TAG_PREFIX)}
    parts = {name: sums.get(metric, 0) for metric, name in PARTS.items()}
    return UsageResult(
        model=values.get("model", msgspec.UNSET),
        key=values.get("key", msgspec.UNSET),
        endpoint=values.get("endpoint", msgspec.UNSET),
        status=values.get("status", msgspec.UNSET),
        replica=values.get("replica", msgspec.UNSET),
        user=values.get("user", msgspec.UNSET),
        tags=tags or msgspec.UNSET,
        requests=sums.get(REQUESTS, 0),
        refused={
            metric.removeprefix(REFUSED_PREFIX): n
            for metric, n in sorted(sums.items())
            if metric.startswith(REFUSED_PREFIX)
        },
        input_tokens=sums.get(INPUT, 0),
        input_cached_tokens=sums.get(CACHED, 0),
        input_cache_write_tokens=parts["input_cache_write_tokens"],
        input_audio_tokens=parts["input_audio_tokens"],
        input_image_tokens=parts["input_image_tokens"],
        output_tokens=sums.get(OUTPUT, 0),
        output_reasoning_tokens=parts["output_reasoning_tokens"],
        output_audio_tokens=parts["output_audio_tokens"],
        estimated=sums.get(ESTIMATED, 0),
        cost_usd=usd(sums.get(COST, 0)),
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
