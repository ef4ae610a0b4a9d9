"""Redis goes away in every way it can; nothing is lost and nothing booked twice."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.admission import Ask, Grant
from gateway.metering import Ledger, LedgerSettings
from gateway.store import StoreUnavailable, client, embedded

from .ledgers import ManualClock, event, leases, money, stream, tenant
from .proxy import Wire, wire

QUICK = LedgerSettings(call_timeout_s=0.15, settle_wait_s=0.1)


@pytest.fixture
async def proxied(redis: Redis, valkey_url: str, tmp_path: Path) -> AsyncIterator[tuple[Ledger, Wire]]:
    """A ledger whose connection to Valkey a test can disturb."""
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(far, settings=QUICK, now_ms=ManualClock()) as ledger,
    ):
        yield ledger, between


async def admitted(ledger: Ledger, request: str = "r") -> Grant:
    decision = await ledger.reserve(tenant(budget_usd="1"), Ask(request, 0, 100))
    assert isinstance(decision, Grant)
    return decision


async def booked(ledger: Ledger) -> None:
    async with asyncio.timeout(10):
        while ledger.statistics().unbooked:
            await asyncio.sleep(0.005)


async def test_a_booking_whose_answer_was_lost_is_not_booked_again(proxied: tuple[Ledger, Wire], redis: Redis) -> None:
    """Valkey applied it, the connection died before saying so: the resend changes nothing."""
    ledger, between = proxied
    grant = await admitted(ledger)
    between.lose_replies = True
    done = event("r", output_tokens=3, cost_nanousd=7)
    await ledger.settle(done, grant.lease)
    assert await money(redis) == (7, 0)
    assert ledger.statistics().unbooked == 1
    between.lose_replies = False
    await booked(ledger)
    assert await money(redis) == (7, 0)
    assert await stream(redis) == [done]


async def test_bookings_leave_in_order_and_each_once_over_a_bad_line(
    proxied: tuple[Ledger, Wire], redis: Redis
) -> None:
    """400 settlements over a line that keeps losing answers arrive once each, in order."""
    ledger, between = proxied
    grants = [await admitted(ledger, f"r{i}") for i in range(400)]
    events = [event(f"r{i}", cost_nanousd=1) for i in range(400)]
    settling = []
    for i, (done, grant) in enumerate(zip(events, grants, strict=True)):
        between.lose_replies = i % 40 > 20
        settling.append(asyncio.ensure_future(ledger.settle(done, grant.lease)))
        if i % 7 == 0:
            await asyncio.sleep(0.002)
    between.lose_replies = False
    await asyncio.gather(*settling)
    await booked(ledger)
    assert await stream(redis) == events
    assert await money(redis) == (400, 0)
    assert await leases(redis) == 0


async def test_a_stalled_redis_refuses_soon_and_delays_no_answer(proxied: tuple[Ledger, Wire], redis: Redis) -> None:
    """Reserving fails after `call_timeout_s`; settling returns after `settle_wait_s` and is booked later."""
    ledger, between = proxied
    grant = await admitted(ledger)
    between.stall = True
    started = time.monotonic()
    await ledger.settle(event("r", cost_nanousd=7), grant.lease)
    assert 0.09 < time.monotonic() - started < 0.5
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(tenant(), Ask("r", 0, 0))
    assert ledger.statistics().store_failures > 0
    between.stall = False
    await booked(ledger)
    assert await money(redis) == (7, 0)
    assert ledger.statistics().store_failures == 0


async def test_a_settlement_waits_for_nobody_known_to_be_away(proxied: tuple[Ledger, Wire], redis: Redis) -> None:
    """Once a call has failed, answers end at once and their events queue up."""
    ledger, between = proxied
    grants = [await admitted(ledger, f"r{i}") for i in range(50)]
    between.cut = between.stall = True
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(tenant(), Ask("r", 0, 0))
    started = time.monotonic()
    for i, grant in enumerate(grants):
        await ledger.settle(event(f"r{i}", cost_nanousd=1), grant.lease)
    assert time.monotonic() - started < 0.09
    assert ledger.statistics().unbooked == 50
    between.cut = between.stall = False
    await booked(ledger)
    assert await money(redis) == (50, 0)


async def test_the_first_request_after_an_outage_finds_redis(proxied: tuple[Ledger, Wire]) -> None:
    """New requests do not wait for the retry's pause."""
    ledger, between = proxied
    await admitted(ledger)
    between.cut = between.lose_replies = True
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(tenant(), Ask("r", 0, 0))
    between.cut = between.lose_replies = False
    await admitted(ledger)


