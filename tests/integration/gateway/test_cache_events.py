"""A gateway whose replica publishes its KV events."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis
from zmq.asyncio import Context

from gateway import cache_events
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, eventually, policies, serve
from tests.integration.kv_events.publisher import Publisher


async def test_what_the_engine_has_evicted_is_not_expected_to_be_cached(
    engine: Engine, tmp_path: Path, redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of 240 tokens is answered, and then its second half is evicted for somebody else's."""
    monkeypatch.setattr(cache_events, "LEARN_AFTER_MS", 0)
    engine.script = recording("chat").script()
    engine.token_ids = list(range(240))
    context = Context()
    publisher = Publisher(context, engine.token_ids, block_size=16)
    document = policies(engine)
    for model in document["models"].values():
        model["replicas"] = [{"url": engine.url, "kv_events": publisher.events, "kv_replay": publisher.replay}]
    asked = {**ASKED, "messages": [{"role": "user", "content": "a question with a long beginning " * 30}]}
    async with serve(document, tmp_path, redis, valkey_url) as served:
        await eventually(lambda: len(publisher.asked) >= 2)
        index = served.lifecycle.routers.by_model["tiny"].index
        followed = served.lifecycle.cache_events.followers["tiny"].replicas[engine.name]
        await publisher.stored(*range(15))
        await eventually(lambda: len(followed.cache) == 15)
        assert (await served.post(asked)).status == 200
        expected = index.of(engine.name).count
        assert expected >= 3
        await eventually(lambda: engine.tokenized)
        await publisher.publish({"type": "BlockRemoved", "block_hashes": list(range(8, 15)), "medium": "GPU"})
        await eventually(lambda: 0 < index.of(engine.name).count < expected)
        page = (await served.get("/metrics")).body.decode()
        assert f'mtok_kv_events_trusted{{replica="{engine.name}"}} 1.0' in page
    publisher.close()
    context.destroy(linger=0)
