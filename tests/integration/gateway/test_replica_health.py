"""Replicas that fail, stall, lie or serve something else: who stops getting requests, and when it gets them again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from gateway.fleet import _fleet, _health, _liveness
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    Conversation,
    Engine,
    Received,
    Script,
    as_json,
    dies,
    recording,
)
from tests.integration.gateway.serving import ADMIN_KEY, ASKED, Served, eventually

WELL = recording("chat").script()
NUMBERS = count()
GARBAGE = as_json(b"<html>502 Bad Gateway, says a proxy with status 200</html>")


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and looks as often as a test can wait for."""
    monkeypatch.setattr(_health, "PAUSE_S", 0.05)
    monkeypatch.setattr(_fleet, "LOOK_INTERVAL_S", 0.02)


async def statuses(served: Served, how_many: int) -> list[int]:
    """Of so many prompts that nobody has sent before, one after the other."""
    asked = [ASKED | {"messages": [{"role": "user", "content": f"prompt {next(NUMBERS)}"}]} for _ in range(how_many)]
    return [(await served.post(body)).status for body in asked]


def state(served: Served, engine: Engine) -> tuple[str, str]:
    health = served.replica(engine).health
    return health.state, health.reason


async def shown(served: Served, engine: Engine) -> Any:
    """What `/admin/state` says of it."""
    answer = await served.get("/admin/state", key=ADMIN_KEY)
    return answer.json["replicas"][engine.name]


@pytest.mark.parametrize(
    ("script", "reason", "out"),
    [
        (as_json({"error": {"message": "boom"}}, status=500), "errors", "open"),
        (dies, "lost", "open"),
        (GARBAGE, "garbage", "quarantined"),
    ],
)
async def test_what_fails_is_left_alone_and_tried_again_by_one_request(
    engine: Engine, second: Engine, start: Start, script: Script, reason: str, out: str
) -> None:
    """500, resets and 200 with garbage: after three of them everything goes to the other replica, and the state says
    why; a request after the pause finds it well again."""
    engine.script, second.script = script, WELL
    served = await start(engine, second)
    await statuses(served, 24)
    failed = len(engine.received)
    assert failed >= 3
    health = served.replica(engine).health
    assert (health.reason, health.admits or health.state) in [(reason, out), (reason, True), (reason, "half_open")]
    told = await shown(served, engine)
    assert all(name.endswith(reason) for name in told["states"])
    metrics = (await served.get("/metrics", key=ADMIN_KEY)).body.decode()
    assert f'mtok_replica_changes_total{{reason="{reason}",replica="{engine.name}",state="{out}"}} ' in metrics
    engine.script = WELL

    async def tried() -> bool:
        await statuses(served, 4)
        return state(served, engine) == ("starting", "recovered")

    await eventually(tried)
    assert served.replica(engine).share == _health.SHARE_LEAST


@pytest.mark.parametrize("status", [400, 404, 429, 503])
async def test_refusals_of_an_engine_say_nothing_of_its_health(
    engine: Engine, second: Engine, start: Start, status: int
) -> None:
    """4xx are the client's, 429 and 503 mean that it is full: neither opens a breaker."""
    engine.script = second.script = as_json({"error": {"message": "no"}}, status=status)
    served = await start(engine, second)
    await statuses(served, 10)
    assert (state(served, engine), state(served, second)) == (("healthy", ""), ("healthy", ""))


async def test_the_last_replica_serves_on_whatever_requests_say(engine: Engine, start: Start) -> None:
    """One poisonous prompt fails wherever it goes: where all breakers are open, those that answer probes serve."""
    engine.script = as_json({"error": {"message": "boom"}}, status=500)
    served = await start(engine)
    assert await statuses(served, 6) == [502] * 6
    assert len(engine.received) == 6
    assert served.replica(engine).health.is_last_resort
    engine.script = WELL
    assert await statuses(served, 1) == [200]


async def test_a_replica_that_gives_no_stream_a_token_is_quarantined_until_it_does(
    engine: Engine, second: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `/health` says 200 all the while."""
    monkeypatch.setattr(_liveness, "SILENCE_LEAST_S", 0.2)
    goes_on = asyncio.Event()
    events: Sequence[bytes] = recording("stream_cont").events

    async def stalls(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(events[0])
        await goes_on.wait()
        for event in events[1:]:
            talk.chunk(event)
        talk.end()

    engine.script = second.script = stalls
    served = await start(engine, second)
    answer = asyncio.create_task(served.post(ASKED | {"stream": True}))
    await eventually(lambda: engine.received or second.received)
    stalled, other = (engine, second) if engine.received else (second, engine)
    await eventually(lambda: state(served, stalled) == ("quarantined", "stalled"))
    other.script = WELL
    assert await statuses(served, 8) == [200] * 8
    assert len(stalled.received) == 1
    goes_on.set()
    assert (await answer).status == 200
    await eventually(lambda: served.replica(stalled).healthy)
    assert state(served, stalled) in [("starting", "recovered"), ("half_open", "stalled")]


async def test_a_replica_that_serves_another_model_gets_nothing_until_it_serves_the_right_one(
    engine: Engine, second: Engine, start: Start
) -> None:
    engine.script = second.script = WELL
    second.model = "another"
    served = await start(engine, second)
    assert state(served, second) == ("quarantined", "model")
    assert "it serves another, not" in served.replica(second).health.detail
    assert await statuses(served, 8) == [200] * 8
    assert second.received == []
    second.model = "tiny"
    await served.lifecycle.fleet._probe_all()
    assert served.replica(second).healthy


async def test_a_replica_that_listens_again_is_another_process(engine: Engine, second: Engine, start: Start) -> None:
    """What its cache held is gone: whoever keeps an index hears of it."""
    engine.script = second.script = WELL
    served = await start(engine, second)
    restarted: list[str] = []
    served.lifecycle.fleet.on_restart = lambda replica: restarted.append(replica.name)
    engine.kill()
    await served.lifecycle.fleet._probe_all()
    assert state(served, engine) == ("open", "refused")
    assert restarted == []
    await engine.listen()
    await served.lifecycle.fleet._probe_all()
    assert state(served, engine) == ("starting", "recovered")
    assert restarted == [engine.name]
