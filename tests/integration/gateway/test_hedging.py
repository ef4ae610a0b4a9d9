"""Streams whose first token is late, tried on a second replica: one answer, one bill, and the slower one is ended."""

from __future__ import annotations

import asyncio

import pytest

from gateway.fleet import RetryBudget
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, Script, as_json, as_stream, dies, recording
from tests.integration.gateway.serving import ASKED, CHAT, Served, eventually
from tests.integration.gateway.test_queue import PATIENT
from tests.integration.gateway.test_relay import DONE

STREAMED = ASKED | {"stream": True}
SOON = {"hedge_after_ms": 30}
LIMITS = {"concurrent_requests": 5, "budget_usd": 1}


def first_and_second(first: Script, second: Script) -> Script:
    """What the replica says that is asked first, whichever it is, and what the other one says."""
    scripts = [first, second]

    async def script(talk: Conversation, request: Received) -> None:
        await (scripts.pop(0) if scripts else as_stream(DONE))(talk, request)

    return script


class Late(list[str]):
    """A replica that does not answer; remembers how it was left."""

    async def __call__(self, talk: Conversation, _: Received) -> None:
        self.append("asked")
        await talk.gone.wait()
        self.append("left")


async def nothing_is_left(served: Served) -> None:
    """No connection is in use, nothing is booked or held."""
    replicas = served.lifecycle.fleet.replicas
    assert all(replica.in_flight == 0 and not replica._busy for replica in replicas)
    assert served.lifecycle.idle
    assert not served.lifecycle.routers.held()
    assert (await served.usage())["limits"]["concurrent_requests"]["remaining"] == 5


@pytest.mark.parametrize("service", [None, PATIENT], ids=["unbounded", "in the queue"])
async def test_the_sooner_one_is_the_clients(engine: Engine, second: Engine, start: Start, service: object) -> None:
    """The first one says nothing: the second answers, the first is left at once, and what it burnt is told apart."""
    late = Late()
    engine.script = second.script = first_and_second(late, recording("stream_cont").script())
    served = await start(engine, second, limits=LIMITS, service=service, **SOON)
    answer = await served.post(STREAMED)
    assert (answer.status, answer.body[-len(DONE) :]) == (200, DONE)
    await eventually(lambda: late == ["asked", "left"])
    event = await served.event()
    (attempt,) = event["failed_attempts"]
    assert (attempt["code"], attempt["output_tokens"]) == ("hedged", 20)
    assert {attempt["replica"], event["replica"]} == {engine.name, second.name}
    assert (event["status"], event["usage"]["output_tokens"]) == ("ok", 5)
    await nothing_is_left(served)


async def test_one_that_is_in_time_is_alone(engine: Engine, second: Engine, start: Start) -> None:
    """No second replica is asked."""
    engine.script = second.script = recording("stream_cont").script()
    served = await start(engine, second, limits=LIMITS, hedge_after_ms=60_000)
    assert (await served.post(STREAMED)).body.endswith(DONE)
    assert len(engine.received) + len(second.received) == 1
    assert "failed_attempts" not in await served.event()


async def test_the_first_may_win_after_all(engine: Engine, second: Engine, start: Start) -> None:
    """It answers while the second one still reads: then that one is ended."""
    late = Late()

    async def slow(talk: Conversation, request: Received) -> None:
        await eventually(lambda: late)
        await recording("stream_cont").script()(talk, request)

    engine.script = second.script = first_and_second(slow, late)
    served = await start(engine, second, limits=LIMITS, **SOON)
    assert (await served.post(STREAMED)).body.endswith(DONE)
    await eventually(lambda: late == ["asked", "left"])
    event = await served.event()
    (attempt,) = event["failed_attempts"]
    assert attempt["code"] == "hedged"
    assert attempt["replica"] != event["replica"]
    await nothing_is_left(served)


@pytest.mark.parametrize(("failure", "code"), [(dies, "lost"), (as_json({}, status=503), "busy")])
async def test_a_second_one_that_fails_changes_nothing(
    engine: Engine, second: Engine, start: Start, failure: Script, code: str
) -> None:
    """The first one's answer is waited for."""
    failed = asyncio.Event()

    async def fails(talk: Conversation, request: Received) -> None:
        await failure(talk, request)
        failed.set()

    async def slow(talk: Conversation, request: Received) -> None:
        await failed.wait()
        await recording("stream_cont").script()(talk, request)

    engine.script = second.script = first_and_second(slow, fails)
    served = await start(engine, second, limits=LIMITS, **SOON)
    assert (await served.post(STREAMED)).body.endswith(DONE)
    event = await served.event()
    assert [attempt["code"] for attempt in event["failed_attempts"]] == [code]
    assert event["status"] == "ok"
    await nothing_is_left(served)


async def test_both_may_fail(engine: Engine, second: Engine, start: Start) -> None:
    """Then the client hears of it as of one failure, and each one's loss is told."""
    late_death = asyncio.Event()

    async def dies_late(talk: Conversation, _: Received) -> None:
        await late_death.wait()
        talk.die()

    async def dies_second(talk: Conversation, _: Received) -> None:
        talk.die()
        late_death.set()

    engine.script = second.script = first_and_second(dies_late, dies_second)
    served = await start(engine, second, limits=LIMITS, **SOON)
    answer = await served.post(STREAMED)
    assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
    event = await served.event()
    assert sorted(attempt["replica"] for attempt in event["failed_attempts"]) == sorted([engine.name, second.name])
    await nothing_is_left(served)


async def test_a_client_that_leaves_ends_both(engine: Engine, second: Engine, start: Start) -> None:
    """Neither replica runs on for nobody."""
    late = Late()
    engine.script = second.script = late
    served = await start(engine, second, limits=LIMITS, **SOON)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        await eventually(lambda: late.count("asked") == 2)
        client.leave()
        await eventually(lambda: late.count("left") == 2)
    assert (await served.event())["status"] == "client_gone"
    await nothing_is_left(served)


async def test_by_p95_nothing_is_late_before_it_is_known_what_is(engine: Engine, second: Engine, start: Start) -> None:
    """After some dozens of first tokens it is; whole answers, whose first byte is their end, are never tried twice."""
    engine.script = second.script = recording("stream_cont").script()
    served = await start(engine, second, hedge_after="p95")
    model = served.lifecycle.fleet.models["tiny"]
    for _ in range(32):
        assert model.first_bytes.p95_ms is None
        assert (await served.post(STREAMED)).body.endswith(DONE)
    assert model.first_bytes.p95_ms is not None
    before = len(engine.received) + len(second.received)
    engine.script = second.script = first_and_second(Late(), recording("stream_cont").script())
    assert (await served.post(STREAMED)).body.endswith(DONE)
    assert len(engine.received) + len(second.received) == before + 2


async def test_the_retry_budget_bounds_second_attempts(
    engine: Engine, second: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When everything is late, everything twice would be later still."""
    late, refused = Late(), asyncio.Event()

    def spend(budget: RetryBudget, now_s: float) -> bool:
        refused.set()
        return False

    monkeypatch.setattr(RetryBudget, "spend", spend)
    engine.script = second.script = late
    served = await start(engine, second, **SOON)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        await asyncio.wait_for(refused.wait(), 5)
        client.leave()
        assert (await served.event())["status"] == "client_gone"
    assert late == ["asked", "left"]
