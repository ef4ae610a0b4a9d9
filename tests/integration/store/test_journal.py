"""The journal: what is on disk before an answer ends, whatever dies afterwards."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.admission import Ask, Grant
from gateway.metering import JournalUnavailable, Ledger, LedgerSettings, UsageEvent
from gateway.store import StoreUnavailable

from .ledgers import ManualClock, booked, event, leases, money, stream, tenant

RICH = tenant(budget_usd="1")


async def admitted(ledger: Ledger, request: str = "r", nanousd: int = 100) -> Grant:
    decision = await ledger.reserve(RICH, Ask(request, 0, nanousd))
    assert isinstance(decision, Grant)
    return decision


def journal_of(directory: Path) -> Path:
    [path] = directory.glob("*.journal")
    return path


@contextmanager
def disk_that_fails(directory: Path) -> Iterator[None]:
    """Nobody else can write the journal meanwhile, as on a full disk."""
    with closing(sqlite3.connect(journal_of(directory), isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


async def failing(ledger: Ledger) -> None:
    async with asyncio.timeout(10):
        while not ledger.statistics().journal_failure:
            await asyncio.sleep(0.005)


async def recovered(ledger: Ledger) -> None:
    async with asyncio.timeout(10):
        while ledger.statistics().journal_failure:
            await asyncio.sleep(0.005)


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from gateway.admission import Ask
    from gateway.metering import Ledger
    from gateway.store import client
    from tests.integration.store.ledgers import ManualClock, booked, event, tenant

    async def run():
        acme = tenant(budget_usd="1")
        async with client(sys.argv[1]) as redis:
            ledger = await Ledger(redis, Path(sys.argv[2]), now_ms=ManualClock()).__aenter__()
            grants = [await ledger.reserve(acme, Ask(f"r{i}", 0, 100)) for i in range(6)]
            await ledger.settle(event("r0", cost_nanousd=1), grants[0].lease)
            await booked(ledger)
            ledger._coalescer.close()
            used = iter(range(10, 1000, 10))
            for i in (4, 5):
                ledger.watch(grants[i].lease, lambda i=i: event(
                    f"r{i}", status="gateway_lost", output_tokens=next(used), cost_nanousd=7))
            for i in (1, 2, 3):
                ledger.watch(grants[i].lease, lambda i=i: event(f"r{i}", status="gateway_lost", cost_nanousd=9))
            await asyncio.sleep(1.3)
            for i in (1, 2, 3):
                await ledger.settle(event(f"r{i}", cost_nanousd=1), grants[i].lease)
            print("ready", flush=True)
            await asyncio.sleep(60)

    asyncio.run(run())
"""


