"""KV events on real ZMQ sockets, published as vLLM does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import zmq
from zmq.asyncio import Context

from gateway.kv_events import Follower, Subscriber, block_names
from tests.integration.gateway.serving import eventually
from tests.integration.kv_events.publisher import Publisher

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


@pytest.fixture
def context() -> AsyncIterator[Context]:  # type: ignore[misc]
    context = Context()
    yield context
    context.destroy(linger=0)


@asynccontextmanager
async def following(context: Context, engine: Publisher, *, replays: bool = True) -> AsyncIterator[Follower]:
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


async def known(engine: Publisher, follower: Follower, blocks: list[int]) -> None:
    """Says something without meaning until it is heard: a subscription takes effect when it likes."""

    async def heard() -> bool:
        await engine.publish()
        await asyncio.sleep(0)
        return held(follower) == blocks

    await eventually(heard)


async def test_what_was_published_before_anybody_listened_is_had_from_the_replay(context: Context) -> None:
    engine = Publisher(context, TOKENS)
    await engine.stored(0, 1)
    async with following(context, engine) as follower:
        await known(engine, follower, [0, 1])
        await engine.stored(2)
        await engine.publish({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"})
        await known(engine, follower, [0, 2])
        assert follower.replicas[REPLICA].stream.trusted
    engine.close()


async def test_a_gap_is_replayed(context: Context) -> None:
    engine = Publisher(context, TOKENS)
    async with following(context, engine) as follower:
        await engine.stored(0)
        await known(engine, follower, [0])
        await engine.stored(1, 2, lost=True)
        await known(engine, follower, [0, 1, 2])
        assert follower.replicas[REPLICA].stream.trusted
    engine.close()


async def test_a_gap_that_is_kept_no_longer_makes_its_cache_uncertain(context: Context) -> None:
    engine = Publisher(context, TOKENS, kept=1)
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
    engine = Publisher(context, TOKENS)
    await engine.stored(0, 1)
    async with following(context, engine, replays=False) as follower:
        await eventually(lambda: _not_trusted(engine, follower))
        assert held(follower) == []
    engine.close()


async def test_an_engine_that_starts_anew_has_nothing_cached(context: Context) -> None:
    engine = Publisher(context, TOKENS)
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


def again(context: Context, ports: tuple[int, int]) -> Publisher | None:
    """An engine at the ports of one that has gone; None while ZMQ has not let go of them."""
    try:
        return Publisher(context, TOKENS, ports=ports)
    except zmq.ZMQError:
        return None


async def _not_trusted(engine: Publisher, follower: Follower) -> bool:
    await engine.publish()
    await asyncio.sleep(0)
    return not follower.replicas[REPLICA].stream.trusted
