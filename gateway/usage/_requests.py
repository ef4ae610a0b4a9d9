"""Single requests, as a tenant needs to dispute one: listed newest first, found by id, and followed as they are booked.

Time here is when an event was booked, which is its entry in the tenant's stream: the moment its answer ended, or later
if the ledger was away. So a list never changes behind a reader, and whoever follows it misses nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast, get_args

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import usd
from gateway.errors import Refusal, Refused, RefusedBy
from gateway.metering import Status, UsageEvent
from gateway.store import StoreUnavailable, TenantKeys, load_script

from ._parameters import Parameters, bad, quoted

READ_EVENTS: Final = 100
"""Events that one round trip looks at: Redis serves nobody else for up to a millisecond, 4 to 8 µs an event."""
SCANNED_EVENTS: Final = 5_000
"""Events of one list's answer that are looked at; where filters let few through, the next page goes on from there."""
SEARCHED_EVENTS: Final = 50_000
"""Events that are looked at for one id."""
CORRECTED_EVENTS: Final = 20_000
"""Events after a request's own that are looked at for corrections of it."""
LIST_MAX: Final = 1000
CLOCKS_DIFFER_MS: Final = 60_000
"""Redis' clock, which dates entries, may be behind the gateway's, which dates requests, by that much."""
FOREIGN_ID_SPAN_S: Final = 86_400
"""How far back an id is looked for that does not tell its own time."""

_ALWAYS_S: Final = 10**12
_ENTRY = re.compile(r"\d{1,15}-\d{1,19}").fullmatch
_UUID7 = re.compile(r"([0-9a-f]{8})-?([0-9a-f]{4})-?7[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}").fullmatch
_FILTERS: Final = ("model", "key", "endpoint", "status", "user")
_SEARCH: Final = load_script("search").text.decode()
_StreamEntries = list[tuple[bytes, dict[bytes, bytes]]]
_decode = msgspec.json.Decoder(UsageEvent).decode


class RequestShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One usage event. `entry` is where it is in the tenant's stream; no other event has it, while clients may choose
    one `id` twice. Times are Unix milliseconds; what is empty or 0 and not always there is left out.

    Where `count` is above 1 it stands for so many refused requests alike, which came from `arrived_ms` to `ended_ms`. A
    request's `corrections` are later events that refer to it. Where there was more to look at than one answer may,
    `corrections_until_ms` says until when they were looked for.
    """

    object: Literal["usage.request"]
    entry: str
    id: str
    key: str
    model: str
    endpoint: str
    status: str
    code: str = ""
    user: str = ""
    tags: dict[str, str] = {}
    replica: str = ""
    input_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int
    output_reasoning_tokens: int = 0
    output_audio_tokens: int = 0
    estimated: bool = False
    cached_predicted: bool = False
    cost_usd: str
    price_epoch: str = ""
    arrived_ms: int
    admitted_ms: int = 0
    first_token_ms: int = 0
    ended_ms: int
    corrects: str = ""
    reason: str = ""
    policy: str = ""
    queued_ms: int = 0
    refused_by: RefusedBy | None = None
    count: int = 1
    corrections: list[RequestShown] | msgspec.UnsetType = msgspec.UNSET
    corrections_until_ms: int | msgspec.UnsetType = msgspec.UNSET


class RequestList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/usage/requests`'s answer. A page may be short, or empty, and still have more after it."""

    object: Literal["list"] = "list"
    tenant: str
    data: list[RequestShown]
    has_more: bool
    next_page: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsQuery:
    """Which events: booked at `start_s` <= time < `end_s` (None: until now), before the entry `before` if there is one,
    with these values."""

    start_s: int
    end_s: int | None
    before: str | None
    limit: int
    values: dict[str, str]
    tenant: str | None


class Booked(NamedTuple):
    """An event, and its entry in the tenant's stream."""

    entry: str
    event: UsageEvent


class _Piece(NamedTuple):
    """`looked_at` entries of a stream up to `last`, and those `found` among them: entry and event."""

    looked_at: int
    last: str
    found: list[tuple[str, bytes]]


def parse_requests_query(query_string: bytes, now_s: int) -> RequestsQuery | Refusal:
    """The query of a list, or the 400 that names the parameter and what to send instead."""
    known = {"start", "end", *_FILTERS, "limit", "page", "tenant"}
    try:
        given = Parameters(query_string, known)
        start_s, end_s = given.span_s("start", "end", now_s=now_s, default_s=_ALWAYS_S)
        if "status" in given:
            given.choice("status", get_args(Status), "ok")
        page = given.text("page")
        if page is not None and not (page.startswith("page_") and _ENTRY(page.removeprefix("page_"))):
            raise bad("page", f"page is {quoted(page)}; send next_page of the answer before, or leave it out.")
        return RequestsQuery(
            start_s=start_s,
            end_s=end_s if "end" in given else None,
            before=None if page is None else page.removeprefix("page_"),
            limit=given.number("limit", default=100, most=LIST_MAX),
            values={name: value for name in _FILTERS if (value := given.text(name)) is not None},
            tenant=given.text("tenant"),
        )
    except Refused as refused:
        return refused.refusal