async def test_a_killed_workers_journal_is_adopted(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """What it had settled is booked once, shipped or not; what was open is billed at its last checkpoint and says so;
    nothing stays reserved."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(KILLED), valkey_url, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    assert await asyncio.wait_for(worker.stdout.readline(), 30) == b"ready\n"
    assert len(await stream(redis)) == 1
    assert (await money(redis))[0] == 1
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as successor:
        await booked(successor)
    events = {one.id: one for one in await stream(redis)}
    assert len(events) == len(await stream(redis))
    assert {request: (one.status, one.cost_nanousd) for request, one in events.items()} == {
        "r0": ("ok", 1),
        "r1": ("ok", 1),
        "r2": ("ok", 1),
        "r3": ("ok", 1),
        "r4": ("gateway_lost", 7),
        "r5": ("gateway_lost", 7),
    }
    assert all(events[request].usage.output_tokens >= 30 for request in ("r4", "r5")), "noted, then checkpointed"
    assert await money(redis) == (18, 0)
    assert await leases(redis) == 0


async def test_a_worker_that_lives_adopts_what_another_left(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """No restart is needed: a gateway that runs beside it looks for journals without a worker."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as living:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(KILLED), valkey_url, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert worker.stdout is not None
        assert await asyncio.wait_for(worker.stdout.readline(), 30) == b"ready\n"
        assert living.statistics().adopted == 0
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        async with asyncio.timeout(10):
            while living.statistics().adopted == 0 or living.statistics().unbooked:
                await asyncio.sleep(0.01)
        assert len(await stream(redis)) == 6


async def test_adopted_journals_rest_once_redis_has_them(redis: Redis, tmp_path: Path) -> None:
    """A worker that dies again and again leaves many: each costs no thread and no open file but its lock, and gives
    Redis back what it loses all the same."""
    async with AsyncExitStack() as stack:
        for number in range(4):
            ledger = await stack.enter_async_context(Ledger(redis, tmp_path, now_ms=ManualClock()))
            await ledger.record(event(f"r{number}"))
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as heir:
        async with asyncio.timeout(10):
            while heir.statistics().adopted < 3 or journals_at_work() > 1:
                await asyncio.sleep(0.02)
        await redis.flushall()
        heir.renew()
        async with asyncio.timeout(10):
            while len(await stream(redis)) < 4:
                await asyncio.sleep(0.02)
        assert {one.id for one in await stream(redis)} == {"r0", "r1", "r2", "r3"}


def journals_at_work() -> int:
    """Threads of this process that write journals."""
    return sum(thread.name.startswith("journal-") for thread in threading.enumerate())


async def test_answers_that_end_together_share_a_commit(redis: Redis, tmp_path: Path) -> None:
    """200 settlements at once are a few commits, and each of them is on disk when it returns."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        await asyncio.gather(*(ledger.record(event(f"r{i}")) for i in range(200)))
        with closing(sqlite3.connect(journal_of(tmp_path))) as database:
            rows = database.execute("SELECT first, last, body FROM records ORDER BY id").fetchall()
        assert len(rows) <= 5
        assert (rows[0][0], rows[-1][1]) == (1, 200)
        assert sum(body.count(b'"id":"r') for _, _, body in rows) == 200


@pytest.fixture
async def refusing(redis: Redis, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(redis, tmp_path, settings=LedgerSettings(commit_wait_s=0.2), now_ms=ManualClock()) as ledger:
        yield ledger


async def test_nothing_is_admitted_while_the_disk_fails(refusing: Ledger, redis: Redis, tmp_path: Path) -> None:
    """By default: a running answer does not end as if it were booked, new requests are refused; when the disk is back
    the event is written and booked, once."""
    grant = await admitted(refusing)
    with disk_that_fails(tmp_path):
        with pytest.raises(JournalUnavailable, match="locked"):
            await refusing.settle(event("r", cost_nanousd=7), grant.lease)
        with pytest.raises(JournalUnavailable):
            await refusing.reserve(RICH, Ask("r2", 0, 0))
        assert await stream(redis) == []
    await recovered(refusing)
    await booked(refusing)
    assert [one.id for one in await stream(redis)] == ["r"]
    assert await money(redis) == (7, 0)
    await admitted(refusing)


async def test_a_policy_may_serve_on_while_the_disk_fails(redis: Redis, tmp_path: Path) -> None:
    """`on_journal_failure: serve`: events go to Redis from memory, and are there once when the disk is back."""
    settings = LedgerSettings(on_journal_failure="serve")
    async with Ledger(redis, tmp_path, settings=settings, now_ms=ManualClock()) as ledger:
        await ledger.record(event("before"))
        with disk_that_fails(tmp_path):
            for i in range(5):
                grant = await admitted(ledger, f"r{i}")
                await ledger.settle(event(f"r{i}", cost_nanousd=7), grant.lease)
            await booked(ledger)
            assert ledger.statistics().journal_failure
        await recovered(ledger)
        await ledger.record(event("after"))
        await booked(ledger)
        assert sorted(one.id for one in await stream(redis)) == ["after", "before", "r0", "r1", "r2", "r3", "r4"]
        assert await money(redis) == (35, 0)


async def test_a_directory_that_cannot_be_used_is_tried_again(redis: Redis, tmp_path: Path) -> None:
    """A gateway starts without its disk, refuses, and serves as soon as the directory is there."""
    directory = tmp_path / "journal"
    directory.write_text("in the way")
    async with Ledger(redis, directory, now_ms=ManualClock()) as ledger:
        with pytest.raises(JournalUnavailable, match="journal"):
            await ledger.reserve(RICH, Ask("r", 0, 0))
        directory.unlink()
        await recovered(ledger)
        grant = await admitted(ledger)
        await ledger.settle(event("r", cost_nanousd=7), grant.lease)
        await booked(ledger)
        assert await money(redis) == (7, 0)


async def test_a_journal_that_cannot_be_read_is_set_aside(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept for a person to look at, loudly, and keeps nobody from serving."""
    (tmp_path / "0123456789ab.journal").write_bytes(b"no database" * 1000)
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        await ledger.record(event("r"))
        await booked(ledger)
    assert (tmp_path / "0123456789ab.corrupt").read_bytes() == b"no database" * 1000
    assert "what it held and Redis lacks is lost" in caplog.text
    assert [one.id for one in await stream(redis)] == ["r"]


async def test_an_older_gateways_journal_is_read(redis: Redis, tmp_path: Path) -> None:
    """An event of version 1 has fewer fields; what is not there has its default."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()):
        pass
    old = (
        b'[{"id":"old","tenant":"acme","key":"ci","model":"tiny","endpoint":"chat","status":"ok","replica":"a:1",'
        b'"code":"","usage":{"input_tokens":3,"input_cached_tokens":0,"output_tokens":4},"estimated":false,'
        b'"cost_nanousd":9,"price_epoch":"p","arrived_ms":1,"admitted_ms":1,"first_token_ms":1,"ended_ms":2},null]'
    )
    with closing(sqlite3.connect(journal_of(tmp_path), isolation_level=None)) as database:
        database.execute("INSERT INTO records VALUES (1, 'acme', 1, 1, 0, ?)", (old,))
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        await booked(ledger)
    [one] = await stream(redis)
    assert (one.id, one.usage.input_tokens, one.usage.output_tokens, one.cost_nanousd) == ("old", 3, 4, 9)


async def test_a_newer_gateways_journal_is_left_alone(redis: Redis, tmp_path: Path) -> None:
    """A rolled-back gateway does not touch what it does not understand."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()):
        newer = journal_of(tmp_path)
    with closing(sqlite3.connect(newer, isolation_level=None)) as database:
        database.execute("PRAGMA user_version = 99")
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        await ledger.record(event("r"))
        await booked(ledger)
    assert newer.exists()
    with closing(sqlite3.connect(newer)) as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (0,)


async def test_rows_leave_when_redis_has_them_and_their_time_is_over(redis: Redis, tmp_path: Path) -> None:
    """Only what Redis has on its own disk, and only after `journal_kept_s`; numbers go on where they were."""
    clock = ManualClock()
    settings = LedgerSettings(journal_kept_s=3600)
    async with Ledger(redis, tmp_path, settings=settings, now_ms=clock) as ledger:
        await ledger.record(event("r1"))
        clock.advance_s(1800)
        await ledger.record(event("r2"))
        await booked(ledger)
        clock.advance_s(2000)
        await ledger.prune()
        with closing(sqlite3.connect(journal_of(tmp_path))) as database:
            async with asyncio.timeout(10):
                while database.execute("SELECT first FROM records").fetchall() != [(2,)]:
                    await asyncio.sleep(0.01)
        clock.advance_s(2000)
        await ledger.prune()
    async with Ledger(redis, tmp_path, settings=settings, now_ms=clock) as ledger:
        await ledger.record(event("r3"))
        await booked(ledger)
        assert [one.id for one in await stream(redis)] == ["r1", "r2", "r3"]
        entries = await redis.xrange("mtok:{acme}:events")
        assert [fields[b"from"].rpartition(b":")[2] for _, fields in entries] == [b"1", b"2", b"3"]


async def test_many_rows_leave_a_few_at_a_time(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that end meanwhile never wait for all of them."""
    monkeypatch.setattr("gateway.metering._journal.PRUNE_ROWS_MAX", 2)
    clock = ManualClock()
    async with Ledger(redis, tmp_path, settings=LedgerSettings(journal_kept_s=3600), now_ms=clock) as ledger:
        for number in range(7):
            await ledger.record(event(f"r{number}", of=f"tenant-{number % 2}"))
        await booked(ledger)
        clock.advance_s(4000)
        await ledger.record(event("young"))
        await booked(ledger)
        await ledger.prune()
        with closing(sqlite3.connect(journal_of(tmp_path))) as database:
            async with asyncio.timeout(10):
                while database.execute("SELECT tenant FROM records").fetchall() != [("acme",)]:
                    await asyncio.sleep(0.01)


async def test_events_carry_their_version(redis: Redis, tmp_path: Path) -> None:
    """A reader can tell what wrote an event."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        await ledger.record(event("r"))
        await booked(ledger)
    [(_, fields)] = await redis.xrange("mtok:{acme}:events")
    assert msgspec.json.decode(fields[b"event"])["v"] == 2
    assert msgspec.json.decode(fields[b"event"], type=UsageEvent).v == 2


async def test_a_stopped_ledger_admits_nothing(redis: Redis, tmp_path: Path) -> None:
    """After the end there is no way in."""
    async with Ledger(redis, tmp_path, now_ms=ManualClock()) as ledger:
        pass
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(RICH, Ask("r", 0, 0))
