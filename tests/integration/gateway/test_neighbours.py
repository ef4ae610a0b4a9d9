"""Gateways that tell each other, through Valkey, what they have sent where."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway import neighbours
from gateway.neighbours import Neighbours
from gateway.routing import Beside, Held, Placed, pack_placed
from gateway.store import HELD, PLACED, client
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, eventually, policies, serve
from tests.integration.store.proxy import wire

CHAIN = [11, 12, 13]


class Known:
    """What a gateway's routers know."""

    def __init__(self) -> None:
        self.blocks: defaultdict[tuple[str, str], list[list[int]]] = defaultdict(list)
        self.loads: dict[str, Beside] = {}
        self.own: list[Held] = []
        self.epochs: dict[str, int] = {}

    def note_elsewhere(self, model: str, replica: str, blocks: Sequence[int]) -> None:
        self.blocks[model, replica].append(list(blocks))

    def beside(self, replica: str, load: Beside) -> None:
        self.loads[replica] = load

    def running(self, replica: str) -> int:
        return 0

    def held(self) -> list[Held]:
        return self.own

    def epoch(self, replica: str) -> int:
        return self.epochs.get(replica, 0)

    def forget(self, replica: str) -> None:
        for place in [place for place in self.blocks if place[1] == replica]:
            del self.blocks[place]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """They talk every few milliseconds, and ask a Redis that is away again at once."""
    for name in ("TELL_INTERVAL_S", "HEAR_INTERVAL_S", "ALONE_INTERVAL_S"):
        monkeypatch.setattr(neighbours, name, 0.005)
    monkeypatch.setattr(neighbours, "AWAY_S", 0.02)
    monkeypatch.setattr(neighbours, "BLOCK_MS", 50)
    monkeypatch.setattr(neighbours, "DECAY_MS", 10)


@asynccontextmanager
async def gateway(redis: Redis, known: Known) -> AsyncIterator[Neighbours]:
    async with Neighbours(known, redis, now_ms=lambda: int(asyncio.get_running_loop().time() * 1000)) as one:
        yield one


async def test_what_one_gateway_has_sent_where_the_other_knows(redis: Redis) -> None:
    here, there = Known(), Known()
    async with gateway(redis, here) as one, gateway(redis, there) as two:
        one.placed("tiny", "a:1", CHAIN)
        await eventually(lambda: there.blocks == {("tiny", "a:1"): [CHAIN]})
        two.placed("tiny", "a:1", [*CHAIN, 14])
        await eventually(lambda: here.blocks == {("tiny", "a:1"): [[*CHAIN, 14]]})
        assert not one.alone


async def test_a_gateway_that_starts_knows_before_it_serves_what_was_sent_where(redis: Redis) -> None:
    here, late = Known(), Known()
    async with gateway(redis, here) as one:
        one.placed("tiny", "a:1", CHAIN)
        while not await redis.xlen(PLACED):
            await asyncio.sleep(0)
    async with gateway(redis, late):
        assert late.blocks == {("tiny", "a:1"): [CHAIN]}


async def test_what_is_in_flight_at_one_gateway_counts_at_the_other_until_it_ends(redis: Redis) -> None:
    here, there = Known(), Known()
    async with gateway(redis, here) as one, gateway(redis, there):
        here.own = [Held("a:1", 700, 2)]
        one.placed("tiny", "a:1", CHAIN)
        await eventually(lambda: there.loads == {"a:1": Beside(700, 2)})
        here.own = []
        await eventually(lambda: there.loads == {"a:1": Beside(0, 0)})


async def test_a_gateway_that_is_gone_is_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.routing._elsewhere.BELIEVED_MS", 20)
    monkeypatch.setattr("gateway.routing._elsewhere.FORGOTTEN_MS", 40)
    here, there = Known(), Known()
    async with gateway(redis, there):
        async with gateway(redis, here) as one:
            here.own = [Held("a:1", 700, 2)]
            one.placed("tiny", "a:1", CHAIN)
            await eventually(lambda: there.loads.get("a:1"))
        await eventually(lambda: there.loads == {"a:1": Beside(0, 0)})


async def test_without_requests_nothing_is_told(redis: Redis) -> None:
    here, there = Known(), Known()
    async with gateway(redis, here) as one, gateway(redis, there):
        one.placed("tiny", "a:1", CHAIN)
        await eventually(lambda: there.blocks)
        assert await redis.xlen(PLACED) == 1
        assert await redis.xlen(HELD) == 0
        await eventually(lambda: not one._asked.is_set())


async def test_what_was_told_of_a_process_that_has_been_replaced_is_not_believed(redis: Redis) -> None:
    for epoch, block in ((1000, 1), (2000, 2), (1000, 3)):
        told = pack_placed([Placed("tiny", "a:1", epoch, [bytes(8) + block.to_bytes(8, "little")])])
        await redis.xadd(PLACED, {b"by": b"gone", b"told": told})
    known = Known()
    async with gateway(redis, known):
        assert known.blocks == {("tiny", "a:1"): [[2]]}
        known.epochs["a:1"] = 3000
        await redis.xadd(PLACED, {b"by": b"other", b"told": b"no MessagePack"})
        await eventually(lambda: not known.blocks)


async def test_while_redis_is_away_nothing_is_lost_and_nobody_waits(
    redis: Redis, valkey_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = Known(), Known()
    async with (
        wire(valkey_url, tmp_path / "wire.sock") as (between, url),
        client(url) as through,
        gateway(through, here) as one,
        gateway(redis, there) as two,
    ):
        between.cut = True
        between.break_off()
        one.placed("tiny", "a:1", CHAIN)
        two.placed("tiny", "b:1", CHAIN)
        await eventually(lambda: "are not shared" in caplog.text)
        assert not there.blocks
        between.cut = False
        await eventually(lambda: there.blocks == {("tiny", "a:1"): [CHAIN]})
        await eventually(lambda: here.blocks == {("tiny", "b:1"): [CHAIN]})


async def test_a_conversation_goes_on_at_another_gateway_where_its_prefix_is(
    engine: Engine, second: Engine, tmp_path: Path, redis: Redis, valkey_url: str
) -> None:
    """One gateway cannot reach the one engine when six conversations begin, so all are at the other. The second gateway
    reaches both, and of prompts that nobody knows it would send each half of them."""
    engine.script = second.script = recording("chat").script()
    document = policies(engine, second)
    texts = [f"{number} " + "a question with a long beginning " * 30 for number in range(6)]

    def asked(text: str) -> dict[str, Any]:
        return {**ASKED, "messages": [{"role": "user", "content": text}]}

    async with (
        serve(document, tmp_path / "here", redis, valkey_url) as here,
        serve(document, tmp_path / "there", redis, valkey_url) as there,
    ):
        here.replica(engine).healthy = False
        for text in texts:
            assert (await here.post(asked(text))).status == 200
        router = there.lifecycle.routers.by_model["tiny"]
        await eventually(lambda: router.index.of(second.name).count >= 6 * 3)
        for text in texts:
            assert (await there.post(asked(text + "and one thing more " * 20))).status == 200
    assert (len(engine.received), len(second.received)) == (0, 12)


async def test_a_gateway_starts_though_redis_is_not_there(tmp_path: Path) -> None:
    known = Known()
    async with client(f"unix://{tmp_path}/nobody.sock") as nobody, gateway(nobody, known) as one:
        one.placed("tiny", "a:1", CHAIN)
        assert one.alone
