"""Single events read back from a tenant's stream on a real Valkey."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.errors import Refusal
from gateway.store import TenantKeys
from gateway.usage import (
    RequestList,
    RequestQuery,
    RequestShown,
    RequestsQuery,
    find_request,
    list_requests,
    parse_request_query,
    parse_requests_query,
)
from gateway.usage import _requests as room
from tests.integration.store.ledgers import T0_MS, event

T0_S = T0_MS // 1000
NOW_S = T0_S + 3600


async def book(redis: Redis, at_ms: int, request: str, number: int = 0, **said: Any) -> str:
    """An event in the stream, as the ledger writes it, at this moment of Redis' clock."""
    booked = msgspec.structs.replace(event(request, ended_ms=at_ms), **said)
    entry = await redis.xadd(TenantKeys("acme").events, {"event": msgspec.json.encode(booked)}, id=f"{at_ms}-{number}")
    return entry.decode()


async def listed(redis: Redis, query: str = "") -> RequestList:
    asked = parse_requests_query(query.encode(), NOW_S)
    assert isinstance(asked, RequestsQuery), asked
    return await list_requests(redis, "acme", asked)


def ids(answer: RequestList) -> list[str]:
    return [one.id for one in answer.data]


async def found(redis: Redis, request: str, query: str = "") -> RequestShown:
    asked = parse_request_query(query.encode(), NOW_S)
    assert isinstance(asked, RequestQuery), asked
    answer = await find_request(redis, "acme", request, asked, now_s=NOW_S)
    assert isinstance(answer, RequestShown), answer
    return answer


async def missing(redis: Redis, request: str, query: str = "") -> str:
    asked = parse_request_query(query.encode(), NOW_S)
    assert isinstance(asked, RequestQuery), asked
    answer = await find_request(redis, "acme", request, asked, now_s=NOW_S)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (404, "request_not_found")
    return answer.message


def own_id(at_ms: int, number: int = 0) -> str:
    """An id as the gateway makes them."""
    return f"{at_ms << 80 | 7 << 76 | 2 << 62 | number:032x}"


