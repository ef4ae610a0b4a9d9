"""The audit of a run through two simulated engines: everything they counted is explained, whatever clients did."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from gateway.audit import Audit, audit, recompute
from gateway.fleet import Scraper
from gateway.store import ReplicaKeys, TenantKeys
from tests.integration.gateway.serving import Served, eventually, policies, serve
from tests.integration.gateway.test_exact import FAST, PACED, mixed, simulated

QUIET_MS = 20_000


class Audited:
    """A run with a reading of the counters long before and one long after, as the clocks have it."""

    def __init__(self, served: Served, engines: list[Any], redis: Redis) -> None:
        self.served, self.engines, self.redis = served, engines, redis
        self.shift_ms = -QUIET_MS
        self.scraper = Scraper(served.lifecycle.fleet.replicas, redis, now_ms=self.now_ms)

    def now_ms(self) -> int:
        return self.served.gateway.clock.now_ms() + self.shift_ms

    async def begin(self) -> None:
        """Takes the reading over from the gateway, and reads for the first time."""
        for engine in self.engines:
            keys = ReplicaKeys(engine.name)
            await eventually(lambda key=keys.last: self.redis.exists(key))
            await self.redis.delete(keys.lease, keys.last, *await self.redis.keys(keys.engine(0)[:-1] + "*"))
        await self.scraper.scrape()

    async def end(self) -> Audit:
        """Reads for the last time, once nothing runs, and audits."""
        await eventually(lambda: self.served.lifecycle.idle)
        await eventually(self._engines_idle)
        await eventually(self._told)
        self.shift_ms = QUIET_MS
        await self.scraper.scrape()
        self.shift_ms = 2 * QUIET_MS
        return await self.audit()

    async def audit(self) -> Audit:
        now_ms = self.now_ms()
        return await audit(self.redis, start_s=now_ms // 1000 - 600, end_s=now_ms // 1000, now_ms=now_ms)

    async def _engines_idle(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            texts = [(await http.get(f"{engine.url}/metrics")).text for engine in self.engines]
        return all('vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in text for text in texts)

    async def _told(self) -> bool:
        """Whether the gateway has written how many requests it sent, which it does some seconds late."""
        told = [await self.redis.hvals(ReplicaKeys(engine.name).sent) for engine in self.engines]
        sent = sum(int(worker.split()[0]) for workers in told for worker in workers)
        running = [worker for workers in told for worker in workers if int(worker.split()[2])]
        return not running and sent == sum(r.requests_sent for r in self.served.lifecycle.fleet.replicas)


@asynccontextmanager
async def audited(tmp_path: Path, redis: Redis, url: str, profile: Any) -> AsyncIterator[Audited]:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(simulated(profile)) for _ in range(2)]
        chosen = policies(*engines, limits={"concurrent_requests": 100})
        served = await stack.enter_async_context(serve(chosen, tmp_path / "policies", redis, url))
        run = Audited(served, engines, redis)
        await run.begin()
        yield run


def total(found: Audit, direction: str, kind: str) -> int:
    return sum(getattr(getattr(span, direction), kind) for verdict in found.replicas.values() for span in verdict.spans)


async def test_every_token_of_a_run_is_explained(tmp_path: Path, redis: Redis, valkey_url: str) -> None:
    """80 finished requests of every kind: all is billed, to the token. Then a request goes to a replica directly: it is
    not ours. Then an event is lost: unexplained."""
    async with audited(tmp_path, redis, valkey_url, FAST) as run:
        await mixed(run.served, random.Random(7), hang_up=0)
        found = await run.end()
        assert not found.unexplained, found
        for direction in ("input", "output"):
            assert total(found, direction, "engine") == total(found, direction, "billed") > 0
            assert total(found, direction, "in_flight") == 0

        async with httpx.AsyncClient(trust_env=False) as http:
            body = {"model": "tiny", "prompt": "ours it is not", "max_tokens": 9, "ignore_eos": True}
            answer = await http.post(f"{run.engines[0].url}/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
        run.shift_ms = 3 * QUIET_MS
        await run.scraper.scrape()
        run.shift_ms = 4 * QUIET_MS
        found = await run.audit()
        assert not found.unexplained, found
        assert total(found, "output", "not_ours") == 9
        assert total(found, "input", "not_ours") == answer.json()["usage"]["prompt_tokens"]
        assert sum(span.requests_not_ours for verdict in found.replicas.values() for span in verdict.spans) == 1

        stream = TenantKeys("acme").events
        await redis.xdel(stream, (await redis.xrange(stream, count=1))[0][0])
        found = await run.audit()
        assert found.unexplained
        assert sum(span.requests_lost for verdict in found.replicas.values() for span in verdict.spans) == 1


async def test_what_hang_ups_cost_is_explained(tmp_path: Path, redis: Redis, valkey_url: str) -> None:
    """A third of the clients hang up at any moment: what was generated for nobody is undelivered."""
    async with audited(tmp_path, redis, valkey_url, PACED) as run:
        assert await mixed(run.served, random.Random(8), hang_up=0.33) > 10
        found = await run.end()
        assert not found.unexplained, found
        beyond = total(found, "output", "engine") - total(found, "output", "billed")
        assert beyond == total(found, "output", "undelivered") > 0


async def test_every_bill_is_computed_again(tmp_path: Path, redis: Redis, valkey_url: str) -> None:
    """Costs from usage and the price book, sums and budgets from the events: all agree to the nano-dollar, and one
    nano-dollar or token that is changed anywhere is named."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(simulated(FAST)) for _ in range(2)]
        chosen = policies(*engines, limits={"concurrent_requests": 100, "budget_usd": 1000})
        served = await stack.enter_async_context(serve(chosen, tmp_path / "policies", redis, valkey_url))
        await mixed(served, random.Random(9), hang_up=0)
        await served.events(at_least=80)
        await eventually(lambda: redis.exists("mtok:prices"))
    now_s = served.gateway.clock.now_ms() // 1000
    end_s = now_s // 86_400 * 86_400 + 86_400
    keys = TenantKeys("acme")

    async def differences() -> list[str]:
        found = await recompute(redis, start_s=end_s - 2 * 86_400, end_s=end_s, now_s=now_s)
        assert found.events == 80
        assert found.budgets == 1
        assert found.buckets >= 3
        assert found.differing == len(found.differences)
        return [one.where for one in found.differences]

    assert await differences() == []

    day = keys.usage("1d", end_s - 86_400)
    field = next(name for name in await redis.hkeys(day) if name.startswith(b"cost_nanousd"))
    await redis.hincrby(day, field, 1)
    (where,) = await differences()
    assert where.startswith(f"1d {end_s - 86_400} cost_nanousd tiny acme")
    await redis.hincrby(day, field, -1)

    (budget,) = await redis.keys(keys.budget_prefix + "*")
    await redis.hincrby(budget, "spent", -1)
    assert await differences() == ["budgets"]
    await redis.hincrby(budget, "spent", 1)

    (name,) = await redis.hkeys("mtok:prices")
    await redis.hset("mtok:prices", name, b'{"output":"1","input":"0.5","cached":"0.2"}')
    changed = await differences()
    assert set(changed) <= {event["id"] for event in await served.events()}
    assert len(changed) == sum(bool(event["usage"].get("input_cached_tokens")) for event in await served.events()) > 0
    await redis.hdel("mtok:prices", name)
    assert len(await differences()) == 80
