"""Admission in front of real vLLM: a budget under concurrency, a noisy neighbour, overload, and a knee that settles.

How fast two replicas are on this CPU is measured first, without the gateway, and sets the target: with eight sequences
on each the time between tokens is half of it. A CPU is no GPU: what serves the flood takes time from the engines, so
targets are wide, and what is held is who is served, where the queue is, and that N comes down and stays.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import httpx
import msgspec
import pytest
import redis
import yaml

from gateway.metering import UsageEvent
from gateway.store import TenantKeys, embedded
from gateway.tenants import hash_key, new_key
from loadtest.admission.clients import Story, Visit, play, play_apart
from loadtest.load import Answer, percentile_ms
from loadtest.processes import free_port, mtok, running
from tests.real.conftest import MODEL, Engine

BUDGET_USD = 0.001
PRICE = {"output_usd_per_mtok": 0.35, "input_ratio": 0.28, "cached_ratio": 0.1}
NANOUSD = 1_000_000_000
AT_ONCE = 120

FLOOD_RPS, FLOOD_TOKENS = 30.0, 160
"""Three times what two replicas on two idle cores can do, and more where others use these too."""
SMALL, SMALL_TOKENS = ("s1", "s2", "s3"), 40
SMALL_ATTEMPTS, SMALL_PATIENCE_S = 4, 15.0
FLOOD = "flood"
SETTLES_S, ALONE_S, FLOODED_S = 25.0, 15.0, 35.0
TTFT_MS = 10_000
LEAST_ITL_MS = 40
MEASURED_AT = 8
_KNEE = re.compile(r'^mtok_knee_limit\{quantity="sequences",replica="([^"]*)"\} (\S+)$', re.MULTILINE)


@contextmanager
def gateways(directory: Path, document: dict[str, object], count: int) -> Iterator[tuple[list[int], redis.Redis]]:
    """So many gateways over one Valkey: their ports, and a client of the Valkey."""
    policies = directory / "policies"
    policies.mkdir()
    (policies / "policy.yaml").write_text(yaml.safe_dump(document))
    with ExitStack() as stack:
        valkey_url = stack.enter_context(embedded(directory / "valkey"))
        ports = [free_port() for _ in range(count)]
        for port in ports:
            environment = {"MTOK_DATA_DIR": str(directory / f"data-{port}"), "MTOK_REDIS_URL": valkey_url}
            stack.enter_context(
                running(
                    mtok("serve", "--policies", str(policies), "--port", str(port)),
                    log=directory / f"{port}.log",
                    ready_url=f"http://127.0.0.1:{port}/readyz",
                    environment=environment,
                )
            )
        yield ports, stack.enter_context(redis.Redis.from_url(valkey_url))


def document(engines: Sequence[Engine], keys: dict[str, str], **tenants: dict[str, object]) -> dict[str, object]:
    """The policies of these tenants on these engines."""
    return {
        "models": {MODEL: {"replicas": [{"url": engine.url} for engine in engines], "price": PRICE}},
        "tenants": {
            name: {**policy, "keys": [{"id": name, "sha256": hash_key(keys[name])}]} for name, policy in tenants.items()
        },
    }


async def test_a_budget_is_not_overrun_by_many_at_once(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    """Two gateways, 120 clients at once who come back while there is something left: never a nano-dollar more than the
    budget is spent or reserved, what is billed is what the engines generated, and nearly all of it is used."""
    before = [await asyncio.to_thread(engine.idle_counters) for engine in engines]
    keys = {"money": new_key("money")}
    limits = {"budget_usd": BUDGET_USD, "budget_period": "month"}
    most = 0
    with gateways(tmp_path, document(engines, keys, money={"limits": limits}), 2) as (ports, valkey):
        visits = [
            Visit(
                at_s=0.0,
                who="money",
                key=keys["money"],
                ports=ports[number % 2 :] + ports[: number % 2],
                seed=number,
                words=10,
                max_tokens=40,
                stream=number % 2 == 0,
                attempts=15,
                patience_s=5.0,
            )
            for number in range(AT_ONCE)
        ]
        playing = asyncio.ensure_future(play_apart(visits))
        tenant = TenantKeys("money")
        budgets = tenant.budget("*")
        while not playing.done():
            for name in valkey.scan_iter(match=budgets, count=1000):
                spent, reserved = (int(value or 0) for value in valkey.hmget(name, "spent", "reserved"))
                most = max(most, spent + reserved)
            await asyncio.sleep(0.02)
        stories = await playing
        after = [await asyncio.to_thread(engine.idle_counters) for engine in engines]
        async with asyncio.timeout(10):
            while valkey.zcard(tenant.leases):
                await asyncio.sleep(0.05)
        [name] = valkey.scan_iter(match=budgets, count=1000)
        spent, reserved = (int(value or 0) for value in valkey.hmget(name, "spent", "reserved"))
        entries = valkey.xrange(tenant.events)
    events = [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
    budget = int(BUDGET_USD * NANOUSD)
    served = sum(story.served for story in stories)
    print(f"\n{AT_ONCE} clients at once, {served} served: {spent} nano-dollars of {budget} spent, most held {most}")
    assert reserved == 0
    assert spent == sum(event.cost_nanousd for event in events)
    assert most <= budget
    assert spent >= 0.9 * budget
    assert {story.last.code for story in stories if not story.served} <= {"insufficient_quota", "rate_limit_exceeded"}
    generated = sum(now.generation - then.generation for now, then in zip(after, before, strict=True))
    assert sum(event.usage.output_tokens for event in events) == generated


@dataclass(frozen=True)
class Loaded:
    """What came of the load; times are seconds into the run. `sequences` are each replica's limits and `waiting` what
    waits in an engine, about once a second. The small tenants' answers are by the phase in which they were asked."""

    itl_ms: int
    flood: list[Story]
    small: dict[str, list[Story]]
    sequences: dict[str, list[tuple[float, float]]]
    waiting: list[tuple[float, int]]