def parse_stream_query(query_string: bytes) -> str | None:
    """The tenant whose events are followed, if the query names one. Raises `Refused`: 400."""
    return Parameters(query_string, {"tenant"}).text("tenant")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQuery:
    """Where one id is looked for: None is where the id's own time, or the last day, says."""

    start_s: int | None
    end_s: int | None
    tenant: str | None


def parse_request_query(query_string: bytes, now_s: int) -> RequestQuery | Refusal:
    """The query of one request, or the 400 that names the parameter and what to send instead."""
    try:
        given = Parameters(query_string, {"start", "end", "tenant"})
        start_s, end_s = given.span_s("start", "end", now_s=now_s, default_s=_ALWAYS_S)
        return RequestQuery(
            start_s=start_s if "start" in given else None,
            end_s=end_s if "end" in given else None,
            tenant=given.text("tenant"),
        )
    except Refused as refused:
        return refused.refusal


async def list_requests(
    redis: Redis, tenant: str, query: RequestsQuery, replica_name: Callable[[str], str] = str
) -> RequestList:
    """The tenant's events, newest first.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    key = TenantKeys(tenant).events
    newest = f"({query.before}" if query.before else "+" if query.end_s is None else f"{query.end_s * 1000 - 1}"
    shown: list[RequestShown] = []
    looked_at, last = 0, ""
    # Events are written without spaces, and what is empty is not written.
    texts = [f'"{name}":'.encode() + msgspec.json.encode(value) for name, value in query.values.items() if value]
    async for part in _search(redis, key, "XREVRANGE", newest, f"{query.start_s * 1000}", texts=texts):
        if looked_at >= SCANNED_EVENTS:
            return RequestList(tenant=tenant, data=shown, has_more=True, next_page=f"page_{last}")
        for entry, json in part.found:
            event = _decode(json)
            if all(getattr(event, name) == value for name, value in query.values.items()):
                if len(shown) == query.limit:
                    return RequestList(tenant=tenant, data=shown, has_more=True, next_page=f"page_{shown[-1].entry}")
                shown.append(show_event(entry, event, replica_name))
        looked_at, last = looked_at + part.looked_at, part.last
    return RequestList(tenant=tenant, data=shown, has_more=False, next_page=None)


async def find_request(
    redis: Redis,
    tenant: str,
    request_id: str,
    query: RequestQuery,
    *,
    now_s: int,
    replica_name: Callable[[str], str] = str,
) -> RequestShown | Refusal:
    """The event of this request, with the corrections that refer to it, or the 404 that says where it was looked for.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    found = await find_event(redis, tenant, request_id, query, now_s=now_s)
    if isinstance(found, Refusal):
        return found
    corrections, until_ms = await _corrections(redis, TenantKeys(tenant).events, found.entry, request_id, replica_name)
    return msgspec.structs.replace(
        show_event(found.entry, found.event, replica_name), corrections=corrections, corrections_until_ms=until_ms
    )


