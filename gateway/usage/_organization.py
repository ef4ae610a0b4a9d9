"""OpenAI's usage and costs pages in their exact formats: dashboards made for them work by changing the base URL.

A project is a tenant. Formats: https://platform.openai.com/docs/api-reference/usage
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from redis.asyncio import Redis

from gateway.admission import usd
from gateway.errors import Refusal, Refused
from gateway.metering import CACHED, COST, INPUT, OUTPUT, REQUESTS, Dimensions
from gateway.store import BUCKET_SECONDS, BucketSize, TenantKeys
from gateway.wire import Endpoint

from ._buckets import ANSWER_FIELDS, Group, Grouping, Sums, field_counts, first_that_fit, read_fields
from ._parameters import Parameters, bad, quoted
from ._query import check_kept, page_cursor, page_start_s

Kind = Literal["completions", "embeddings", "costs"]

ANSWER_BUCKETS: Final = 20_000
"""Tenants times buckets of one answer; with more tenants its pages have fewer buckets than `limit`."""

_LIMITS: Final[dict[BucketSize, tuple[int, int]]] = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
_COSTS_LIMIT: Final = (7, 180)

_COMMON: Final = {"start_time", "end_time", "bucket_width", "group_by", "project_ids", "user_ids", "api_key_ids"}
_KNOWN: Final[dict[Kind, frozenset[str]]] = {
    "completions": frozenset({*_COMMON, "models", "batch", "limit", "page"}),
    "embeddings": frozenset({*_COMMON, "models", "limit", "page"}),
    "costs": frozenset({*_COMMON, "line_items", "limit", "page"}),
}
_GROUP_KEYS: Final[dict[Kind, tuple[str, ...]]] = {
    "completions": ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source"),
    "embeddings": ("project_id", "user_id", "api_key_id", "model"),
    "costs": ("project_id", "user_id", "api_key_id", "line_item", "api_source"),
}
_EMBEDDINGS: Final = Endpoint.EMBEDDINGS.path
_GENERATING: Final = frozenset({"", *(endpoint.path for endpoint in Endpoint if endpoint.generates)})


class CompletionsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group. `input_tokens` = uncached + cached + written to the cache."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int
    input_uncached_tokens: int
    input_audio_tokens: int
    input_image_tokens: int
    output_tokens: int
    output_audio_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    model: str | None
    batch: bool | None
    service_tier: str | None
    api_source: str | None


class EmbeddingsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group."""

    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    model: str | None


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars; `value` is a JSON number with every digit of the sum."""

    value: msgspec.Raw
    currency: Literal["usd"] = "usd"


class CostsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one group cost. A line item is a model; then `quantity` is its tokens."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount
    line_item: str | None
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    api_source: str | None
    quantity: int | None
    quantity_unit: Literal["tokens"] | None


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """`start_time` <= end of the request < `end_time`, Unix seconds."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult | EmbeddingsResult | CostsResult]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page; `msgspec.json.encode` makes its body."""

    object: Literal["page"] = "page"
    data: list[Bucket]
    has_more: bool
    next_page: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationQuery:
    """What is asked: `limit` buckets from `from_s` on, until `end_s` (Unix seconds). None of a filter: all of them."""

    kind: Kind
    from_s: int
    end_s: int
    bucket: BucketSize
    limit: int
    group_by: tuple[str, ...]
    projects: tuple[str, ...] | None
    users: frozenset[str] | None
    keys: frozenset[str] | None
    models: frozenset[str] | None
    nothing: bool
    """Whether only batch jobs are wanted, of which there are none."""


def parse_organization_query(
    kind: Kind, query_string: bytes, now_s: int, kept: Mapping[BucketSize, int]
) -> OrganizationQuery | Refusal:
    """The query, or the 400 that names the parameter and what to send instead."""
    lists = {name for name in _KNOWN[kind] if name.endswith("s")} | {"group_by"}
    try:
        return _parse(kind, Parameters(query_string, _KNOWN[kind], repeated=lists), now_s, kept)
    except Refused as refused:
        return refused.refusal


def _parse(kind: Kind, given: Parameters, now_s: int, kept: Mapping[BucketSize, int]) -> OrganizationQuery:
    if "start_time" not in given:
        raise bad("start_time", "start_time is missing; send Unix seconds.")
    start_s, end_s = given.span_s("start_time", "end_time", now_s=now_s, default_s=0)
    sizes: tuple[BucketSize, ...] = ("1d",) if kind == "costs" else ("1m", "1h", "1d")
    bucket = given.choice("bucket_width", sizes, "1d")
    from_s = page_start_s(given, start_s, end_s, BUCKET_SECONDS[bucket])
    check_kept(from_s, bucket, now_s, kept, param="bucket_width")
    default, most = _COSTS_LIMIT if kind == "costs" else _LIMITS[bucket]
    wanted = given.items("group_by")
    for name in wanted:
        if name not in _GROUP_KEYS[kind]:
            raise bad("group_by", f"group_by is {quoted(name)}; it is some of {', '.join(_GROUP_KEYS[kind])}.")
    projects = given.items("project_ids")
    return OrganizationQuery(
        kind=kind,
        from_s=from_s,
        end_s=end_s,
        bucket=bucket,
        limit=given.number("limit", default=default, most=most),
        group_by=tuple(key for key in _GROUP_KEYS[kind] if key in wanted),
        projects=tuple(dict.fromkeys(projects)) or None,
        users=_only(given.items("user_ids")),
        keys=_only(given.items("api_key_ids")),
        models=_only(given.items("line_items" if kind == "costs" else "models")),
        nothing=given.flag("batch") is True,
    )


