"""Requests tried again on another replica: which, how often, and what the client and the bill see of it."""

from __future__ import annotations

import json

import pytest

from gateway import relay
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    Conversation,
    Engine,
    Received,
    Script,
    as_json,
    as_stream,
    dies,
    recording,
    says_nothing,
)
from tests.integration.gateway.serving import ASKED, CHAT, MovedClock, eventually
from tests.integration.gateway.test_relay import DONE

STREAMED = ASKED | {"stream": True}
FULL = b'data: {"error":{"object":"error","message":"The queue is full","type":"ServiceUnavailable","code":503}}\n\n'
BAD = b'data: {"error":{"message":"too hot","type":"BadRequestError","param":"temperature","code":400}}\n\n'


def answers_after(*failures: Script) -> Script:
    """The first requests fail so, wherever they go; then all is well."""
    left = list(failures)
    well = recording("stream_cont").script()

    async def script(talk: Conversation, request: Received) -> None:
        await (left.pop(0) if left else well)(talk, request)

    return script


@pytest.mark.parametrize("failure", [dies, as_json({}, status=429), as_stream(FULL, DONE)])
async def test_the_client_sees_only_the_replica_that_answers(
    engine: Engine, second: Engine, start: Start, failure: Script
) -> None:
    """One that dies, is full, or says in its stream that it is, before a byte was sent on: the other one answers."""
    engine.script = second.script = answers_after(failure)
    served = await start(engine, second)
    answer = await served.post(STREAMED)
    assert (answer.status, answer.body[-len(DONE) :]) == (200, DONE)
    assert b"error" not in answer.body
    assert len(engine.received) == len(second.received) == 1
    event = await served.event()
    assert event["status"] == "ok"
    assert [attempt["code"] for attempt in event["failed_attempts"]] == ["lost" if failure is dies else "busy"]


async def test_a_refusal_in_the_stream_is_the_clients(engine: Engine, second: Engine, start: Start) -> None:
    """A 400 under a 200 is a 400, in one piece, and no reason to try elsewhere. Nothing is billed."""
    engine.script = second.script = as_stream(BAD, DONE)
    served = await start(engine, second)
    answer = await served.post(STREAMED)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert (answer.error["message"], answer.error["param"]) == ("too hot", "temperature")
    assert len(engine.received) + len(second.received) == 1
    event = await served.event()
    assert (event["status"], event["usage"]["input_tokens"]) == ("refused", 0)


async def test_a_failure_in_the_stream_is_not_tried_again(engine: Engine, second: Engine, start: Start) -> None:
    """A 500 may have computed the whole prompt: the client is told, as of any 500, and chooses."""
    engine.script = second.script = as_stream(FULL.replace(b"503", b"500"), DONE)
    served = await start(engine, second)
    answer = await served.post(STREAMED)
    assert (answer.status, answer.error["code"]) == (502, "engine_error")
    assert len(engine.received) + len(second.received) == 1
    assert (await served.event())["status"] == "engine_error"


@pytest.mark.parametrize("cut", [1, 20, len(FULL) - 1])
async def test_a_first_event_in_pieces(engine: Engine, second: Engine, start: Start, cut: int) -> None:
    """The rest of it is waited for."""

    async def torn(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(FULL[:cut])
        await eventually(lambda: served.replica(engine).in_flight + served.replica(second).in_flight)
        talk.chunk(FULL[cut:] + DONE)
        talk.end()

    engine.script = second.script = answers_after(torn)
    served = await start(engine, second)
    assert (await served.post(STREAMED)).body.endswith(DONE)
    assert len(engine.received) == len(second.received) == 1


async def test_a_first_event_that_does_not_end(engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for a moment, then what there is goes on: the client is not kept from its answer."""
    monkeypatch.setattr(relay, "FIRST_EVENT_WAIT_S", 0.01)
    first, *rest = recording("stream_cont").events

    async def slow(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(first[:30])
        await eventually(lambda: len(looked) == 1)
        for event in (first[30:], *rest):
            talk.chunk(event)
        talk.end()

    looked: list[bool] = []
    look = relay.Answer.look

    async def seen(answer: relay.Answer) -> None:
        await look(answer)
        looked.append(True)

    monkeypatch.setattr(relay.Answer, "look", seen)
    engine.script = slow
    served = await start(engine)
    answer = await served.post(STREAMED)
    assert answer.status == 200
    assert json.loads(answer.body.split(b"\n\n")[0][6:])["choices"][0]["delta"]["role"] == "assistant"
    assert answer.body.endswith(DONE)


async def test_the_retry_budget_ends(engine: Engine, second: Engine, start: Start) -> None:
    """Every attempt dies: so many requests are tried twice as the budget allows, the others once."""
    engine.script = second.script = dies
    served = await start(engine, second, clock=MovedClock())
    budget = served.lifecycle.fleet.models["tiny"].retries
    while budget._saved >= 3:
        assert budget.spend(served.gateway.clock.now_ms() / 1000)
    answers = [await served.post(STREAMED) for _ in range(6)]
    assert {(answer.status, answer.error["code"]) for answer in answers} == {(502, "upstream_lost")}
    assert len(engine.received) + len(second.received) == 6 + 2
    attempts = [len(event["failed_attempts"]) for event in await served.events(at_least=6)]
    assert sorted(attempts) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("patience", "tried"), [("30", 2), ("5", 1), ("soon", 2)])
async def test_nothing_is_tried_for_a_client_that_has_given_up(
    engine: Engine, second: Engine, start: Start, patience: str, tried: int
) -> None:
    """The SDKs say how long they wait for a first byte; after that nobody reads what a second replica would answer."""
    clock = MovedClock()

    async def script(talk: Conversation, _: Received) -> None:
        clock.advance_ms(10_000)
        talk.die()

    engine.script = second.script = script
    served = await start(engine, second, clock=clock)
    assert (await served.post(STREAMED, x_stainless_timeout=patience)).status == 502
    assert len(engine.received) + len(second.received) == tried


async def test_a_silent_replica_is_not_doubled(engine: Engine, second: Engine, start: Start) -> None:
    """A prompt may have been computed all the while: a second replica would burn as much again, for a client that has
    waited for all of it."""
    engine.script = second.script = says_nothing
    served = await start(engine, second)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        await eventually(lambda: engine.received or second.received)
        for replica in served.lifecycle.fleet.replicas:
            replica.sweep(now_s=1e12, silence_s=600.0)
        answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
    assert len(engine.received) + len(second.received) == 1
