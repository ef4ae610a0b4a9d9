"""A gateway whose replicas are told while it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.discovery import _file
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, recording
from tests.integration.gateway.serving import ASKED, Served, eventually

WELL = recording("chat").script()


async def statuses(served: Served, numbers: range) -> list[int]:
    asked = [ASKED | {"messages": [{"role": "user", "content": f"prompt {number}"}]} for number in numbers]
    return [(await served.post(body)).status for body in asked]


async def test_replicas_come_and_go_while_it_serves(
    engine: Engine, second: Engine, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one starts slowly once it has answered; one that goes finishes what it has. A list that cannot be read
    changes nothing."""
    monkeypatch.setattr(_file, "LOOK_S", 0.02)
    path = tmp_path / "replicas.json"
    path.write_text(f'["{engine.url}"]')
    finish = asyncio.Event()

    async def slow(talk: Conversation, request: Received) -> None:
        await finish.wait()
        await WELL(talk, request)

    engine.script, second.script = slow, WELL
    served = await start(discover={"file": str(path)})
    fleet = served.lifecycle.fleet
    running = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    path.write_text(f'["{engine.url}", "{second.url}"]')
    await eventually(lambda: len(fleet.replicas) == 2 and fleet.replicas[1].healthy)
    assert (fleet.replicas[1].health.state, fleet.replicas[1].health.reason) == ("starting", "joined")
    path.write_text("[")
    metric = 'mtok_discovery_failed{model="tiny"} 1.0'

    async def told() -> bool:
        return metric in (await served.get("/metrics")).body.decode()

    await eventually(told)
    assert len(fleet.replicas) == 2
    path.write_text(f'["{second.url}"]')
    await eventually(lambda: len(fleet.replicas) == 1)
    assert await statuses(served, range(5)) == [200] * 5
    metrics = (await served.get("/metrics")).body.decode().splitlines()
    states = [line for line in metrics if line.startswith(f'mtok_replica_state{{reason="",replica="{engine.name}"')]
    assert states == [f'mtok_replica_state{{reason="",replica="{engine.name}",state="healthy"}} 0.0']
    assert len(second.received) == 5
    finish.set()
    assert (await running).status == 200
    await eventually(lambda: not fleet._leaving)
