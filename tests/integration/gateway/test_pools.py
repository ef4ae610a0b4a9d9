"""Several pools for one name: each is used when those before it have no room, and answers say where they are from."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.admission import _knee as knee
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, as_json, recording
from tests.integration.gateway.serving import Served, eventually

CLASS = {"max_wait_s": 30, "slo": {"ttft_p99_ms": 30_000, "itl_p99_ms": 80}}


async def begin(start: Start, reserved: Engine, spot: Engine, **document: Any) -> Served:
    """A gateway whose model has these two pools."""
    named = [("reserved", reserved), ("spot", spot)]
    return await start(pools=[{"name": name, "replicas": [{"url": one.url}]} for name, one in named], **document)


class Gate:
    """An engine's answers wait until it opens."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def script(self, talk: Conversation, request: Received) -> None:
        await self.open.wait()
        await recording("chat").script()(talk, request)


async def test_the_first_pool_is_used_while_it_has_room_and_takes_over_again(
    engine: Engine, second: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request fills the reserved replica; what comes meanwhile goes to spot, and what comes later does not."""
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 1)
    monkeypatch.setattr(knee, "LEAST_SEQUENCES", 1)
    gate = Gate()
    engine.script, second.script = gate.script, recording("chat").script()
    served = await begin(start, engine, second, service=CLASS, tenant={"replica_header": "send"})
    long = asyncio.create_task(served.post())
    await eventually(lambda: len(engine.received) == 1)
    for number in range(1, 4):
        spilt = await served.post()
        assert (spilt.headers["x-mtok-replica"], len(second.received)) == (f"{second.name}; pool=spot", number)
    gate.open.set()
    assert (await long).headers["x-mtok-replica"] == f"{engine.name}; pool=reserved"
    for _ in range(3):
        assert (await served.post()).headers["x-mtok-replica"] == f"{engine.name}; pool=reserved"
    assert len(second.received) == 3
    await served.booked()
    events = await served.events(at_least=7)
    assert sorted(event["pool"] for event in events) == ["reserved"] * 4 + ["spot"] * 3

    async def counted() -> bool:
        page = (await served.get("/metrics")).body.decode()
        return 'mtok_pool_requests_total{model="tiny",pool="spot"} 3.0' in page

    await eventually(counted)


@pytest.mark.parametrize("service", [None, CLASS], ids=["unbounded", "bounded"])
async def test_the_next_pool_serves_what_the_first_cannot(
    engine: Engine, second: Engine, start: Start, service: Any
) -> None:
    """Its only replica says that it is full, then its process is gone."""
    engine.script, second.script = as_json({"error": {}}, status=503), recording("chat").script()
    served = await begin(start, engine, second, service=service)
    assert (await served.post()).status == 200
    assert (len(engine.received), len(second.received)) == (1, 1)
    engine.kill()
    for _ in range(3):
        assert (await served.post()).status == 200
    assert len(second.received) == 4


async def test_who_may_not_see_replicas_does_not(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, rival_uses="tiny", rival={"replica_header": "send"})
    assert "x-mtok-replica" not in (await served.post()).headers
    assert (await served.post(key="mtok-rival-" + "k" * 43)).headers["x-mtok-replica"] == engine.name, (
        "no pools, no name"
    )
