"""The usage report, read back from what the ledger booked on a real Valkey."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.admission import Ask, Grant
from gateway.metering import Dimensions, Ledger, sum_field
from gateway.policy import LimitsSpec, PriceSpec
from gateway.pricing import Price
from gateway.store import StoreUnavailable, TenantKeys, client
from gateway.usage import PriceShown, Report, UsageQuery, report
from gateway.wire import Usage
from tests.integration.store.ledgers import ManualClock, PatientLedger, event, tenant

HOUR_S = 1_789_999_200  # 2026-09-21T14:00:00Z
NOW_S = HOUR_S + 800


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock(NOW_S * 1000)


@pytest.fixture
async def ledger(redis: Redis, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with PatientLedger(redis, tmp_path, now_ms=clock) as ledger:
        yield ledger


async def asked(
    redis: Redis,
    *,
    start_s: int = HOUR_S - 3600,
    end_s: int = NOW_S,
    now_s: int = NOW_S,
    limits: LimitsSpec | None = None,
    prices: Mapping[str, PriceShown] | None = None,
    fields_max: int = 50_000,
    **query: Any,
) -> Report:
    query = {"from_s": start_s} | query
    asked = UsageQuery(start_s=start_s, end_s=end_s, **query)
    return await report(redis, "acme", asked, now_s=now_s, limits=limits, prices=prices, fields_max=fields_max)


async def test_hours_by_model_and_key(ledger: Ledger, redis: Redis) -> None:
    """Every bucket is there, each group in it has its own sums, and the totals are theirs."""
    earlier, now = (HOUR_S - 1) * 1000, HOUR_S * 1000
    await ledger.record(
        event("r1", input_tokens=100, cached_tokens=60, output_tokens=7, cost_nanousd=1, ended_ms=earlier)
    )
    await ledger.record(event("r2", input_tokens=10, output_tokens=1, cost_nanousd=2, ended_ms=now))
    await ledger.record(event("r3", input_tokens=1, output_tokens=2, cost_nanousd=3, key="web", ended_ms=now))
    await ledger.record(event("r4", status="client_gone", output_tokens=4, model="big", ended_ms=now))
    for code in ("rate_limit_exceeded", "rate_limit_exceeded", "insufficient_quota"):
        await ledger.record(event("r5", status="refused", code=code, ended_ms=now))
    await ledger.record(event("other", of="rival", output_tokens=1000, ended_ms=now))
    answer = await asked(redis, group_by=("model", "key"))
    assert json.loads(msgspec.json.encode(answer)) == {
        "object": "usage",
        "tenant": "acme",
        "start": HOUR_S - 3600,
        "end": NOW_S,
        "bucket": "1h",
        "data": [
            {
                "start": HOUR_S - 3600,
                "end": HOUR_S,
                "results": [
                    {
                        "model": "tiny",
                        "key": "ci",
                        "requests": 1,
                        "refused": {},
                        "input_tokens": 100,
                        "input_cached_tokens": 60,
                        "output_tokens": 7,
                        "cost_usd": "0.000000001",
                    },
                ],
            },
            {
                "start": HOUR_S,
                "end": HOUR_S + 3600,
                "results": [
                    {
                        "model": "big",
                        "key": "ci",
                        "requests": 1,
                        "refused": {},
                        "input_tokens": 0,
                        "input_cached_tokens": 0,
                        "output_tokens": 4,
                        "cost_usd": "0.00",
                    },
                    {
                        "model": "tiny",
                        "key": "ci",
                        "requests": 1,
                        "refused": {"insufficient_quota": 1, "rate_limit_exceeded": 2},
                        "input_tokens": 10,
                        "input_cached_tokens": 0,
                        "output_tokens": 1,
                        "cost_usd": "0.000000002",
                    },
                    {
                        "model": "tiny",
                        "key": "web",
                        "requests": 1,
                        "refused": {},
                        "input_tokens": 1,
                        "input_cached_tokens": 0,
                        "output_tokens": 2,
                        "cost_usd": "0.000000003",
                    },
                ],
            },
        ],
        "has_more": False,
        "next_page": None,
        "totals": {
            "requests": 4,
            "refused": {"insufficient_quota": 1, "rate_limit_exceeded": 2},
            "input_tokens": 111,
            "input_cached_tokens": 60,
            "output_tokens": 14,
            "cost_usd": "0.000000006",
        },
        "limits": {},
        "price": {},
    }


@pytest.mark.parametrize(("bucket", "buckets"), [("1m", 74), ("1h", 2), ("1d", 1)])
async def test_every_bucket_size_has_the_same_totals(ledger: Ledger, redis: Redis, bucket: str, buckets: int) -> None:
    """Minutes, hours and days are the same events in other boxes; empty boxes are there too."""
    for minute in range(0, 70, 7):
        await ledger.record(
            event("r", output_tokens=3, cost_nanousd=10**9, ended_ms=(HOUR_S - 3600 + minute * 60) * 1000)
        )
    answer = await asked(redis, bucket=bucket)
    assert len(answer.data) == buckets
    assert (answer.totals.requests, answer.totals.output_tokens, answer.totals.cost_usd) == (10, 30, "10.00")
    assert sum(result.requests for one in answer.data for result in one.results) == 10


async def test_a_day_of_minutes(ledger: Ledger, redis: Redis) -> None:
    """More buckets than one round trip reads are put together in order."""
    await ledger.record(event("r", output_tokens=5, ended_ms=(NOW_S - 86_000) * 1000))
    answer = await asked(redis, bucket="1m", start_s=NOW_S - 86_400)
    assert len(answer.data) == 1441
    assert [one.start for one in answer.data if one.results] == [(NOW_S - 86_000) // 60 * 60]
    assert answer.totals.output_tokens == 5


async def test_by_everything_an_event_says(ledger: Ledger, redis: Redis) -> None:
    """Endpoint, status, replica, user and any tag; an event that does not say it is in the group without a name."""
    said = {"replica": "10.0.0.7:8000", "user": "ann", "tags": {"team": "search", "app": "chat"}}
    one = msgspec.structs.replace(event("r1", output_tokens=1, ended_ms=HOUR_S * 1000), **said)
    two = msgspec.structs.replace(one, id="r2", status="client_gone", tags={"app": "mail"}, endpoint="/v1/responses")
    for booked in (one, two, event("r3", output_tokens=4, ended_ms=HOUR_S * 1000)):
        await ledger.record(booked)

    async def groups(*by: str) -> list[tuple[object, int]]:
        answer = json.loads(msgspec.json.encode(await asked(redis, group_by=by)))
        results = answer["data"][1]["results"]
        named = [
            {key: one[key] for key in ("endpoint", "status", "replica", "user", "tags") if key in one}
            for one in results
        ]
        return list(zip(named, (one["output_tokens"] for one in results), strict=True))

    assert await groups("endpoint") == [({"endpoint": "/v1/responses"}, 1), ({"endpoint": "chat"}, 5)]
    assert await groups("status") == [({"status": "client_gone"}, 1), ({"status": "ok"}, 5)]
    assert await groups("replica") == [({"replica": ""}, 4), ({"replica": "10.0.0.7:8000"}, 2)]
    assert await groups("user", "tag:team") == [
        ({"user": "", "tags": {"team": ""}}, 4),
        ({"user": "ann", "tags": {"team": ""}}, 1),
        ({"user": "ann", "tags": {"team": "search"}}, 1),
    ]
    assert await groups("tag:app", "tag:team") == [
        ({"tags": {"app": "", "team": ""}}, 4),
        ({"tags": {"app": "chat", "team": "search"}}, 1),
        ({"tags": {"app": "mail", "team": ""}}, 1),
    ]


async def test_parts_of_tokens_are_there_when_the_engine_tells_them(ledger: Ledger, redis: Redis) -> None:
    """Written to the cache, reasoning, audio and images, and how many requests had to be estimated; 0 is left out."""
    usage = Usage(
        input_tokens=100,
        input_cache_write_tokens=30,
        input_audio_tokens=5,
        input_image_tokens=6,
        output_tokens=50,
        output_reasoning_tokens=40,
        output_audio_tokens=7,
    )
    await ledger.record(msgspec.structs.replace(event("r1", ended_ms=HOUR_S * 1000), usage=usage, estimated=True))
    assert json.loads(msgspec.json.encode((await asked(redis)).totals)) == {
        "requests": 1,
        "refused": {},
        "input_tokens": 100,
        "input_cached_tokens": 0,
        "input_cache_write_tokens": 30,
        "input_audio_tokens": 5,
        "input_image_tokens": 6,
        "output_tokens": 50,
        "output_reasoning_tokens": 40,
        "output_audio_tokens": 7,
        "estimated": 1,
        "cost_usd": "0.00",
    }


async def test_a_correction_changes_sums_and_counts_no_request(ledger: Ledger, redis: Redis) -> None:
    """What was billed too much goes back in the bucket of the correction."""
    await ledger.record(event("r1", output_tokens=9, cost_nanousd=900, ended_ms=HOUR_S * 1000))
    await ledger.record(event("c1", status="correction", output_tokens=-4, cost_nanousd=-400, ended_ms=HOUR_S * 1000))
    totals = (await asked(redis)).totals
    assert (totals.requests, totals.output_tokens, totals.cost_usd) == (1, 5, "0.0000005")


async def test_pages_are_the_whole(ledger: Ledger, redis: Redis) -> None:
    """`limit` buckets a page; the cursors lead through all of them, once each, and the totals are the page's."""
    for hour in range(7):
        await ledger.record(event("r", output_tokens=1 + hour, ended_ms=(HOUR_S - hour * 3600) * 1000))
    span = {"start_s": HOUR_S - 6 * 3600, "limit": 3}
    pages = [await asked(redis, **span)]
    while pages[-1].has_more:
        cursor = pages[-1].next_page
        assert cursor is not None
        pages.append(await asked(redis, from_s=int(cursor.removeprefix("page_")), **span))
    assert [len(page.data) for page in pages] == [3, 3, 1]
    assert [page.totals.output_tokens for page in pages] == [7 + 6 + 5, 4 + 3 + 2, 1]
    whole = await asked(redis, **span | {"limit": 100})
    assert (whole.data, whole.has_more, whole.next_page) == ([one for page in pages for one in page.data], False, None)


