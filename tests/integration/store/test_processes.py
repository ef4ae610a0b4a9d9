"""Several gateway processes on one Valkey take together what one may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from redis.asyncio import Redis

from .ledgers import leases, money

WORKER = """
import asyncio, sys
from pathlib import Path
from gateway.admission import Ask, Grant
from gateway.metering import Ledger
from gateway.store import client
from tests.integration.store.ledgers import ManualClock, event, tenant

async def main():
    async with client(sys.argv[1]) as redis, Ledger(redis, Path(sys.argv[2]), now_ms=ManualClock()) as ledger:
        acme = tenant(concurrent=40, budget_usd="1")
        print("ready", flush=True)
        sys.stdin.readline()
        spent, spends = 0, True
        while spends:
            decisions = await asyncio.gather(*(ledger.reserve(acme, Ask("r", 0, 10_000_000)) for _ in range(20)))
            grants = [decision for decision in decisions if isinstance(decision, Grant)]
            spends = all(isinstance(decision, Grant) or decision.retry_after_ms is not None for decision in decisions)
            await asyncio.gather(*(ledger.settle(event("r", cost_nanousd=4_000_000), grant.lease) for grant in grants))
            spent += len(grants)
            assert await ledger.shipped(10)
        print(spent, flush=True)

asyncio.run(main())
"""


async def test_processes_never_overrun_a_budget_together(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """Three processes that reserve as fast as they can spend the budget to the last request that fits, and no more."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, valkey_url, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    served = sum(int(worker.communicate()[0]) for worker in workers)
    # 4 mill each; one may start while spent + 10 mill <= 1000 mill, so the last starts at 988 and ends at 992.
    assert served == 248
    assert await money(redis) == (992_000_000, 0)
    assert await leases(redis) == 0
