"""Redis goes away in every way it can; nothing is lost and nothing booked twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.admission import Ask, Grant
from gateway.metering import Ledger, LedgerSettings
from gateway.store import StoreUnavailable, client, embedded

from .ledgers import ManualClock, booked, event, leases, money, stream, tenant
from .proxy import Wire, wire

QUICK = LedgerSettings(call_timeout_s=0.15)


@pytest.fixture
async def proxied(redis: Redis, valkey_url: str, tmp_path: Path) -> AsyncIterator[tuple[Ledger, Wire]]:
    """A ledger whose connection to Valkey a test can disturb."""
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(far, tmp_path / "journal", settings=QUICK, now_ms=ManualClock()) as ledger,
    ):
        yield ledger, between


async def admitted(ledger: Ledger, request: str = "r") -> Grant:
    decision = await ledger.reserve(tenant(budget_usd="1"), Ask(request, 0, 100))
    assert isinstance(decision, Grant)
    return decision


async def test_a_booking_whose_answer_was_lost_is_not_booked_again(proxied: tuple[Ledger, Wire], redis: Redis) -> None:
    """Valkey applied it, the connection died before saying so: the resend changes nothing."""
    ledger, between = proxied
    grant = await admitted(ledger)
    between.lose_replies = True
    done = event("r", output_tokens=3, cost_nanousd=7)
    await ledger.settle(done, grant.lease)
    async with asyncio.timeout(5):
        while await money(redis) != (7, 0):
            await asyncio.sleep(0.005)
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
    """Reserving fails after `call_timeout_s`; settling needs the disk only, and Redis has it when it is back."""
    ledger, between = proxied
    grants = [await admitted(ledger, f"r{i}") for i in range(50)]
    between.stall = True
    started = time.monotonic()
    for i, grant in enumerate(grants):
        await ledger.settle(event(f"r{i}", cost_nanousd=1), grant.lease)
    assert time.monotonic() - started < 2
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(tenant(), Ask("r", 0, 0))
    assert ledger.statistics().store_failures > 0
    assert ledger.statistics().unbooked == 50
    between.stall = False
    await booked(ledger)
    assert await money(redis) == (50, 0)
    assert ledger.statistics().store_failures == 0


async def test_a_redis_that_is_loading_refuses_soon(proxied: tuple[Ledger, Wire]) -> None:
    """It takes connections and cannot say what it has: requests are refused until it can, and then served."""
    ledger, between = proxied
    grant = await admitted(ledger)
    await ledger.settle(event("r", cost_nanousd=1), grant.lease)
    await booked(ledger)
    between.refusal = b"-LOADING Valkey is loading the dataset in memory\r\n"
    between.break_off()
    for _ in range(3):
        async with asyncio.timeout(1):
            with pytest.raises(StoreUnavailable):
                await ledger.reserve(tenant(), Ask("r", 0, 0))
    between.refusal = b""
    await admitted(ledger)


@pytest.mark.parametrize(
    "refusal",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n",
        b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        b"-MISCONF Errors writing to the AOF file: No space left on device\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
    ],
    ids=lambda refusal: refusal[1:9].split()[0].decode(),
)
async def test_a_redis_that_will_not_is_one_that_is_away(
    proxied: tuple[Ledger, Wire], redis: Redis, refusal: bytes
) -> None:
    """Whatever its reason: requests are refused, what ended is on disk, and arrives once when it will again."""
    ledger, between = proxied
    grant = await admitted(ledger)
    between.refusal = refusal
    await ledger.settle(event("r", cost_nanousd=7), grant.lease)
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(tenant(), Ask("r", 0, 0))
    assert await stream(redis) == []
    between.refusal = b""
    await booked(ledger)
    assert await money(redis) == (7, 0)
    assert len(await stream(redis)) == 1


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


async def test_more_asks_than_may_wait_are_refused_at_once(redis: Redis, tmp_path: Path) -> None:
    """The queue in front of Redis is bounded."""
    async with Ledger(redis, tmp_path, settings=LedgerSettings(waiting_max=10), now_ms=ManualClock()) as ledger:
        decisions = await asyncio.gather(
            *(ledger.reserve(tenant(), Ask("r", 0, 0)) for _ in range(12)), return_exceptions=True
        )
        assert [isinstance(decision, Grant) for decision in decisions] == [True] * 10 + [False] * 2
        assert [isinstance(decision, StoreUnavailable) for decision in decisions[10:]] == [True] * 2


async def test_what_was_not_shipped_is_left_to_the_next_worker(
    proxied: tuple[Ledger, Wire], redis: Redis, tmp_path: Path
) -> None:
    """A gateway that stops while Redis is away leaves its journal; whoever starts next books it, once."""
    ledger, between = proxied
    grant = await admitted(ledger)
    between.cut = between.lose_replies = True
    done = event("left", cost_nanousd=7)
    await ledger.settle(done, grant.lease)
    assert await ledger.close(0.2) == 1
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(tenant(), Ask("r", 0, 0))
    async with Ledger(redis, tmp_path / "journal", now_ms=ManualClock()) as successor:
        await booked(successor)
    assert await money(redis) == (7, 0)
    assert await stream(redis) == [done]


async def test_a_long_outage_is_bounded_by_the_disk(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """More events than memory is meant to hold are read from the journal again, in order, when Redis is back."""
    events = [event(f"r{i}", cost_nanousd=1) for i in range(5000)]
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(far, tmp_path / "journal", settings=QUICK, now_ms=ManualClock()) as ledger,
    ):
        await admitted(ledger)
        between.cut = between.lose_replies = True
        for first in range(0, 5000, 500):
            await asyncio.gather(*(ledger.record(done) for done in events[first : first + 500]))
        assert ledger.statistics().unbooked == 5000
        between.cut = between.lose_replies = False
        await booked(ledger)
    assert await stream(redis) == events


async def test_stopping_books_what_is_left(redis: Redis, tmp_path: Path) -> None:
    """Leaving the block waits for settlements nobody waited for."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        grant = await admitted(ledger)
        settling = asyncio.ensure_future(ledger.settle(event("r", cost_nanousd=7), grant.lease))
        await asyncio.sleep(0)
        settling.cancel()
    assert await money(redis) == (7, 0)


