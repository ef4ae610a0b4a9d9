"""Replicas that an operator wants empty, over all gateways of a Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway import draining
from gateway.cli import app
from gateway.clock import SystemClock
from gateway.draining import Draining
from gateway.fleet import Fleet
from gateway.policy import ModelSpec, ReplicaSpec
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, recording
from tests.integration.gateway.serving import ADMIN_KEY, ASKED, Served, eventually

WELL = recording("chat").script()


async def admin(served: Served, method: str, query: str = "", key: str = ADMIN_KEY) -> Any:
    return await served.say(f"{method} /admin/drain{query} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {key}\r\n\r\n")


async def ask(served: Served, number: int) -> int:
    answer = await served.post(ASKED | {"messages": [{"role": "user", "content": f"prompt {number}"}]})
    return int(answer.status)


async def test_a_replica_that_drains_finishes_what_it_has_and_gets_nothing_new(
    engine: Engine, second: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so when it is empty; undone it serves again, at once and with its whole share: its cache is warm."""
    monkeypatch.setattr(draining, "HEARD_MS", 0)
    finish = asyncio.Event()

    async def slow(talk: Conversation, request: Received) -> None:
        await finish.wait()
        await WELL(talk, request)

    engine.script = second.script = slow
    served = await start(engine, second)
    running = asyncio.create_task(ask(served, 0))
    await eventually(lambda: engine.received or second.received)
    leaving, other = (engine, second) if engine.received else (second, engine)
    other.script = WELL
    (state,) = (await admin(served, "POST", f"?replica={leaving.url}")).json
    assert (state["replica"], state["in_flight"], state["drained"]) == (leaving.name, 1, False)
    assert [await ask(served, number) for number in range(1, 9)] == [200] * 8
    assert len(leaving.received) == 1
    shown = (await served.get("/admin/state", key=ADMIN_KEY)).json["replicas"][leaving.name]
    assert (shown["healthy"], list(shown["states"])) == (False, ["draining drain"])
    finish.set()
    assert await running == 200
    (state,) = (await admin(served, "GET")).json
    assert (state["in_flight"], state["drained"]) == (0, True)
    assert (await admin(served, "DELETE", f"?replica={leaving.name}")).json == []
    replica = served.replica(leaving)
    assert (replica.healthy, replica.share) == (True, 1.0)


async def test_another_gateway_obeys_and_its_requests_count(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks and what is left are in Redis; a worker that has gone silent is not waited for."""
    monkeypatch.setattr(draining, "HEARD_MS", 0)
    served = await start(engine)
    spec = ModelSpec(name="tiny", replicas=(ReplicaSpec(url=engine.url),))
    async with Fleet([spec]) as fleet:
        elsewhere = Draining(fleet, served.redis, now_ms=SystemClock().now_ms)
        (there,) = fleet.replicas
        there.in_flight = 3
        await admin(served, "POST", f"?replica={engine.url}")
        assert there.healthy
        await elsewhere.poll()
        assert not there.healthy
        (state,) = await elsewhere.states()
        assert (state.in_flight, state.drained) == (3, False)
        monkeypatch.setattr(draining, "SILENT_MS", -1)
        (state,) = (await admin(served, "GET")).json
        assert state["in_flight"] == 0


async def test_what_still_runs_at_the_deadline_is_cut_and_goes_on_elsewhere(
    engine: Engine, second: Engine, start: Start
) -> None:
    """A request that has not been answered yet is sent to another replica; that is no fault of the one it left."""

    async def for_ever(talk: Conversation, _: Received) -> None:
        await talk.gone.wait()

    engine.script = second.script = for_ever
    served = await start(engine, second)
    running = asyncio.create_task(ask(served, 0))
    await eventually(lambda: engine.received or second.received)
    leaving, other = (engine, second) if engine.received else (second, engine)
    other.script = WELL
    await admin(served, "POST", f"?replica={leaving.name}&cut_after_s=0")
    assert await running == 200
    assert len(other.received) == 1
    assert served.replica(leaving).health._faults == 0


async def test_a_new_process_at_the_same_address_is_not_kept_empty(
    engine: Engine, second: Engine, start: Start
) -> None:
    """After a deploy the address listens again, and nobody has to undo what was asked of the old process."""
    served = await start(engine, second)
    await admin(served, "POST", f"?replica={engine.url}")
    engine.kill()
    await served.lifecycle.fleet._probe_all()
    await engine.listen()
    await served.lifecycle.fleet._probe_all()
    await eventually(lambda: served.replica(engine).healthy)
    assert (await admin(served, "GET")).json == []


async def test_only_the_administrator_drains_and_only_what_there_is(engine: Engine, start: Start) -> None:
    served = await start(engine)
    assert (await admin(served, "POST", f"?replica={engine.url}", key=served.key)).status == 403
    unknown = await admin(served, "POST", "?replica=http://10.0.0.1:1")
    assert (unknown.status, unknown.error["code"]) == (404, "unknown_replica")
    for query in ("?replica", "?replica=x&cut_after_s=soon"):
        assert (await admin(served, "POST", query)).status in (400, 404)
    assert (await admin(served, "PUT")).headers["allow"] == "GET, POST, DELETE"
    assert served.replica(engine).healthy


async def test_the_command_says_when_a_replica_is_empty(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "HEARD_MS", 0)
    served = await start(engine)

    async def mtok(*arguments: str) -> tuple[int, str]:
        asked = ["drain", *arguments, "--url", f"http://127.0.0.1:{served.port}", "--admin-key", ADMIN_KEY]
        result = await asyncio.to_thread(CliRunner().invoke, app, asked)
        return result.exit_code, result.output

    assert await mtok(engine.url, "--wait") == (0, f"{engine.name} is empty: it can be stopped\n")
    assert await mtok() == (0, f"{engine.name} is empty: it can be stopped\n")
    assert await mtok(engine.url, "--undo") == (0, f"requests may go to {engine.url} again\n")
    assert await mtok() == (0, "no replica drains\n")
    code, said = await mtok("http://10.0.0.1:1")
    assert (code, "No model has a replica" in said) == (1, True)
    assert (await mtok("--undo"))[0] == 2