async def test_a_finely_split_time_takes_more_pages(ledger: Ledger, redis: Redis) -> None:
    """An answer reads so many sums and no more, but at least one bucket."""
    for hour in range(3):
        for number in range(10):
            await ledger.record(event("r", output_tokens=1, key=f"k{number}", ended_ms=(HOUR_S - hour * 3600) * 1000))
    span = {"start_s": HOUR_S - 2 * 3600}
    assert len((await asked(redis, fields_max=45, **span)).data) == 2
    page = await asked(redis, fields_max=1, **span)
    assert (len(page.data), page.totals.requests, page.has_more) == (1, 10, True)


async def test_a_bucket_of_many_fields_is_read_in_parts(ledger: Ledger, redis: Redis) -> None:
    """So that Redis serves others meanwhile; nothing is left out or counted twice."""
    name = TenantKeys("acme").usage("1h", HOUR_S)
    fields = {sum_field(Dimensions("tiny", f"k{n}"), "output"): n for n in range(12_000)}
    await redis.hset(name, mapping=fields)
    answer = await asked(redis, group_by=("key",))
    assert answer.totals.output_tokens == sum(range(12_000))
    assert len(answer.data[1].results) == 12_000


async def test_what_is_left_and_when_it_resets(ledger: Ledger, redis: Redis, clock: ManualClock) -> None:
    """The report agrees with the account: buckets refill with time, running requests hold a place and money."""
    acme = tenant(requests=60, tokens=6000, concurrent=3, budget_usd="2")
    first = await ledger.reserve(acme, Ask("r1", 3000, 500_000_000))
    assert isinstance(first, Grant)
    await ledger.reserve(acme, Ask("r2", 1000, 250_000_000))
    await ledger.settle(event("r1", input_tokens=2900, output_tokens=100, cost_nanousd=400_000_000), first.lease)
    clock.advance_s(2)
    answer = await asked(redis, limits=acme.limits, now_s=NOW_S + 2)
    assert msgspec.to_builtins(answer.limits) == {
        "requests_per_minute": {"limit": 60, "remaining": 60, "resets_at": NOW_S + 2},
        "tokens_per_minute": {"limit": 6000, "remaining": 2200, "resets_at": NOW_S + 40},
        "concurrent_requests": {"limit": 3, "remaining": 2, "resets_at": None},
        "budget_usd": {
            "limit_usd": "2.00",
            "period": "month",
            "spent_usd": "0.40",
            "reserved_usd": "0.25",
            "remaining_usd": "1.35",
            "resets_at": 1_790_812_800,
        },
    }
    last = await ledger.reserve(acme, Ask("r3", 0, 0))
    assert last.standing.tokens_remaining == 2200