async def test_more_asks_than_may_wait_are_refused_at_once(redis: Redis) -> None:
    """The queue in front of Redis is bounded."""
    async with Ledger(redis, settings=LedgerSettings(waiting_max=10), now_ms=ManualClock()) as ledger:
        decisions = await asyncio.gather(
            *(ledger.reserve(tenant(), Ask("r", 0, 0)) for _ in range(12)), return_exceptions=True
        )
        assert [isinstance(decision, Grant) for decision in decisions] == [True] * 10 + [False] * 2
        assert [isinstance(decision, StoreUnavailable) for decision in decisions[10:]] == [True] * 2


async def test_what_cannot_be_booked_at_the_end_is_in_the_log(
    proxied: tuple[Ledger, Wire], caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway that stops while Redis is away writes each event it still has to the log, whole."""
    ledger, between = proxied
    grant = await admitted(ledger)
    between.cut = between.lose_replies = True
    await ledger.settle(event("lost-request", cost_nanousd=7), grant.lease)
    with caplog.at_level(logging.CRITICAL):
        assert await ledger.close(0.2) == 1
    assert '"id":"lost-request"' in caplog.text
    assert ledger.statistics().given_up == 1
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(tenant(), Ask("r", 0, 0))


async def test_more_events_than_memory_is_meant_to_hold_go_to_the_log(
    redis: Redis, valkey_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """During a long outage the oldest `unbooked_max` events wait; later ones are in the log, whole."""
    settings = LedgerSettings(call_timeout_s=0.1, unbooked_max=2)
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(far, settings=settings, now_ms=ManualClock()) as ledger,
    ):
        grants = [await admitted(ledger, f"r{i}") for i in range(3)]
        between.cut = between.lose_replies = True
        with caplog.at_level(logging.CRITICAL):
            for i, grant in enumerate(grants):
                await ledger.settle(event(f"r{i}", cost_nanousd=1), grant.lease)
        assert '"id":"r2"' in caplog.text
        assert (ledger.statistics().unbooked, ledger.statistics().given_up, ledger.statistics().leases) == (2, 1, 2)
        between.cut = between.lose_replies = False
        await booked(ledger)
        assert await money(redis) == (2, 100)


async def test_stopping_books_what_is_left(redis: Redis) -> None:
    """Leaving the block waits for settlements nobody waited for."""
    async with Ledger(redis, now_ms=ManualClock()) as ledger:
        grant = await admitted(ledger)
        settling = asyncio.ensure_future(ledger.settle(event("r", cost_nanousd=7), grant.lease))
        await asyncio.sleep(0)
        settling.cancel()
    assert await money(redis) == (7, 0)


async def test_nothing_is_lost_when_valkey_is_killed_and_comes_back(tmp_path: Path) -> None:
    """A killed Valkey reads its append-only file; what was settled meanwhile is booked when it is back."""
    clock = ManualClock()
    events = [event(f"r{i}", output_tokens=2, cost_nanousd=5) for i in range(20)]
    with embedded(tmp_path) as url:
        redis = client(url)
        ledger = Ledger(redis, settings=QUICK, now_ms=clock)
        grants = [await admitted(ledger, f"r{i}") for i in range(20)]
        for done, grant in zip(events[:10], grants[:10], strict=True):
            await ledger.settle(done, grant.lease)
        os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)
        for done, grant in zip(events[10:], grants[10:], strict=True):
            await ledger.settle(done, grant.lease)
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(tenant(), Ask("r", 0, 0))
        assert ledger.statistics().unbooked == 10
    with embedded(tmp_path) as again:
        assert again == url
        await booked(ledger)
        assert await money(redis) == (100, 0)
        assert await stream(redis) == events
        assert await leases(redis) == 0
        await ledger.close()
        await redis.aclose()
