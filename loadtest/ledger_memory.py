"""What the ledger costs in Redis' memory: books events through the real ledger into a Valkey of its own and reads back
what each kind of key takes.

    .venv/bin/python loadtest/ledger_memory.py --events 200000 --models 10 --keys 10 --replicas 4 --days 3
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from redis.asyncio import Redis

from gateway.metering import Ledger, UsageEvent
from gateway.store import client, embedded
from gateway.wire import Usage

AT_ONCE = 1024
EVENTS_PER_TENANT = 50_000


def event(chance: random.Random, options: argparse.Namespace, number: int, now_ms: int) -> UsageEvent:
    """A chat request as it usually is."""
    ended_ms = now_ms - int(chance.random() * options.days * 86_400_000)
    cut = chance.random() < 0.03
    prompt = int(chance.lognormvariate(7, 1))
    return UsageEvent(
        id=f"{chance.getrandbits(128):032x}",
        tenant=f"tenant-{number // EVENTS_PER_TENANT}",
        key=f"key-{chance.randrange(options.keys)}",
        model=f"vendor/model-{chance.randrange(options.models)}",
        endpoint="/v1/chat/completions",
        status="client_gone" if cut else "ok",
        replica=f"http://10.0.0.{chance.randrange(options.replicas)}:8000",
        usage=Usage(
            input_tokens=prompt, input_cached_tokens=prompt // 2, output_tokens=int(chance.lognormvariate(5, 1))
        ),
        cost_nanousd=chance.randrange(10_000, 900_000),
        price_epoch="policy:0123456789ab",
        arrived_ms=ended_ms - 4000,
        admitted_ms=ended_ms - 3999,
        first_token_ms=ended_ms - 3800,
        ended_ms=ended_ms,
        undelivered_output_max=3 if cut else 0,
    )


async def fill(redis: Redis, directory: Path, options: argparse.Namespace) -> None:
    """Books all of them."""
    chance = random.Random(4)  # noqa: S311 - the same events each time
    now_ms = int(time.time() * 1000)
    async with Ledger(redis, directory) as ledger:
        for first in range(0, options.events, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, options.events))
            await asyncio.gather(*(ledger.record(event(chance, options, number, now_ms)) for number in numbers))
            while ledger.statistics().unbooked > 10 * AT_ONCE:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        while ledger.statistics().unbooked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def taken(redis: Redis) -> tuple[Counter[str], Counter[str]]:
    """Bytes and number of keys of each kind."""
    sizes: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    names = [name async for name in redis.scan_iter(match="mtok:*", count=1000)]
    for first in range(0, len(names), 500):
        some = names[first : first + 500]
        pipeline = redis.pipeline(transaction=False)
        for name in some:
            pipeline.memory_usage(name, samples=0)
        for name, size in zip(some, await pipeline.execute(), strict=True):
            kind = name.decode().partition("}:")[2]
            kind = ":".join(kind.split(":")[:2]) if kind.startswith("usage:") else kind.partition(":")[0]
            sizes[kind] += size or 0
            keys[kind] += 1
    return sizes, keys


async def measure(url: str, directory: Path, options: argparse.Namespace) -> None:
    """Fills, and prints a table."""
    async with client(url) as redis:
        before = (await redis.info("memory"))["used_memory"]
        await fill(redis, directory, options)
        after = (await redis.info("memory"))["used_memory"]
        sizes, keys = await taken(redis)
        tenants = range(-(-options.events // EVENTS_PER_TENANT))
        booked = sum([await redis.xlen(f"mtok:{{tenant-{n}}}:events") for n in tenants])
    print(f"{booked} events, {len(tenants)} tenants, {options.models} models, {options.keys} keys of each,", end=" ")
    print(f"{options.replicas} replicas, {options.days:g} days")
    print(f"used_memory grew by {(after - before) / 1e6:.1f} MB: {(after - before) / booked:.0f} bytes a request")
    for kind, size in sizes.most_common():
        print(f"  {kind:<12} {size / 1e6:9.1f} MB  {size / booked:7.0f} bytes a request  {keys[kind]:7} keys")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--days", type=float, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, embedded(Path(directory)) as url:
        asyncio.run(measure(url, Path(directory) / "journal", options))


if __name__ == "__main__":
    main()
