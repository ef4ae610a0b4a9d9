#!/usr/bin/env python3
"""What the ledger costs a worker: journal, shipping and settlement; and how long an answer's end waits for its commit.

    make bench                # or: python loadtest/ledger_cost.py [--rate R] [--seconds S]

Requests are reserved first, then settled at a rate, one by one, as answers end. A second run of the same loop, which
makes the events and books none, is taken off. CPU is the whole process's, the journal's thread included; Valkey is on
the other core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.admission import Ask, Grant
from gateway.metering import Ledger, LedgerSettings, UsageEvent
from gateway.policy import TenantSpec
from gateway.store import client, embedded
from gateway.wire import Usage

GOAL_CPU_US = 35
GOAL_COMMANDS = 0.3
GOAL_WAIT_MS = 5.0
TENANTS = 4
TICK_S = 0.002
"""uvloop's timers have whole milliseconds: a shorter sleep would spin."""


def event(number: int, tenant: str, now_ms: int) -> UsageEvent:
    """A finished chat."""
    return UsageEvent(
        id=f"{number:032x}",
        tenant=tenant,
        key=f"{tenant}-ci",
        model="llama-8b",
        endpoint="/v1/chat/completions",
        status="ok",
        replica="10.0.0.1:8000",
        usage=Usage(input_tokens=1500, input_cached_tokens=1024, output_tokens=64),
        cost_nanousd=123_456,
        price_epoch="policy:0123456789ab",
        arrived_ms=now_ms - 900,
        admitted_ms=now_ms - 890,
        first_token_ms=now_ms - 800,
        ended_ms=now_ms,
    )


async def paced(count: int, rate: float, act: Callable[[int], Awaitable[None]]) -> float:
    """Runs `act` `count` times, `rate` a second, each as a task. Returns CPU seconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as a worker does
    tasks: set[asyncio.Task[None]] = set()
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    done = 0
    while done < count:
        due = min(count, int((time.monotonic() - begun_s) * rate) + 1)
        for number in range(done, due):
            task = asyncio.ensure_future(act(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        done = due
        await asyncio.sleep(TICK_S)
    await asyncio.gather(*tasks)
    return time.process_time() - begun_cpu_s


async def end_unbooked(number: int) -> None:
    """What the end of an answer costs without a ledger: its event, and one turn of the loop."""
    event(number, "tenant-0", time.time_ns() // 1_000_000)
    await asyncio.sleep(0)


async def measure(url: str, directory: Path, rate: int, seconds: int) -> str:
    """The figures with their goals, as a table."""
    settings = LedgerSettings(lease_ttl_s=10_000, lease_renew_s=1000)
    count = rate * seconds
    async with client(url) as redis, Ledger(redis, directory, settings=settings) as ledger:
        specs = [TenantSpec(name=f"tenant-{number}") for number in range(TENANTS)]

        async def reserved(many: int) -> list[Grant]:
            asks = (ledger.reserve(specs[n % TENANTS], Ask("r", 1600, 200_000)) for n in range(many))
            grants = [decision for decision in await asyncio.gather(*asks) if isinstance(decision, Grant)]
            assert len(grants) == many, "there are no limits"
            return grants

        slow = await reserved(50)
        waits_ms: list[float] = []

        async def settle_alone(number: int) -> None:
            lease = slow[number].lease
            begun_s = time.monotonic()
            await ledger.settle(event(number, lease.tenant, time.time_ns() // 1_000_000), lease)
            waits_ms.append((time.monotonic() - begun_s) * 1000)

        await paced(len(slow), 10, settle_alone)

        grants: list[Grant] = []
        for _ in range(0, count, 1000):
            grants += await reserved(1000)

        async def settle(number: int) -> None:
            lease = grants[number].lease
            await ledger.settle(event(number, lease.tenant, time.time_ns() // 1_000_000), lease)

        await redis.config_resetstat()
        [journal] = await asyncio.to_thread(lambda: list(directory.glob("*.journal")))
        with closing(sqlite3.connect(journal)) as database:
            rows_before = database.execute("SELECT count(DISTINCT committed_ms) FROM records").fetchone()[0]
            cpu_s = await paced(count, rate, settle)
            assert await ledger.shipped(10)
            commits = database.execute("SELECT count(DISTINCT committed_ms) FROM records").fetchone()[0] - rows_before
        loop_s = await paced(count, rate, end_unbooked)
        stats = await redis.info("commandstats")
        sent = ("cmdstat_evalsha", "cmdstat_incr", "cmdstat_waitaof")
        commands = sum(stats.get(name, {"calls": 0})["calls"] for name in sent)
    cpu_us = (cpu_s - loop_s) / count * 1e6
    per_request = commands / count
    p50, p99 = statistics.median(waits_ms), statistics.quantiles(waits_ms, n=100)[98]
    rows = [
        (f"CPU at {rate}/s, µs a request", f"{cpu_us:.0f}", f"at most {GOAL_CPU_US}", cpu_us <= GOAL_CPU_US),
        ("Redis commands a request", f"{per_request:.2f}", f"at most {GOAL_COMMANDS}", per_request <= GOAL_COMMANDS),
        ("requests a commit", f"{count / max(1, commits):.1f}", "", None),
        ("wait for the commit at 10/s, p50 ms", f"{p50:.2f}", f"below {GOAL_WAIT_MS:g}", p50 < GOAL_WAIT_MS),
        ("wait for the commit at 10/s, p99 ms", f"{p99:.2f}", "", None),
    ]
    verdict = {True: "met", False: "MISSED", None: ""}
    return "\n".join(f"{what:<38}{figure:>8}   {goal:<12} {verdict[met]}" for what, figure, goal, met in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=int, default=1000, help="settlements a second (1000)")
    parser.add_argument("--seconds", type=int, default=10, help="for how long (10)")
    parser.add_argument("--directory", type=Path, help="where the journal is: the disk that is measured")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory(prefix="mtok-ledger-", dir=options.directory) as name,
        contextlib.ExitStack() as stack,
    ):
        os.sched_setaffinity(0, {cores[-1]})
        url = stack.enter_context(embedded(Path(name) / "valkey"))
        os.sched_setaffinity(0, {cores[0]})
        print("Journal, shipping and settlement, one worker, Valkey on the other core")
        print(uvloop.run(measure(url, Path(name) / "journal", options.rate, options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