async def find_event(
    redis: Redis, tenant: str, request_id: str, query: RequestQuery, *, now_s: int
) -> Booked | Refusal:
    """The event of this request as it was booked, or the 404 that says where it was looked for.

    An id of the gateway's own, or any UUID of version 7, tells its time: the search begins there and goes forward.
    Another is looked for from now backwards, or from `query.end_s`; of several events with it the newest is found.
    Where none has the id, what counts refusals of the moment that it tells is: it may be among them.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    key = TenantKeys(tenant).events
    told_ms = _time_ms(request_id, now_s)
    default_s = (now_s - FOREIGN_ID_SPAN_S) if told_ms is None else max(0, told_ms - CLOCKS_DIFFER_MS) // 1000
    start_s = default_s if query.start_s is None else query.start_s
    oldest, newest = f"{start_s * 1000}", "+" if query.end_s is None else f"{query.end_s * 1000 - 1}"
    forwards = told_ms is not None
    texts = [b'"id":' + msgspec.json.encode(request_id)]
    pieces = (
        _search(redis, key, "XRANGE", oldest, newest, texts=texts)
        if forwards
        else _search(redis, key, "XREVRANGE", newest, oldest, texts=texts)
    )
    looked_at, last = 0, ""
    async for part in pieces:
        for entry, json in part.found:
            if (event := _decode(json)).id == request_id:
                return Booked(entry, event)
        looked_at, last = looked_at + part.looked_at, part.last
        if looked_at >= SEARCHED_EVENTS:
            break
    if told_ms is not None and (counted := await _counted_with(redis, key, told_ms)) is not None:
        return counted
    return _not_found(request_id, start_s, query.end_s or now_s, last if looked_at >= SEARCHED_EVENTS else "", forwards)


async def _counted_with(redis: Redis, key: str, told_ms: int) -> Booked | None:
    """The event that counts what was refused in a flood at that time, if there was one."""
    begin, end = f"{max(0, told_ms - CLOCKS_DIFFER_MS)}", f"{told_ms + 2 * CLOCKS_DIFFER_MS}"
    looked_at = 0
    async for part in _search(redis, key, "XRANGE", begin, end, texts=[b'"count":']):
        for entry, json in part.found:
            event = _decode(json)
            if event.arrived_ms <= told_ms <= event.ended_ms:
                return Booked(entry, event)
        looked_at += part.looked_at
        if looked_at >= SEARCHED_EVENTS:
            break
    return None


async def _corrections(
    redis: Redis, key: str, entry: str, request_id: str, replica_name: Callable[[str], str]
) -> tuple[list[RequestShown], int | msgspec.UnsetType]:
    found = []
    looked_at = 0
    texts = [b'"corrects":' + msgspec.json.encode(request_id)]
    async for part in _search(redis, key, "XRANGE", f"({entry}", "+", texts=texts):
        for later, json in part.found:
            if (event := _decode(json)).corrects == request_id:
                found.append(show_event(later, event, replica_name))
        looked_at += part.looked_at
        if looked_at >= CORRECTED_EVENTS:
            return found, int(part.last.partition("-")[0])
    return found, msgspec.UNSET


def _not_found(request_id: str, start_s: int, end_s: int, stopped_at: str, forwards: bool) -> Refusal:
    looked = f"{start_s} to {end_s}"
    advice = "If it ran at another time, send start and end around it."
    if stopped_at:
        at_s = int(stopped_at.partition("-")[0]) // 1000
        looked = f"{start_s} to {at_s + 1}" if forwards else f"{at_s} to {end_s}"
        advice = f"To look further, send start={at_s}." if forwards else f"To look further, send end={at_s + 1}."
    return Refusal(
        status=404,
        code="request_not_found",
        message=f"No request {quoted(request_id)} was booked from {looked} (Unix seconds). {advice}",
        param="id",
    )


def _time_ms(request_id: str, now_s: int) -> int | None:
    """When an id was made, if it tells and may be believed."""
    match = _UUID7(request_id)
    if match is None:
        return None
    time_ms = int(match[1] + match[2], 16)
    return time_ms if time_ms <= now_s * 1000 + CLOCKS_DIFFER_MS else None


def show_event(entry: str, event: UsageEvent, replica_name: Callable[[str], str]) -> RequestShown:
    """An event as its tenant sees it."""
    usage = event.usage
    return RequestShown(
        object="usage.request",
        entry=entry,
        id=event.id,
        key=event.key,
        model=event.model,
        endpoint=event.endpoint,
        status=event.status,
        code=event.code,
        user=event.user,
        tags=event.tags,
        replica=replica_name(event.replica),
        input_tokens=usage.input_tokens,
        input_cached_tokens=usage.input_cached_tokens,
        input_cache_write_tokens=usage.input_cache_write_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        input_image_tokens=usage.input_image_tokens,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.output_reasoning_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        estimated=event.estimated,
        cached_predicted=event.cached_predicted,
        cost_usd=usd(event.cost_nanousd),
        price_epoch=event.price_epoch,
        arrived_ms=event.arrived_ms,
        admitted_ms=event.admitted_ms,
        first_token_ms=event.first_token_ms,
        ended_ms=event.ended_ms,
        corrects=event.corrects,
        reason=event.reason,
        policy=event.policy,
        queued_ms=event.queued_ms,
        refused_by=event.refused_by,
        count=event.count,
    )


def is_entry(text: str) -> bool:
    """Whether `text` is written like an entry of a stream."""
    return _ENTRY(text) is not None


async def last_entry(redis: Redis, tenant: str) -> str:
    """The tenant's newest entry, or the one before all.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    async for part in _search(redis, TenantKeys(tenant).events, "XREVRANGE", "+", "-", texts=(), count=1):
        return part.last
    return "0-0"


async def next_events(
    redis: Redis, tenant: str, after: str, *, wait_ms: int, replica_name: Callable[[str], str] = str
) -> list[RequestShown]:
    """What was booked after the entry `after`, oldest first; waits for it, at most `wait_ms`. Holds a connection of
    its own to Redis meanwhile.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    key = TenantKeys(tenant).events
    try:
        answer = await redis.xread({key: after}, count=READ_EVENTS, block=wait_ms)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return [
        show_event(entry.decode(), _decode(fields[b"event"]), replica_name)
        for _, entries in cast(list[tuple[bytes, _StreamEntries]], answer)
        for entry, fields in entries
    ]


async def _search(
    redis: Redis, key: str, command: str, begin: str, end: str, *, texts: Sequence[bytes], count: int = READ_EVENTS
) -> AsyncIterator[_Piece]:
    """The stream from `begin` to `end`, piece by piece, in the order of the command; only events that hold all `texts`
    are sent. Redis' client would spend 7 µs on each of the others."""
    while True:
        try:
            answer = await redis.eval(_SEARCH, 1, key, command, begin, end, str(count), *texts)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        looked_at, last, flat = cast(tuple[int, bytes, list[bytes]], answer)
        if not looked_at:
            return
        found = [(entry.decode(), event) for entry, event in zip(flat[::2], flat[1::2], strict=True)]
        yield _Piece(looked_at, last.decode(), found)
        begin = f"({last.decode()}"
