"""The events of a real vLLM: what is cached according to them is what the engine then finds cached, to the token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import httpx
import msgspec
import pytest

from gateway.kv_events import Follower, Subscriber, block_names, zmq_context
from gateway.routing import PrefixIndex
from loadtest.processes import free_port, running
from tests.real.conftest import Engine, _wait_for, scripts

BLOCK, VOCABULARY = 32, 8_000
REPLICA = "engine"


class Publishing(Engine):
    """One whose events are published."""

    events = replay = ""


@pytest.fixture(scope="module")
def publishing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publishing]:
    logs = tmp_path_factory.mktemp("vllm-events")
    port, events, replay = free_port(), free_port(), free_port()
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{events}",
        "replay_endpoint": f"tcp://*:{replay}",
        "topic": "kv@engine@tiny",
    }
    flags = f"--kv-events-config {msgspec.json.encode(config).decode()}"
    command = [str(scripts() / "start.sh"), str(port)]
    with running(command, log=logs / "engine.log", environment={"VLLM_FLAGS": flags}) as process:
        engine = Publishing(f"http://127.0.0.1:{port}", process)
        engine.events, engine.replay = f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}"
        _wait_for(engine, logs)
        yield engine


async def test_what_events_say_is_cached_the_engine_finds_cached(publishing: Publishing) -> None:
    """Twelve prompts of 700 to 1,000 tokens, which begin alike in threes, in a cache of 8,160: asked again and again in
    any order, some of their blocks are there and some have been evicted."""
    source = random.Random(5)
    starts = [[source.randrange(300, VOCABULARY) for _ in range(300)] for _ in range(4)]
    prompts = [
        starts[number // 3] + [source.randrange(300, VOCABULARY) for _ in range(source.randrange(400, 700))]
        for number in range(12)
    ]
    follower = Follower(PrefixIndex())
    stream, cache = follower.replicas[REPLICA].stream, follower.replicas[REPLICA].cache
    context = zmq_context()
    subscriber = Subscriber(context, follower, REPLICA, events=publishing.events, replay=publishing.replay)
    reading = asyncio.create_task(subscriber.run())
    found = []
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

        async def cached_tokens(prompt: list[int]) -> int:
            answer = await http.post(
                f"{publishing.url}/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 1}
            )
            details = answer.json()["usage"]["prompt_tokens_details"] or {}
            return int(details.get("cached_tokens") or 0)

        for _ in range(40):
            prompt = source.choice(prompts)
            names = block_names(prompt, BLOCK)
            depth = next((place for place, name in enumerate(names) if name not in cache), len(names))
            expected = min(depth, (len(prompt) - 1) // BLOCK) * BLOCK
            found.append((expected, await cached_tokens(prompt)))
            before = -1
            while before != stream.expected:  # until the engine has nothing more to say of it
                before = stream.expected
                await asyncio.sleep(0.2)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    context.destroy(linger=0)
    print(f"cached tokens, by the events and by the engine: {found}")
    assert [by_events for by_events, _ in found] == [by_engine for _, by_engine in found]
    assert any(0 < by_engine < 640 for _, by_engine in found), "some were cached in part"
    assert stream.trusted
    assert cache.orphans == 0
