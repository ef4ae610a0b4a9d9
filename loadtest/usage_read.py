#!/usr/bin/env python3
"""How long reading usage takes when ten million events have been booked, and what they weigh in Redis.

    python loadtest/usage_read.py [--events N] [--days D] [--stream N] [--users N]

Fills an embedded Valkey of its own with the minute, hour and day buckets that this many events of one tenant leave
behind (spread evenly over the days, over 8 keys that use one model of 4 each, 4 replicas and these users), and with a
stream of single events. Then it reads them as the pages do and prints the median and the slowest of the rounds, and the
CPU time of the quietest: this process's and Valkey's, which together are the time on a machine that does nothing else.
The buckets are written as sums, not event by event; each is what the ledger would have left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.errors import Refusal
from gateway.metering import COST, INPUT, OUTPUT, REQUESTS, Dimensions, UsageEvent, sum_field
from gateway.policy import LimitsSpec
from gateway.store import BUCKET_SECONDS, BucketSize, TenantKeys, client, embedded
from gateway.usage import (
    find_request,
    list_requests,
    organization_page,
    parse_organization_query,
    parse_query,
    parse_request_query,
    parse_requests_query,
    report,
)
from gateway.wire import Usage

TENANT = "acme"
KEPT_DAYS: dict[BucketSize, int] = {"1m": 7, "1h": 120, "1d": 3660}
METRICS = (REQUESTS, INPUT, "cached", OUTPUT, COST)
STATUSES = ("ok", "ok", "ok", "ok", "ok", "ok", "client_gone", "upstream_lost")
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")
PIPELINE_FIELDS = 20_000


def some_dimensions(random: random.Random, users: int) -> Dimensions:
    """Of one event."""
    key = random.randrange(8)
    return Dimensions(
        f"model-{key % 4}",
        f"acme-key-{key}",
        ENDPOINTS[key // 4],
        random.choice(STATUSES),
        f"10.0.{key % 4}.{random.randrange(4)}:8000",
        f"user-{random.randrange(users)}" if users else "",
    )


async def fill_buckets(redis: Redis, size: BucketSize, *, events: int, days: int, now_s: int, users: int) -> int:
    """Writes one size's buckets; returns how many fields they have together."""
    seconds = BUCKET_SECONDS[size]
    spread_s = days * 86_400
    first = now_s - min(days, KEPT_DAYS[size]) * 86_400
    each = max(1, events * seconds // spread_s)
    random_ = random.Random(7)  # noqa: S311 - the same traffic every time
    keys = TenantKeys(TENANT)
    fields = waiting = 0
    pipeline = redis.pipeline(transaction=False)
    for start in range(first // seconds * seconds, now_s, seconds):
        # Beyond this many draws of a bucket nearly every combination has been met, and only the sums grow.
        groups = {some_dimensions(random_, users) for _ in range(min(each, 20_000))}
        bucket = {}
        for group in groups:
            n = each // len(groups) + 1
            values = (n, 900 * n, 500 * n, 200 * n, 123_456 * n)
            bucket |= {sum_field(group, metric): value for metric, value in zip(METRICS, values, strict=True)}
        fields += len(bucket)
        pipeline.hset(keys.usage(size, start), mapping=bucket)
        waiting += len(bucket)
        if waiting > PIPELINE_FIELDS:
            await pipeline.execute()
            waiting = 0
    await pipeline.execute()
    return fields


async def fill_stream(redis: Redis, *, events: int, days: int, now_s: int, users: int) -> str:
    """Writes single events, evenly over the days; returns the id of one in the middle."""
    random_ = random.Random(8)  # noqa: S311 - the same traffic every time
    key = TenantKeys(TENANT).events
    step_ms = days * 86_400_000 // max(1, events)
    middle = ""
    pipeline = redis.pipeline(transaction=False)
    for number in range(events):
        at_ms = now_s * 1000 - (events - number) * step_ms
        group = some_dimensions(random_, users)
        request = f"{at_ms << 80 | random_.getrandbits(76) & ~(3 << 62) | 7 << 76 | 2 << 62:032x}"
        event = UsageEvent(
            id=request,
            tenant=TENANT,
            key=group.key,
            model=group.model,
            endpoint=group.endpoint,
            status="ok",
            replica=group.replica,
            user=group.user,
            usage=Usage(input_tokens=900, input_cached_tokens=500, output_tokens=200),
            cost_nanousd=123_456,
            price_epoch="policy:0123456789ab",
            arrived_ms=at_ms - 2000,
            admitted_ms=at_ms - 1999,
            first_token_ms=at_ms - 1900,
            ended_ms=at_ms,
        )
        pipeline.xadd(key, {"event": msgspec.json.encode(event)}, id=f"{at_ms}-{number % 1000}")
        if number == events // 2:
            middle = request
        if len(pipeline) == 500:
            await pipeline.execute()
    await pipeline.execute()
    return middle


def checked(query: Any) -> Any:
    assert not isinstance(query, Refusal), query.message
    return query


def reads(redis: Redis, now_s: int, days: int, request: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What is measured, by what a reader would send."""
    limits = LimitsSpec(requests_per_minute=600, tokens_per_minute=200_000)

    def usage(query: str) -> Callable[[], Awaitable[Any]]:
        asked = checked(parse_query(query.encode(), now_s))
        return lambda: report(redis, TENANT, asked, now_s=now_s, limits=limits, prices=None)

    def organization(kind: Any, query: str) -> Callable[[], Awaitable[Any]]:
        asked = checked(parse_organization_query(kind, query.encode(), now_s, {}))
        return lambda: organization_page(redis, [TENANT], asked)

    def requests(query: str) -> Callable[[], Awaitable[Any]]:
        asked = checked(parse_requests_query(query.encode(), now_s))
        return lambda: list_requests(redis, TENANT, asked)

    day, month = now_s - 86_400, now_s - min(days, 30) * 86_400
    pages = {
        "usage": usage(""),
        "usage?group_by=model,key": usage("group_by=model,key"),
        "usage?group_by=user": usage("group_by=user"),
        "usage?bucket=1m (a day, 1440 buckets)": usage(f"bucket=1m&start={day}"),
        "usage?bucket=1d (a month) by model,key": usage(f"bucket=1d&start={month}&group_by=model,key"),
        "organization/usage/completions, a week": organization("completions", f"start_time={now_s - 6 * 86_400}"),
        "organization/costs, a month, by project": organization(
            "costs", f"start_time={month}&limit=31&group_by=project_id"
        ),
    }
    if request:
        asked = checked(parse_request_query(b"", now_s))
        pages |= {
            "usage/requests?limit=100": requests(""),
            "usage/requests?status=refused": requests("status=refused"),
            "usage/requests/ID, from its time on": lambda: find_request(redis, TENANT, request, asked, now_s=now_s),
        }
    return pages


async def measure(url: str, options: argparse.Namespace) -> None:
    now_s = int(time.time())
    async with client(url) as redis:
        began = time.perf_counter()
        before = (await redis.info("memory"))["used_memory"]
        for size in BUCKET_SECONDS:
            fields = await fill_buckets(
                redis, size, events=options.events, days=options.days, now_s=now_s, users=options.users
            )
            after = (await redis.info("memory"))["used_memory"]
            print(f"{size} buckets: {fields:,} fields, {(after - before) / 2**20:.0f} MiB")
            before = after
        request = await fill_stream(redis, events=options.stream, days=options.days, now_s=now_s, users=options.users)
        after = (await redis.info("memory"))["used_memory"]
        print(f"stream: {options.stream:,} events, {(after - before) / 2**20:.0f} MiB")
        print(f"filled in {time.perf_counter() - began:.0f} s; ms:{'':40}median slowest  cpu valkey's")
        for name, read in reads(redis, now_s, options.days, request).items():
            times, own, valkeys, size = [], [], [], 0
            answer: Any = None
            for _ in range(options.rounds):
                used = await valkey_cpu_ms(redis)
                at, cpu = time.perf_counter(), time.process_time()
                answer = await read()
                size = len(msgspec.json.encode(answer))
                own.append((time.process_time() - cpu) * 1000)
                times.append((time.perf_counter() - at) * 1000)
                valkeys.append(await valkey_cpu_ms(redis) - used)
            more = ", has_more" if getattr(answer, "has_more", False) else ""
            print(
                f"  {name:52}{statistics.median(times):7.1f} {max(times):7.1f} {min(own):5.1f} {min(valkeys):5.1f}"
                f"   {size / 1024:.0f} KiB{more}"
            )


async def valkey_cpu_ms(redis: Redis) -> float:
    """CPU time that the server has used so far."""
    told = await redis.info("cpu")
    return (float(told["used_cpu_user"]) + float(told["used_cpu_sys"])) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--stream", type=int, default=200_000, help="single events in the stream")
    parser.add_argument("--users", type=int, default=0, help="users that the events name")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, embedded(Path(directory)) as url:
        asyncio.run(measure(url, options))


if __name__ == "__main__":
    main()
