"""A hosted provider as last resort: used only where the model's own replicas have no room in time, at its own price."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.admission import _knee as knee
from gateway.audit import recompute
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, as_json, dies, recording, running
from tests.integration.gateway.serving import ASKED, CHAT, Served, eventually

HURRIED = {"max_wait_s": 0.2, "slo": {"ttft_p99_ms": 30_000, "itl_p99_ms": 80}}
HOSTED_PRICE = {"output_usd_per_mtok": 10, "input_ratio": 0.2, "cached_ratio": 0.2}


@pytest.fixture
async def hosted() -> AsyncIterator[Engine]:
    """Another provider's address."""
    engine = Engine(script=recording("chat").script())
    async with running(engine):
        yield engine


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", "sk-ours")


async def begin(start: Start, own: Engine, hosted: Engine, **document: Any) -> Served:
    resort = {"name": "hosted", "engine": "openai", "engine_model": "vendor/tiny", "api_key_env": "HOSTED_KEY"}
    pools = [
        {"name": "reserved", "replicas": [{"url": own.url}]},
        {**resort, "price": HOSTED_PRICE, "replicas": [{"url": f"{hosted.url}/openai/v1"}]},
    ]
    return await start(pools=pools, **document)


class Gate:
    """An engine's answers wait until it opens."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def script(self, talk: Conversation, request: Received) -> None:
        await self.open.wait()
        await recording("chat").script()(talk, request)


async def test_it_runs_what_could_not_run_in_time_and_is_billed_at_its_price(
    engine: Engine, hosted: Engine, start: Start, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 1)
    monkeypatch.setattr(knee, "LEAST_SEQUENCES", 1)
    gate = Gate()
    engine.script = gate.script
    served = await begin(
        start, engine, hosted, service=HURRIED, limits={"budget_usd": 1}, tenant={"replica_header": "send"}
    )
    long = asyncio.create_task(served.post())
    await eventually(lambda: len(engine.received) == 1)
    spilt = await served.post()
    assert spilt.status == 200
    assert spilt.headers["x-mtok-replica"] == f"{hosted.name}; pool=hosted"
    gate.open.set()
    assert (await long).headers["x-mtok-replica"] == f"{engine.name}; pool=reserved"
    assert (await served.post()).headers["x-mtok-replica"] == f"{engine.name}; pool=reserved", "only while it must"

    sent = hosted.only
    assert (sent.path, sent.json["model"]) == ("/openai/v1/chat/completions", "vendor/tiny")
    assert sent.headers["authorization"] == "Bearer sk-ours"
    await served.booked()
    events = {event["pool"]: event for event in await served.events(at_least=3)}
    usage = events["hosted"]["usage"]
    assert usage == events["reserved"]["usage"], "the same answer"
    cached = usage["input_cached_tokens"]
    uncached, output = usage["input_tokens"] - cached, usage["output_tokens"]
    assert events["reserved"]["cost_nanousd"] == 500 * uncached + 100 * cached + 1000 * output
    assert events["hosted"]["cost_nanousd"] == 2000 * uncached + 2000 * cached + 10_000 * output
    epoch = events["reserved"]["price_epoch"]
    assert events["hosted"]["price_epoch"] == f"{epoch}/hosted"
    assert spilt.headers["x-mtok-price-epoch"] == f"{epoch}/hosted"
    now_s = served.gateway.clock.now_ms() // 1000
    checked = await recompute(redis, start_s=0, end_s=now_s + 60, now_s=now_s + 60)
    assert (checked.events, checked.differences) == (3, [])


@pytest.mark.parametrize("service", [None, HURRIED], ids=["unbounded", "bounded"])
async def test_it_runs_what_no_replica_can(engine: Engine, hosted: Engine, start: Start, service: Any) -> None:
    """The only replica says that it is full; dies over a request; is gone."""
    served = await begin(start, engine, hosted, service=service)
    for trouble in (as_json({"error": {}}, status=503), dies, None):
        engine.script = trouble
        if trouble is None:
            engine.kill()
        answer = await served.post()
        assert answer.status == 200, answer.body
    assert len(hosted.received) == 3


async def test_when_it_has_no_room_either_the_refusal_is_the_models_own(
    engine: Engine, hosted: Engine, start: Start
) -> None:
    hosted.script = as_json({"error": {"message": "slow down"}}, status=429)
    served = await begin(start, engine, hosted)
    engine.kill()
    answer = await served.post()
    assert (answer.status, answer.json["error"]["code"]) in {(503, "no_healthy_replica"), (502, "upstream_lost")}
    assert len(hosted.received) == 1
    event = await served.event()
    assert event.get("cost_nanousd", 0) == 0
    assert not event["price_epoch"].endswith("hosted")


@pytest.mark.parametrize(("budget_usd", "status"), [(0.0001, 429), (0.0003, 200)])
async def test_a_budget_holds_the_dearest_it_may_come_to(
    engine: Engine, hosted: Engine, start: Start, budget_usd: float, status: int
) -> None:
    """20 tokens are $0.00002 at the model's own price, and $0.0002 at the provider's: whoever has less may not begin,
    since it might end there."""
    engine.script = recording("chat").script()
    served = await begin(start, engine, hosted, limits={"budget_usd": budget_usd})
    answer = await served.post(ASKED)
    assert answer.status == status, answer.body
    engine.kill()
    for _ in range(8):
        await served.post(ASKED)
    await served.booked()
    spent = sum(event.get("cost_nanousd", 0) for event in await served.events(at_least=9))
    assert spent <= budget_usd * 1e9


async def test_a_tenant_whose_cache_is_its_own_stays_where_that_can_be(
    engine: Engine, hosted: Engine, start: Start
) -> None:
    served = await begin(start, engine, hosted, tenant={"cache_isolation": "tenant"})
    engine.kill()
    assert (await served.post(ASKED, CHAT)).status in (502, 503)
    assert hosted.received == []


async def test_an_engine_that_keeps_caches_apart_does_so_as_last_resort_too(
    engine: Engine, hosted: Engine, start: Start
) -> None:
    pools = [
        {"name": "reserved", "replicas": [{"url": engine.url}]},
        {"name": "partner", "price": HOSTED_PRICE, "replicas": [{"url": hosted.url}]},
    ]
    engine.script = recording("chat").script()
    served = await start(pools=pools, cache_isolation="tenant")
    assert (await served.post(ASKED)).status == 200
    salt = engine.only.json["cache_salt"]
    engine.kill()
    for body in (ASKED, ASKED | {"cache_salt": "mine"}):
        await served.post(body)
    salts = [received.json["cache_salt"] for received in hosted.received]
    assert salt in salts
    assert "mine" not in salts