async def test_newest_first_page_by_page(redis: Redis) -> None:
    """A cursor goes on where the page ended, whatever was booked meanwhile; the last page has none."""
    for number in range(7):
        await book(redis, T0_MS + number // 2, f"r{number}", number)
    first = await listed(redis, "limit=3")
    assert (ids(first), first.has_more) == (["r6", "r5", "r4"], True)
    await book(redis, T0_MS + 50, "later")
    second = await listed(redis, f"limit=3&page={first.next_page}")
    assert ids(second) == ["r3", "r2", "r1"]
    third = await listed(redis, f"limit=3&page={second.next_page}")
    assert (ids(third), third.has_more, third.next_page) == (["r0"], False, None)


async def test_the_time_is_exact_and_the_end_exclusive(redis: Redis) -> None:
    """To the second, by when events were booked."""
    for number, at_ms in enumerate((T0_MS - 1, T0_MS, T0_MS + 999, T0_MS + 1000)):
        await book(redis, at_ms, f"r{number}")
    assert ids(await listed(redis, f"start={T0_S}&end={T0_S + 1}")) == ["r2", "r1"]
    assert ids(await listed(redis, f"start={T0_S + 1}")) == ["r3"]


async def test_only_what_was_asked_for(redis: Redis) -> None:
    """Model, key, endpoint, status and user, together."""
    await book(redis, T0_MS, "r0", 0, user="ann")
    await book(redis, T0_MS, "r1", 1, user="ann", status="refused", code="rate_limit_exceeded")
    await book(redis, T0_MS, "r2", 2, model="big", key="web")
    assert ids(await listed(redis, "user=ann")) == ["r1", "r0"]
    assert ids(await listed(redis, "user=ann&status=ok")) == ["r0"]
    assert ids(await listed(redis, "model=big&key=web&endpoint=chat")) == ["r2"]
    assert ids(await listed(redis, "model=big&key=ci")) == []


async def test_a_rare_event_is_found_over_several_pages(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer looks at so many events and no more; its cursor goes on from there."""
    monkeypatch.setattr(room, "SCANNED_EVENTS", 300)
    await book(redis, T0_MS, "needle", user="ann")
    for number in range(1, 800):
        await book(redis, T0_MS, "hay", number)
    query, pages = "user=ann", []
    while not pages or pages[-1].has_more:
        pages.append(await listed(redis, query))
        query = f"user=ann&page={pages[-1].next_page}"
    assert [ids(page) for page in pages] == [[], [], ["needle"]]


async def test_one_event_with_everything_on_it(redis: Redis) -> None:
    """As a tenant needs it to dispute it: counts, cost, times, and the corrections that came later."""
    request = own_id(T0_MS)
    entry = await book(
        redis, T0_MS + 900, request, cost_nanousd=5_000, price_epoch="p1", user="ann", tags={"team": "a"}, replica="r:1"
    )
    await book(redis, T0_MS + 901, "other")
    await book(redis, T0_MS + 902, "c1", status="correction", corrects="someone-elses", cost_nanousd=-1)
    await book(redis, T0_MS + 903, "c2", status="correction", corrects=request, cost_nanousd=-2_000, reason="late")
    shown = msgspec.to_builtins(await found(redis, request))
    assert shown == {
        "object": "usage.request",
        "entry": entry,
        "id": request,
        "key": "ci",
        "model": "tiny",
        "endpoint": "chat",
        "status": "ok",
        "user": "ann",
        "tags": {"team": "a"},
        "replica": "r:1",
        "input_tokens": 0,
        "input_cached_tokens": 0,
        "output_tokens": 0,
        "cost_usd": "0.000005",
        "price_epoch": "p1",
        "arrived_ms": T0_MS + 900,
        "ended_ms": T0_MS + 900,
        "corrections": [
            {
                "object": "usage.request",
                "entry": f"{T0_MS + 903}-0",
                "id": "c2",
                "key": "ci",
                "model": "tiny",
                "endpoint": "chat",
                "status": "correction",
                "input_tokens": 0,
                "input_cached_tokens": 0,
                "output_tokens": 0,
                "cost_usd": "-0.000002",
                "arrived_ms": T0_MS + 903,
                "ended_ms": T0_MS + 903,
                "corrects": request,
                "reason": "late",
            }
        ],
    }


@pytest.mark.parametrize("written", [str, lambda text: str(uuid.UUID(text))])
async def test_an_id_that_tells_its_time_is_looked_for_there(redis: Redis, written: Any) -> None:
    """However long ago: a month of events is not read for it. Clocks may differ by a minute."""
    long_ago_ms = T0_MS - 30 * 86_400_000
    request = written(own_id(long_ago_ms))
    await book(redis, long_ago_ms - 59_000, request)
    for number in range(300):
        await book(redis, T0_MS, "hay", number)
    assert (await found(redis, request)).ended_ms == long_ago_ms - 59_000
    assert "was booked from" in await missing(redis, written(own_id(long_ago_ms, 1)))


async def test_an_id_of_the_clients_own_is_looked_for_in_the_last_day(redis: Redis) -> None:
    """The newest of those with it; for an older one the message says how to ask."""
    await book(redis, T0_MS - 2 * 86_400_000, "old")
    await book(redis, T0_MS, "mine", 0, user="first")
    await book(redis, T0_MS, "mine", 1, user="second")
    assert (await found(redis, "mine")).user == "second"
    assert (await found(redis, "mine", f"end={T0_S + 1}&start={T0_S}")).user == "second"
    assert "send start and end around it" in await missing(redis, "old")
    assert (await found(redis, "old", f"start={T0_S - 3 * 86_400}")).id == "old"


@pytest.mark.parametrize(("request_id", "advice"), [("mine", "send end="), (own_id(T0_MS), "send start=")])
async def test_a_long_search_says_where_it_stopped(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, request_id: str, advice: str
) -> None:
    """And how to go on from there."""
    monkeypatch.setattr(room, "SEARCHED_EVENTS", 250)
    for number in range(400):
        await book(redis, T0_MS + number, "hay")
    assert f"To look further, {advice}" in await missing(redis, request_id)


async def test_corrections_are_looked_for_so_far(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there was more to look at, the answer says until when it did."""
    monkeypatch.setattr(room, "CORRECTED_EVENTS", 100)
    await book(redis, T0_MS, "mine")
    for number in range(1, 150):
        await book(redis, T0_MS + number, "hay")
    assert (await found(redis, "mine")).corrections_until_ms == T0_MS + 100


async def test_an_id_inside_another_text_is_not_it(redis: Redis) -> None:
    """A user may be called like the JSON of somebody's id."""
    await book(redis, T0_MS, "other", user='","id":"mine"')
    await missing(redis, "mine")


async def test_events_of_older_gateways_are_read(redis: Redis) -> None:
    """Version 1 said less."""
    old = {"id": "r1", "tenant": "acme", "key": "ci", "model": "tiny", "endpoint": "", "status": "ok"}
    old |= {"arrived_ms": T0_MS, "ended_ms": T0_MS, "usage": {"input_tokens": 3}}  # type: ignore[dict-item]
    await redis.xadd(TenantKeys("acme").events, {"event": msgspec.json.encode(old)}, id=f"{T0_MS}-0")
    [shown] = (await listed(redis)).data
    assert (shown.id, shown.input_tokens) == ("r1", 3)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=1001", "limit"),
        ("page=7", "page"),
        ("page=page_x", "page"),
        ("status=fine", "status"),
        ("team=a", "team"),
    ],
)
def test_a_bad_query_is_told_what_to_send(query: str, param: str) -> None:
    """400 with the parameter."""
    refused = parse_requests_query(query.encode(), NOW_S)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.param) == (400, param)