async def test_a_flushed_redis_is_rebuilt_from_the_journal(redis: Redis, tmp_path: Path) -> None:
    """FLUSHALL takes everything; what the journal keeps is sent again, and each event is there once."""
    events = [event(f"r{i}", output_tokens=2, cost_nanousd=5) for i in range(700)]
    settings = LedgerSettings(lease_renew_s=0.05)
    async with Ledger(redis, tmp_path, settings=settings, now_ms=ManualClock()) as ledger:
        await asyncio.gather(*(ledger.record(done) for done in events))
        await booked(ledger)
        await redis.flushall()
        async with asyncio.timeout(10):
            while ledger.statistics().replayed < 700 or ledger.statistics().unbooked:
                await asyncio.sleep(0.005)
        assert await stream(redis) == events


async def test_nothing_is_lost_when_valkey_is_killed_and_comes_back(tmp_path: Path) -> None:
    """A killed Valkey reads its append-only file; what was settled meanwhile is booked when it is back."""
    clock = ManualClock()
    events = [event(f"r{i}", output_tokens=2, cost_nanousd=5) for i in range(20)]
    with embedded(tmp_path) as url:
        redis = client(url)
        ledger = await Ledger(redis, tmp_path / "journal", settings=QUICK, now_ms=clock).__aenter__()
        grants = [await admitted(ledger, f"r{i}") for i in range(20)]
        for done, grant in zip(events[:10], grants[:10], strict=True):
            await ledger.settle(done, grant.lease)
        await booked(ledger)
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


async def test_a_redis_that_comes_back_without_its_last_writes_gets_them_again(tmp_path: Path) -> None:
    """An older append-only file is put back: the events after it are sent again, those before it are not."""
    clock = ManualClock()
    data, older = tmp_path / "data", tmp_path / "older"
    events = [event(f"r{i}", output_tokens=2, cost_nanousd=5) for i in range(40)]
    with embedded(data) as url:
        redis = client(url)
        ledger = await Ledger(redis, tmp_path / "journal", settings=QUICK, now_ms=clock).__aenter__()
        for done in events[:25]:
            await ledger.record(done)
        await booked(ledger)
        await redis.execute_command("WAITAOF", 1, 0, 5000)
        shutil.copytree(data / "appendonlydir", older)
        grant = await admitted(ledger, "r25")
        await ledger.settle(events[25], grant.lease)
        for done in events[26:]:
            await ledger.record(done)
        await booked(ledger)
    shutil.rmtree(data / "appendonlydir")
    shutil.copytree(older, data / "appendonlydir")
    with embedded(data):
        ledger.renew()
        async with asyncio.timeout(10):
            while ledger.statistics().replayed < 15 or ledger.statistics().unbooked:
                await asyncio.sleep(0.005)
        assert await stream(redis) == events
        assert await money(redis) == (5, 0)
        assert await leases(redis) == 0
        await ledger.close()
        await redis.aclose()


