"""KV events on real ZMQ sockets, published as vLLM does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq
from zmq.asyncio import Context

from gateway.kv_events import Follower, Subscriber, block_names
from gateway.kv_events import _subscriber as subscriber_module
from tests.integration.gateway.serving import eventually

TOKENS = list(range(8))
NAMES = block_names(TOKENS, 2)
REPLICA = "a:1"


class Nothing:
    """An index that is not asked."""

    def note(self, blocks: object, name: str) -> None:
        """Nobody reads it."""

    remove = note

    def forget(self, name: str) -> None:
        """Nobody reads it."""


class Engine:
    """Publishes as vLLM's ZmqEventPublisher: PUB, and a ROUTER that replays the last so many batches."""

    def __init__(self, context: Context, *, kept: int = 100, ports: tuple[int, int] = (0, 0)) -> None:
        self.number = 0
        self._kept = kept
        self._buffer: list[tuple[int, bytes]] = []
        self._pub = context.socket(zmq.PUB)
        self._router = context.socket(zmq.ROUTER)
        for socket, port in ((self._pub, ports[0]), (self._router, ports[1])):
            socket.linger = 0
            socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.events, self.replay = [socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (self._pub, self._router)]
        self.asked: list[int] = []
        self._serving = asyncio.create_task(self._serve())

    @property
    def ports(self) -> tuple[int, int]:
        return int(self.events.rpartition(":")[2]), int(self.replay.rpartition(":")[2])

    async def publish(self, *events: object, lost: bool = False) -> None:
        payload = msgspec.msgpack.encode([0.0, list(events), 0])
        self._buffer = [*self._buffer, (self.number, payload)][-self._kept :]
        if not lost:
            await self._pub.send_multipart([b"kv@pod@tiny", self.number.to_bytes(8, "big"), payload])
        self.number += 1

    async def stored(self, *blocks: int, lost: bool = False) -> None:
        """Blocks of `TOKENS`, by their places."""
        for block in blocks:
            parent = block - 1 if block else None
            event = ["BlockStored", [block], parent, TOKENS[2 * block : 2 * block + 2], 2]
            await self.publish(event, lost=lost)

    async def _serve(self) -> None:
        while True:
            client, _, start = await self._router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.asked.append(first)
            for number, payload in self._buffer:
                if number >= first:
                    await self._router.send_multipart([client, b"", b"kv@pod@tiny", number.to_bytes(8, "big"), payload])
            await self._router.send_multipart([client, b"", b"", subscriber_module.END, b""])

    def close(self) -> None:
        self._serving.cancel()
        self._pub.close()
        self._router.close()


@pytest.fixture
def context() -> AsyncIterator[Context]:  # type: ignore[misc]
    context = Context()
    yield context
    context.destroy(linger=0)


@asynccontextmanager
async def following(context: Context, engine: Engine, *, replays: bool = True) -> AsyncIterator[Follower]:
    """Once the subscription is there."""
    follower = Follower(Nothing())
    subscriber = Subscriber(context, follower, REPLICA, events=engine.events, replay=engine.replay if replays else None)
    running = asyncio.create_task(subscriber.run())
    if replays:
        await eventually(lambda: engine.asked)
    yield follower
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def held(follower: Follower) -> list[int]:
    """Which blocks of `TOKENS` it is taken to cache."""
    return [place for place, name in enumerate(NAMES) if name in follower.replicas[REPLICA].cache]


async def known(engine: Engine, follower: Follower, blocks: list[int]) -> None:
    """Says something without meaning until it is heard: a subscription takes effect when it likes."""

    async def heard() -> bool:
        await engine.publish()
        await asyncio.sleep(0)
        return held(follower) == blocks

    await eventually(heard)


async def test_what_was_published_before_anybody_listened_is_had_from_the_replay(context: Context) -> None:
    engine = Engine(context)
    await engine.stored(0, 1)
    async with following(context, engine) as follower:
        await known(engine, follower, [0, 1])
        await engine.stored(2)
        await engine.publish({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"})
        await known(engine, follower, [0, 2])
        assert follower.replicas[REPLICA].stream.trusted
    engine.close()


async def test_a_gap_is_replayed(context: Context) -> None:
    engine = Engine(context)
    async with following(context, engine) as follower:
        await engine.stored(0)
        await known(engine, follower, [0])
        await engine.stored(1, 2, lost=True)
        await known(engine, follower, [0, 1, 2])
        assert follower.replicas[REPLICA].stream.trusted
    engine.close()


async def test_a_gap_that_is_kept_no_longer_makes_its_cache_uncertain(context: Context) -> None:
    engine = Engine(context, kept=1)
    async with following(context, engine) as follower:
        await engine.stored(0)
        await known(engine, follower, [0])
        await engine.stored(1, 2, lost=True)
        await eventually(lambda: _not_trusted(engine, follower))
        await engine.publish({"type": "AllBlocksCleared"})
        await engine.stored(0, 1)
        await known(engine, follower, [0, 1])
        assert follower.replicas[REPLICA].stream.trusted
    engine.close()


async def test_without_a_replay_who_comes_late_knows_that_it_does_not_know(context: Context) -> None:
    engine = Engine(context)
    await engine.stored(0, 1)
    async with following(context, engine, replays=False) as follower:
        await eventually(lambda: _not_trusted(engine, follower))
        assert held(follower) == []
    engine.close()


async def test_an_engine_that_starts_anew_has_nothing_cached(context: Context) -> None:
    engine = Engine(context)
    async with following(context, engine) as follower:
        for _ in range(1000):  # more than the new one will have said when it is heard
            await engine.publish()
        await engine.stored(0, 1, 2)
        await known(engine, follower, [0, 1, 2])
        engine.close()
        engine = await eventually(lambda: again(context, engine.ports))
        await engine.stored(0)
        await known(engine, follower, [0])
        assert follower.replicas[REPLICA].stream.trusted
    engine.close()


def again(context: Context, ports: tuple[int, int]) -> Engine | None:
    """An engine at the ports of one that has gone; None while ZMQ has not let go of them."""
    try:
        return Engine(context, ports=ports)
    except zmq.ZMQError:
        return None


async def _not_trusted(engine: Engine, follower: Follower) -> bool:
    await engine.publish()
    await asyncio.sleep(0)
    return not follower.replicas[REPLICA].stream.trusted