def _only(names: list[str]) -> frozenset[str] | None:
    return frozenset(names) or None


async def organization_page(redis: Redis, tenants: Sequence[str], query: OrganizationQuery) -> Page:
    """What these tenants used or what it cost, in whole buckets.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    seconds = BUCKET_SECONDS[query.bucket]
    starts = range(query.from_s // seconds * seconds, query.end_s, seconds)[: query.limit]
    read = [] if query.nothing else tenants
    if read:
        starts = starts[: max(1, ANSWER_BUCKETS // len(read))]
    names = [TenantKeys(tenant).usage(query.bucket, start) for tenant in read for start in starts]
    counts = await field_counts(redis, names)
    width = len(starts)
    shown = first_that_fit([sum(counts[at::width]) for at in range(width)], ANSWER_FIELDS)
    counts = [count if position % width < shown else 0 for position, count in enumerate(counts)]
    groupings = [Grouping(_group_of(query, tenant)) for tenant in read]
    slots: list[dict[int, int]] = [{} for _ in names]
    async for position, fields in read_fields(redis, names, counts):
        groupings[position // width].add(fields, slots[position])
    buckets: list[dict[Group, Sums]] = [{} for _ in range(shown)]
    for position, sums in enumerate(slots):
        if sums:
            groupings[position // width].groups(sums, buckets[position % width])
    next_page = page_cursor(starts[0] + shown * seconds, query.end_s)
    return Page(
        data=[
            Bucket(
                start_time=start,
                end_time=start + seconds,
                results=[_result(query, group, sums) for group, sums in sorted(groups.items())],
            )
            for start, groups in zip(starts, buckets, strict=False)
        ],
        has_more=next_page is not None,
        next_page=next_page,
    )


def _group_of(query: OrganizationQuery, tenant: str) -> Callable[[Dimensions], Group | None]:
    """Requests that were served; refused ones used nothing and OpenAI does not count them."""

    def group_of(one: Dimensions) -> Group | None:
        served = one.status != "refused" and _is_of(query.kind, one.endpoint)
        if not (served and _in(one.model, query.models) and _in(one.key, query.keys) and _in(one.user, query.users)):
            return None
        values = {
            "project_id": tenant,
            "user_id": one.user,
            "api_key_id": one.key,
            "model": one.model,
            "line_item": one.model,
            "service_tier": "default",
            "api_source": "unlabeled",
            "batch": "",
        }
        return tuple(values[key] for key in query.group_by)

    return group_of


def _is_of(kind: Kind, endpoint: str) -> bool:
    if kind == "costs":
        return True
    return endpoint == _EMBEDDINGS if kind == "embeddings" else endpoint in _GENERATING


def _in(value: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or value in wanted


def _result(query: OrganizationQuery, group: Group, sums: Sums) -> CompletionsResult | EmbeddingsResult | CostsResult:
    values = dict(zip(query.group_by, group, strict=True))
    project, key = values.get("project_id"), values.get("api_key_id")
    user = values.get("user_id") or None
    tokens_in, tokens_out = sums.get(INPUT, 0), sums.get(OUTPUT, 0)
    match query.kind:
        case "completions":
            cached, written = sums.get(CACHED, 0), sums.get("cache_write", 0)
            return CompletionsResult(
                input_tokens=tokens_in,
                input_cached_tokens=cached,
                input_cache_write_tokens=written,
                input_uncached_tokens=tokens_in - cached - written,
                input_audio_tokens=sums.get("input_audio", 0),
                input_image_tokens=sums.get("input_image", 0),
                output_tokens=tokens_out,
                output_audio_tokens=sums.get("output_audio", 0),
                num_model_requests=sums.get(REQUESTS, 0),
                project_id=project,
                user_id=user,
                api_key_id=key,
                model=values.get("model"),
                batch=False if "batch" in values else None,
                service_tier=values.get("service_tier"),
                api_source=values.get("api_source"),
            )
        case "embeddings":
            return EmbeddingsResult(
                input_tokens=tokens_in,
                num_model_requests=sums.get(REQUESTS, 0),
                project_id=project,
                user_id=user,
                api_key_id=key,
                model=values.get("model"),
            )
        case "costs":
            item = values.get("line_item")
            return CostsResult(
                amount=Amount(value=msgspec.Raw(usd(sums.get(COST, 0)).encode())),
                line_item=item,
                project_id=project,
                user_id=user,
                api_key_id=key,
                api_source=values.get("api_source"),
                quantity=None if item is None else tokens_in + tokens_out,
                quantity_unit=None if item is None else "tokens",
            )