DEGRADES = LedgerSettings(call_timeout_s=0.15, on_store_failure="degrade", degraded_share=0.1)


async def test_a_worker_admits_its_share_while_redis_is_away_and_not_one_more(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    """600 requests a minute, 2 used, share 0.1: 59 of them run; then 503. All are booked once when Redis is back, and
    their tokens are taken from the limit then."""
    acme = tenant(requests=600, tokens=60_000)
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(
            far, tmp_path / "journal", settings=DEGRADES, limits_of=lambda _: acme.limits, now_ms=ManualClock()
        ) as ledger,
    ):
        for request in ("before-1", "before-2"):
            grant = await ledger.reserve(acme, Ask(request, 10, 0))
            assert isinstance(grant, Grant)
            await ledger.settle(event(request, output_tokens=10), grant.lease)
        await booked(ledger)
        between.refusal = b"-LOADING Valkey is loading the dataset in memory\r\n"
        admitted_now = []
        for i in range(59):
            grant = await ledger.reserve(acme, Ask(f"r{i}", 10, 0))
            assert isinstance(grant, Grant)
            admitted_now.append(grant)
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(acme, Ask("one too many", 10, 0))
        for i, grant in enumerate(admitted_now):
            await ledger.settle(event(f"r{i}", output_tokens=20), grant.lease)
        between.refusal = b""
        await booked(ledger)
        assert sorted(one.id for one in await stream(redis)) == sorted(
            ["before-1", "before-2", *(f"r{i}" for i in range(59))]
        )
        decision = await ledger.reserve(acme, Ask("after", 0, 0))
        assert isinstance(decision, Grant)
        assert decision.standing.tokens_remaining == 60_000 - 2 * 10 - 59 * 20
        assert await leases(redis) == 1


async def test_a_budget_is_never_spent_blind(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """Also where the policy is to degrade."""
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(far, tmp_path / "journal", settings=DEGRADES, now_ms=ManualClock()) as ledger,
    ):
        await admitted(ledger)
        between.refusal = b"-LOADING Valkey is loading the dataset in memory\r\n"
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(tenant(budget_usd="1"), Ask("r", 0, 100))


async def test_nobody_hangs_on_a_silent_redis_while_the_share_lasts(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    """The first request finds out within `call_timeout_s`; those after it wait for nothing."""
    acme = tenant(requests=6000)
    patient = LedgerSettings(call_timeout_s=0.5, on_store_failure="degrade", degraded_share=0.1)
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as far,
        Ledger(far, tmp_path / "journal", settings=patient, now_ms=ManualClock()) as ledger,
    ):
        await ledger.reserve(acme, Ask("before", 0, 0))
        between.stall = True
        assert isinstance(await ledger.reserve(acme, Ask("first", 0, 0)), Grant)
        before_s = time.monotonic()
        for i in range(100):
            assert isinstance(await ledger.reserve(acme, Ask(f"r{i}", 0, 0)), Grant)
        assert time.monotonic() - before_s < 0.5
        between.stall = False


async def test_a_request_is_booked_whatever_its_client_calls_it(redis: Redis, tmp_path: Path) -> None:
    """A request id is the client's own: none of them is taken for a lease of another kind."""
    async with Ledger(redis, tmp_path / "journal", now_ms=ManualClock()) as ledger:
        grant = await admitted(ledger, "local")
        done = event("local", output_tokens=3, cost_nanousd=7)
        await ledger.settle(done, grant.lease)
        await booked(ledger)
    assert await stream(redis) == [done]
    assert await money(redis) == (7, 0)
    assert await leases(redis) == 0
