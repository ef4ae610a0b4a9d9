"""Two gateways over one replica and one Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis

from gateway import sharing
from gateway.admission import Cost, Work
from gateway.admission import _knee as knee
from gateway.clock import SystemClock
from gateway.dispatch import Dispatcher
from gateway.errors import Refused
from gateway.fleet import ModelFleet, Replica
from gateway.policy import SloSpec, load
from gateway.sharing import Sharing
from gateway.store import ModelKeys, client, load_script, share_call
from tests.integration.gateway.engine import Conversation, Engine, Received, recording
from tests.integration.gateway.serving import ASKED, Served, eventually, key_of, policies, serve

PATIENT = {"max_wait_s": 30, "slo": {"ttft_p99_ms": 60_000, "itl_p99_ms": 80}}


class Gates:
    """The engine's answers wait until their user's gate opens."""

    def __init__(self, *users: str) -> None:
        self.of = {user: asyncio.Event() for user in users}

    async def script(self, talk: Conversation, request: Received) -> None:
        if gate := self.of.get(request.json.get("user", "")):
            await gate.wait()
        await recording("chat").script()(talk, request)


@pytest.fixture
async def pair(
    engine: Engine, tmp_path: Path, redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Served, Served]]:
    """Gateways that talk to each other every 20 ms."""
    monkeypatch.setattr(sharing, "SHARE_INTERVAL_S", 0.02)
    async with AsyncExitStack() as stack:
        document = policies(engine, service=PATIENT, rival_uses="tiny")
        here, there = [
            await stack.enter_async_context(serve(document, tmp_path / name, redis, valkey_url))
            for name in ("here", "there")
        ]
        yield here, there


def line(served: Served) -> Any:
    return served.lifecycle.dispatcher.lines.get("tiny")


async def test_what_a_tenant_was_given_by_one_gateway_counts_at_the_other(
    engine: Engine, pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait at one gateway, `acme` first. Its turn comes after `rival`'s, since the other gateway has served it."""
    for name in ("FIRST_SEQUENCES", "LEAST_SEQUENCES", "MOST_SEQUENCES"):
        monkeypatch.setattr(knee, name, 1)
    monkeypatch.setattr(knee, "_extra", lambda _sequences: 0)
    here, there = pair
    gates = Gates("first")
    engine.script = gates.script
    running = asyncio.create_task(here.post({**ASKED, "user": "first"}))
    await eventually(lambda: engine.received)
    waiting = []
    for tenant in ("acme", "acme", "rival", "rival"):
        waiting.append(asyncio.create_task(here.post({**ASKED, "user": tenant}, key=key_of(tenant))))
        await eventually(lambda: len(line(here).queue) == len(waiting))
    acme = line(here).queue._by_priority[0].known("acme")
    before = acme.counter
    used = [(await there.post()).json["usage"] for _ in range(5)]
    cost = Cost().of(input_tokens=used[0]["prompt_tokens"], cached_tokens=0, output_tokens=used[0]["completion_tokens"])
    await eventually(lambda: acme.counter == pytest.approx(before + 5 * cost))
    gates.of["first"].set()
    answers = await asyncio.gather(running, *waiting)
    assert [answer.status for answer in answers] == [200] * 5
    assert [one.json["user"] for one in engine.received if "user" in one.json] == [
        *("first", "rival", "rival", "acme", "acme")
    ]


async def test_two_gateways_together_send_a_replica_no_more_than_one_would(
    engine: Engine, pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight places one gateway alone takes all; the other's come as the first one's answers end, until each has half
    of them. When one is idle again, the other has all."""
    for name in ("FIRST_SEQUENCES", "MOST_SEQUENCES"):
        monkeypatch.setattr(knee, name, 8)
    monkeypatch.setattr(knee, "_extra", lambda _sequences: 0)
    monkeypatch.setattr(knee, "LEAST_PREFILL_TOKENS", 100_000)
    here, there = pair
    gates = Gates(*(f"{number}" for number in range(32)))
    engine.script = gates.script

    def ask(served: Served, numbers: range) -> list[asyncio.Task[Any]]:
        return [asyncio.create_task(served.post({**ASKED, "user": f"{number}"})) for number in numbers]

    def running(served: Served) -> int:
        return line(served).knee(served.replica(engine)).load.sequences if line(served) else 0

    first = ask(here, range(16))
    await eventually(lambda: running(here) == 8)
    second = ask(there, range(16, 32))
    await eventually(lambda: running(there) == 1 and line(here).knee(here.replica(engine)).allowed.sequences < 8)
    for number in range(4):
        gates.of[f"{number}"].set()
    await eventually(lambda: (running(here), running(there)) == (4, 4))
    await eventually(lambda: len(engine.received) == 12)
    for number in range(4, 16):
        gates.of[f"{number}"].set()
    await asyncio.gather(*first)
    await eventually(lambda: running(there) == 8)
    for gate in gates.of.values():
        gate.set()
    answers = await asyncio.gather(*second)
    assert all(answer.status == 200 for answer in answers)


async def test_without_redis_requests_are_placed_at_once_within_a_small_share(engine: Engine, tmp_path: Path) -> None:
    """It has never been there, so that nobody was heard: an eighth of the replica is this worker's."""
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policies(engine, service=PATIENT)))
    spec = load(tmp_path).models["tiny"]
    replica, clock = Replica(engine.url), SystemClock()
    model, dispatcher = ModelFleet(spec, [replica]), Dispatcher(clock.now_ms)
    slo = SloSpec(ttft_p99_ms=60_000, itl_p99_ms=80)

    def work(number: int) -> Work:
        return Work(
            id=f"{number}",
            tenant="acme",
            band=0,
            weight=1.0,
            input_tokens=10,
            cached_tokens=0,
            output_tokens=10,
            retry=False,
            arrived_ms=clock.now_ms(),
            deadline_ms=clock.now_ms() + 200,
        )

    redis = client(f"unix://{tmp_path}/nobody.sock")
    async with Sharing(dispatcher, redis, now_ms=clock.now_ms) as exchange:
        slots = [dispatcher.slot(model, slo, work(number), streams=True) for number in range(9)]
        for slot in slots[:8]:
            assert await slot.place(lambda: [replica], lambda replicas: replicas[0]) is replica
        await eventually(lambda: exchange._coalescer.failures)
        with pytest.raises(Refused):
            await slots[8].place(lambda: [replica], lambda replicas: replicas[0])
        for slot in slots[:8]:
            slot.ended(None)
    await redis.aclose()


async def test_a_worker_of_another_version_keeps_what_it_was_granted(
    engine: Engine, pair: tuple[Served, Served], redis: Redis
) -> None:
    """What it tells is not understood; a line beside it serves in what is left."""
    engine.script = recording("chat").script()
    keys = ModelKeys("tiny")
    wants = [(engine.name, 60, 0)]
    call = share_call(
        keys,
        "other",
        number=1,
        growth=b"",
        after="",
        told=b'{"new": 1}',
        limits=[(engine.name, 64, 5000, -1)],
        wants=wants,
    )
    await redis.eval(load_script("share").text.decode(), len(call.keys), *call.keys, *call.arguments)
    here, _ = pair
    assert (await here.post()).status == 200
    await eventually(lambda: line(here).knee(here.replica(engine)).allowed.sequences <= 4)