async def test_a_tenant_never_seen_has_everything_left(redis: Redis) -> None:
    """Before the first request all limits are whole; unlimited ones are not mentioned."""
    limits = LimitsSpec(tokens_per_minute=100, budget_usd=Decimal("0.5"), budget_period="hour")
    answer = await asked(redis, limits=limits)
    assert msgspec.to_builtins(answer.limits) == {
        "tokens_per_minute": {"limit": 100, "remaining": 100, "resets_at": NOW_S},
        "budget_usd": {
            "limit_usd": "0.50",
            "period": "hour",
            "spent_usd": "0.00",
            "reserved_usd": "0.00",
            "remaining_usd": "0.50",
            "resets_at": HOUR_S + 3600,
        },
    }


async def test_prices_are_shown_as_they_are_charged(redis: Redis) -> None:
    """Per model, exact decimals per million tokens, with the epoch that events name."""
    price = Price.of(PriceSpec(output_usd_per_mtok=Decimal("0.35")), epoch="fixed")
    answer = await asked(redis, prices={"tiny": price})
    assert msgspec.to_builtins(answer.price) == {
        "tiny": {
            "input_usd_per_mtok": "0.098",
            "input_cached_usd_per_mtok": "0.035",
            "output_usd_per_mtok": "0.35",
            "epoch": "fixed",
        }
    }


async def test_sums_beyond_32_bits_are_exact(ledger: Ledger, redis: Redis) -> None:
    """Ten billion tokens and ten million dollars come back to the last token and nano-dollar."""
    for _ in range(2):
        await ledger.record(
            event("r", output_tokens=5_000_000_001, cost_nanousd=5_000_000_000_000_001, ended_ms=NOW_S * 1000)
        )
    totals = (await asked(redis)).totals
    assert (totals.output_tokens, totals.cost_usd) == (10_000_000_002, "10000000.000000002")


async def test_redis_away_is_said(tmp_path: object) -> None:
    """Without Redis there is no report, and the error is the store's."""
    async with client(f"unix://{tmp_path}/none.sock") as nobody:
        with pytest.raises(StoreUnavailable):
            await asked(nobody)