FLOODED_FROM_S = SETTLES_S + ALONE_S
ENDS_S = FLOODED_FROM_S + FLOODED_S


@pytest.fixture(scope="module")
def loaded(engines: tuple[Engine, Engine], tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Three small tenants with a client each, who asks one thing after the other; a flood while the knees settle, none,
    and a flood again."""
    return asyncio.run(load(engines, tmp_path_factory.mktemp("admission")))


async def load(engines: Sequence[Engine], directory: Path) -> Loaded:
    itl_ms = max(LEAST_ITL_MS, int(2000 * await measured_itl_s(engines)))
    names = (*SMALL, FLOOD)
    keys = {name: new_key(name) for name in names}
    policy = document(engines, keys, **{name: {"class": "service"} for name in names})
    policy["classes"] = {"service": {"max_wait_s": 4, "slo": {"ttft_p99_ms": TTFT_MS, "itl_p99_ms": itl_ms}}}
    told = Loaded(itl_ms, [], defaultdict(list), defaultdict(list), [])
    with gateways(directory, policy, 1) as ([port], _):
        dice = random.Random(1)
        visits = []
        for from_s, to_s in ((0.0, SETTLES_S), (FLOODED_FROM_S, ENDS_S)):
            at_s = from_s
            while (at_s := at_s + dice.expovariate(FLOOD_RPS)) < to_s:
                visits.append(visit(FLOOD, keys[FLOOD], port, at_s, len(visits), FLOOD_TOKENS))
        began_s = time.perf_counter()
        flooding = asyncio.ensure_future(play_apart(visits))
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(engines, port, told, began_s))
            small = [tasks.create_task(ask_on(name, keys[name], port, told, began_s)) for name in SMALL]
            told.flood.extend(await flooding)
            await asyncio.wait(small)
            watching.cancel()
    return told


def visit(who: str, key: str, port: int, at_s: float, seed: int, tokens: int) -> Visit:
    return Visit(at_s=at_s, who=who, key=key, ports=[port], seed=seed, max_tokens=tokens, exact=True)


async def measured_itl_s(engines: Sequence[Engine]) -> float:
    """The mean time between tokens with `MEASURED_AT` sequences on each replica."""
    ports = [int(engine.url.rpartition(":")[2]) for engine in engines]
    visits = [visit("-", "-", ports[number % 2], 0.0, number, 200) for number in range(2 * MEASURED_AT)]
    return mean(gap for story in await play_apart(visits) for gap in story.last.gaps_s)


async def ask_on(name: str, key: str, port: int, told: Loaded, began_s: float) -> None:
    """One request after the other, half a second between them; who is refused comes back when told to."""
    number = 0
    while (now_s := time.perf_counter() - began_s) < ENDS_S:
        phase = "settling" if now_s < SETTLES_S else "alone" if now_s < FLOODED_FROM_S else "flooded"
        number += 1
        once = visit(name, key, port, 0.0, number, SMALL_TOKENS)
        told.small[phase] += await play([replace(once, attempts=SMALL_ATTEMPTS, patience_s=SMALL_PATIENCE_S)])
        await asyncio.sleep(0.5)


async def watch(engines: Sequence[Engine], port: int, told: Loaded, began_s: float) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        while True:
            page = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
            now_s = time.perf_counter() - began_s
            for replica, limit in _KNEE.findall(page):
                told.sequences[replica].append((now_s, float(limit)))
            for engine in engines:
                told.waiting.append((now_s, (await asyncio.to_thread(engine.counters)).waiting))
            await asyncio.sleep(1)


def ttft_ms(answers: Sequence[Answer], share: float) -> float:
    return percentile_ms([one.first_s for one in answers if one.first_s is not None], share) or 0.0


async def test_a_flood_does_not_take_the_replicas_from_others(loaded: Loaded) -> None:
    """Those who ask for one thing after the other, and come back when told to, get in beside it, and in time."""
    print(f"\ntargets {TTFT_MS} and {loaded.itl_ms} ms; the small tenants:")
    for phase, stories in loaded.small.items():
        served = [one.last for one in stories if one.served]
        at_once = sum(one.served and len(one.answers) == 1 for one in stories)
        print(
            f"  {phase:<10} {len(served)} of {len(stories)} served, {at_once} of them at their first attempt; TTFT p50 "
            f"{ttft_ms(served, 0.5):.0f} ms, p90 {ttft_ms(served, 0.9):.0f} ms"
        )
    flooded = loaded.small["flooded"]
    served = [one.last for one in flooded if one.served]
    flood = [one for one in loaded.flood if one.visit.at_s >= FLOODED_FROM_S]
    assert len(served) >= 0.7 * len(flooded)
    assert len(served) / len(flooded) > 2 * sum(one.served for one in flood) / len(flood)
    assert ttft_ms(served, 0.9) <= TTFT_MS


async def test_overload_is_refused_here_and_does_not_queue_in_the_engines(loaded: Loaded) -> None:
    """Most of the flood is refused, with a time to come back at; what is admitted has its first token in time, and
    engines have next to nothing waiting."""
    flood = [one for one in loaded.flood if one.visit.at_s >= FLOODED_FROM_S]
    served = [one.last for one in flood if one.served]
    refused = [one.last for one in flood if one.last.status == 429]
    waiting = sorted(count for at_s, count in loaded.waiting if FLOODED_FROM_S + 5 <= at_s < ENDS_S)
    tokens_per_s = sum(one.output_tokens for one in served) / FLOODED_S
    print(
        f"\n{len(flood)} offered in {FLOODED_S:g} s: {len(served)} served ({tokens_per_s:.0f} tokens/s), "
        f"{len(refused)} refused; TTFT p50 {ttft_ms(served, 0.5):.0f} ms, p90 {ttft_ms(served, 0.9):.0f} ms; in "
        f"an engine wait: median {waiting[len(waiting) // 2]}, most {waiting[-1]}"
    )
    assert len(refused) > len(flood) / 2
    assert len(served) + len(refused) >= 0.95 * len(flood)
    assert all(one.code == "overloaded" and one.retry_after_s for one in refused)
    assert ttft_ms(served, 0.9) <= TTFT_MS
    assert waiting[len(waiting) // 2] <= 2


async def test_the_knee_settles(loaded: Loaded) -> None:
    """From its start at 64 it comes down to less than engines would run at once, and stays about there."""
    for replica, limits in loaded.sequences.items():
        print(f"\n{replica}: {', '.join(f'{limit:.0f}' for _, limit in limits)}")
    for limits in loaded.sequences.values():
        settled = sorted(limit for at_s, limit in limits if FLOODED_FROM_S + 5 <= at_s < ENDS_S)
        assert settled[len(settled) // 2] < 40
        assert settled[int(0.9 * len(settled))] <= 3 * settled[int(0.1 * len(settled))]
