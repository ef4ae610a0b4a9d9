"""What is counted: parts of usage, answers that were cut, engines that tell nothing, failed attempts, checkpoints."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.call import Reservation
from gateway.lifecycle import Lifecycle
from gateway.metering import UsageEvent
from gateway.wire import NO_USAGE, Endpoint, parse, prompt_text
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    Conversation,
    Engine,
    Received,
    as_json,
    as_stream,
    as_stream_cut_after,
    dies,
    recording,
)
from tests.integration.gateway.serving import ASKED, CHAT, eventually
from tests.integration.gateway.test_relay import DONE, chunk, final

STREAMED = ASKED | {"stream": True}
PROMPT_MOST = len(json.dumps(ASKED["messages"])) + 256
"""Tokens: at most one for each byte, and room for the template."""


def prompt_of(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def reservations(monkeypatch: pytest.MonkeyPatch) -> list[Reservation]:
    """Every reservation that is made."""
    made: list[Reservation] = []
    reserve = Lifecycle._reserve

    def keep(self: Lifecycle, *args: Any, **named: Any) -> Reservation:
        made.append(reserve(self, *args, **named))
        return made[-1]

    monkeypatch.setattr(Lifecycle, "_reserve", keep)
    return made


async def test_checkpoints(
    engine: Engine, second: Engine, start: Start, reservations: list[Reservation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a gateway that dies now would bill: nothing before the first token, then what the engine has reported, with
    its cost and what the engine may have counted beyond."""
    more = asyncio.Event()

    async def script(talk: Conversation, _: Received) -> None:
        await more.wait()
        talk.stream()
        talk.chunk(chunk(0, "x", 9, 1))
        more.clear()
        await more.wait()
        talk.chunk(chunk(0, "y", 9, 7))
        await talk.gone.wait()

    engine.script = script
    served = await start(engine)
    before: list[UsageEvent] = []
    enter = Reservation.__aenter__

    async def entered(self: Reservation) -> Reservation:
        await enter(self)
        before.append(self.snapshot())
        return self

    monkeypatch.setattr(Reservation, "__aenter__", entered)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key, x_request_id="one")
        await eventually(lambda: engine.received)
        waiting = reservations[0].snapshot()
        more.set()
        await client.head()
        await client.chunk()
        first = reservations[0].snapshot()
        more.set()
        await client.chunk()
        later = reservations[0].snapshot()
    for snapshot in (*before, waiting, first, later):
        assert (snapshot.id, snapshot.tenant, snapshot.model, snapshot.status) == (
            "one",
            "acme",
            "tiny",
            "gateway_lost",
        )
        assert snapshot.price_epoch.startswith("policy:")
    assert (before[0].replica, before[0].undelivered_input_max, before[0].undelivered_output_max) == ("", 0, 0)
    assert before[0].usage == waiting.usage == NO_USAGE
    assert waiting.replica == engine.name
    assert (waiting.undelivered_input_max, waiting.undelivered_output_max) == (PROMPT_MOST, 20)
    assert (first.usage.input_tokens, first.usage.output_tokens, first.cost_nanousd) == (9, 1, 5500)
    assert (later.usage.input_tokens, later.usage.output_tokens, later.cost_nanousd) == (9, 7, 11_500)
    assert (later.undelivered_input_max, later.undelivered_output_max) == (0, 13)
    assert not later.estimated
    event = await served.event()
    assert event["status"] == "client_gone"
    assert event["usage"]["output_tokens"] == later.usage.output_tokens
    assert event["undelivered_output_max"] == 13


async def test_checkpoint_of_a_stream_that_tells_nothing(
    engine: Engine, start: Start, reservations: list[Reservation]
) -> None:
    """A Responses stream is billed at its least: a token for each event, and the prompt's least."""
    events = recording("responses_stream").events

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        for event in events[:6]:
            talk.chunk(event)
        await talk.gone.wait()

    engine.script = script
    served = await start(engine)
    async with served.connect() as client:
        client.post(
            "/v1/responses",
            {"model": "tiny", "input": "import os", "stream": True, "max_output_tokens": 5},
            key=served.key,
        )
        await client.head()
        got = b""
        while got.count(b"\n\n") < 6:
            got += await client.chunk()
        snapshot = reservations[0].snapshot()
    assert (snapshot.usage.input_tokens, snapshot.usage.output_tokens, snapshot.estimated) == (0, 2, True)
    assert (snapshot.undelivered_input_max, snapshot.undelivered_output_max) == (11 + 256, 3)
    event = await served.event()
    assert event["usage"]["input_tokens"] == 7


async def test_a_cut_after_a_warm_prefix(engine: Engine, second: Engine, start: Start) -> None:
    """vLLM tells the cached share only at the end: of a cut it is what the replica is known to have seen before."""
    engine.script = second.script = as_stream_cut_after(chunk(0, "x", 1000, 1))
    served = await start(engine, second)
    shared = "s" * 2000
    for number in range(2):
        await served.post(STREAMED | {"messages": prompt_of(shared + f"{number}" * 1000)})
    cold, warm = await served.events(at_least=2)
    assert cold["replica"] == warm["replica"]
    assert cold["cached_predicted"] is warm["cached_predicted"] is True
    assert cold["usage"]["input_cached_tokens"] == 0
    asked = STREAMED | {"messages": prompt_of(shared + "1" * 1000)}
    text_bytes = len(prompt_text(parse(Endpoint.CHAT, json.dumps(asked).encode())))
    assert warm["usage"]["input_cached_tokens"] == -(-1000 * 7 * 256 // text_bytes)
    assert warm["cost_nanousd"] < cold["cost_nanousd"]
    await served.post(STREAMED | {"messages": prompt_of(shared + "1" * 1000)})
    same = (await served.events(at_least=3))[2]
    assert same["usage"]["input_cached_tokens"] == same["usage"]["input_tokens"] == 1000


CHAT_SAID = {"role": "assistant", "content": "one two", "reasoning": "so it goes ", "tool_calls": None}
TOOL_SAID = {"content": None, "tool_calls": [{"function": {"name": "look ", "arguments": '{"at": 7}'}}]}
MESSAGE_ASKED = {"model": "tiny", "messages": ASKED["messages"], "max_tokens": 20}
RESPONSE_ASKED = {"model": "tiny", "input": "Hi"}
RESPONSE_SAID = [
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so it goes "}], "summary": []},
    {"type": "message", "content": [{"type": "output_text", "text": "one two"}]},
]


@pytest.mark.parametrize(
    ("path", "body", "answer", "tokens"),
    [
        (CHAT, ASKED, {"choices": [{"index": 0, "message": CHAT_SAID}]}, 5),
        (CHAT, ASKED | {"n": 2}, {"choices": [{"message": CHAT_SAID}, {"message": TOOL_SAID}]}, 8),
        ("/v1/completions", {"model": "tiny", "prompt": "Hi"}, {"choices": [{"text": "one two three"}]}, 3),
        ("/v1/responses", RESPONSE_ASKED, {"output": RESPONSE_SAID}, 5),
        ("/v1/messages", MESSAGE_ASKED, {"content": [{"type": "text", "text": "one two"}]}, 2),
        ("/v1/messages", MESSAGE_ASKED, {"content": [{"type": "tool_use", "name": "look ", "input": {"at": 7}}]}, 3),
        ("/v1/embeddings", {"model": "tiny", "input": "Hi"}, {"data": [{"embedding": [0.5]}]}, 0),
    ],
)
async def test_a_whole_answer_without_usage(
    engine: Engine, start: Start, path: str, body: Any, answer: Any, tokens: int
) -> None:
    """Prompt and text are counted by the engine's own tokenizer, and the event says so."""
    engine.script = as_json(answer)
    served = await start(engine)
    assert (await served.post(body, path)).json == answer
    event = await served.event()
    assert (event["status"], event["estimated"]) == ("ok", True)
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (7, tokens)
    assert event["cost_nanousd"] == 3500 + 1000 * tokens
    assert "one two" not in json.dumps(event)


async def test_no_usage_and_no_tokenizer(engine: Engine, start: Start) -> None:
    """What is sure is billed: a token for each answer with text; the prompt at its least."""
    engine.prompt_tokens = None
    engine.script = as_json({"choices": [{"index": 0, "message": CHAT_SAID}]})
    served = await start(engine)
    await served.post()
    event = await served.event()
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"], event["estimated"]) == (0, 1, True)


def said(index: int, text: str, **members: Any) -> bytes:
    """A chat's event without usage."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "x", "choices": [choice], **members}).encode() + b"\n\n"


def named(kind: str, **members: Any) -> bytes:
    """An event of Responses or Messages."""
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **members}).encode() + b"\n\n"


def message_delta(text: str) -> bytes:
    return named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


STREAMS = {
    "chat": (CHAT, ASKED, [said(0, ""), said(0, "one"), said(0, " two three")], [DONE], 3),
    "chat, usage null": (CHAT, ASKED, [said(0, "one", usage=None), said(0, " two", usage=None)], [DONE], 2),
    "chat twice": (CHAT, ASKED | {"n": 2}, [said(0, "one"), said(1, "un"), said(0, " two")], [DONE], 3),
    "completions": (
        "/v1/completions",
        {"model": "tiny", "prompt": "Hi"},
        [b'data: {"choices":[{"index":0,"text":"one two"}]}\n\n', b'data: {"choices":[{"text":" three"}]}\n\n'],
        [DONE],
        3,
    ),
    "messages": (
        "/v1/messages",
        MESSAGE_ASKED,
        [named("message_start", message={"content": []}), message_delta("one two"), message_delta(" three")],
        [named("message_stop")],
        3,
    ),
    "responses": (
        "/v1/responses",
        RESPONSE_ASKED,
        [named("response.created"), named("response.output_text.delta", delta="so it goes one two")],
        [named("response.completed", response={"output": RESPONSE_SAID})],
        5,
    ),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_without_usage(engine: Engine, start: Start, name: str) -> None:
    """The delivered text is counted by the engine's own tokenizer once it has ended, and the event says so."""
    path, body, events, end, tokens = STREAMS[name]
    engine.script = as_stream(*events, *end)
    served = await start(engine)
    answer = await served.post(body | {"stream": True}, path)
    assert answer.body == b"".join([*events, *end])
    event = await served.event()
    assert (event["status"], event["estimated"]) == ("ok", True)
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (7, tokens)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("tokenizer", [True, False])
async def test_a_stream_without_usage_that_is_cut(engine: Engine, start: Start, name: str, tokenizer: bool) -> None:
    """What was delivered is counted, at least a token for each event with text. A response repeats its text only at its
    end, and so is counted by its events."""
    path, body, events, _, tokens = STREAMS[name]
    engine.script = as_stream_cut_after(*events)
    engine.prompt_tokens = 7 if tokenizer else None
    served = await start(engine)
    await served.post(body | {"stream": True}, path)
    event = await served.event()
    with_text = sum(b"one" in e or b"two" in e or b"un" in e or b"three" in e for e in events)
    counted = tokens if tokenizer and path != "/v1/responses" else with_text
    assert (event["status"], event["estimated"]) == ("upstream_lost", True)
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (7 if tokenizer else 0, counted)


async def test_a_stream_with_usage_asks_no_tokenizer(engine: Engine, start: Start) -> None:
    """Nor is its text kept."""
    engine.script = recording("stream_cont").script()
    served = await start(engine)
    await served.post(STREAMED)
    assert "estimated" not in await served.event()
    assert engine.tokenized == []


async def test_usage_told_only_at_the_end(engine: Engine, start: Start) -> None:
    """An engine without running usage is billed by its last word."""
    engine.script = as_stream(said(0, "one two three", usage=None), final(9, 4) + DONE)
    served = await start(engine)
    await served.post(STREAMED)
    event = await served.event()
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (9, 4)
    assert "estimated" not in event
    assert engine.tokenized == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_that_is_finished_without_its_client(engine: Engine, start: Start, streamed: bool) -> None:
    """`on_disconnect: finish`: the engine goes on, its answer is read to the end and billed whole."""
    more = asyncio.Event()

    async def script(talk: Conversation, request: Received) -> None:
        if not streamed:
            await more.wait()
            await recording("chat").script()(talk, request)
            return
        talk.stream()
        talk.chunk(chunk(0, "x", 9, 1))
        await more.wait()
        for count in range(2, 9):
            talk.chunk(chunk(0, "y" * 100_000, 9, count))
            await talk.room()
        talk.chunk(final(9, 8) + DONE)
        talk.end()

    engine.script = script
    served = await start(engine, on_disconnect="finish")
    async with served.connect() as client:
        client.post(CHAT, STREAMED if streamed else ASKED, key=served.key)
        await eventually(lambda: engine.received)
        if streamed:
            await client.head()
            await client.chunk()
        client.leave()
        await eventually(lambda: not served.server.server_state.connections)
    assert not served.lifecycle.idle
    more.set()
    event = await served.event()
    assert event["status"] == "client_gone"
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (9, 8)
    assert event["cost_nanousd"] == 4500 + 8000
    assert not {"estimated", "cached_predicted", "undelivered_output_max"} & set(event)
    await eventually(lambda: served.lifecycle.idle)
    assert len(engine.connections) >= 1, "the connection can carry another request"


async def test_what_nobody_waits_for_ends_at_the_drain_deadline(engine: Engine, start: Start) -> None:
    """`on_disconnect: finish` does not hold up a gateway that stops."""

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(chunk(0, "x", 9, 5))
        await talk.gone.wait()

    engine.script = script
    served = await start(engine, on_disconnect="finish", settings={"drain_timeout_s": 0.1})
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        await client.head()
        await client.chunk()
        client.leave()
        await eventually(lambda: not served.server.server_state.connections)
    served.gateway.drain()
    event = await served.event()
    assert (event["status"], event["usage"]["output_tokens"]) == ("client_gone", 5)
    assert (event.get("undelivered_input_max", 0), event["undelivered_output_max"]) == (0, 15)


async def test_a_failed_attempt_is_the_platforms_loss(engine: Engine, second: Engine, start: Start) -> None:
    """A retried request bills one answer; what the attempt that died can have burnt is on the event and in a metric."""
    engine.script = second.script = recording("chat").script()
    served = await start(engine, second)
    assert (await served.post()).status == 200
    chosen, other = (engine, second) if engine.received else (second, engine)
    chosen.scripts.append(dies)
    assert (await served.post()).status == 200
    _, event = await served.events(at_least=2)
    assert event["failed_attempts"] == [
        {"replica": chosen.name, "code": "lost", "input_tokens": PROMPT_MOST, "output_tokens": 20}
    ]
    assert (event["replica"], event["status"]) == (other.name, "ok")
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (9, 8)
    assert "undelivered_input_max" not in event
    exposed = (await served.get("/metrics")).body.decode()
    assert f'mtok_lost_tokens_total{{kind="input",replica="{chosen.name}"}} {PROMPT_MOST}.0' in exposed
    assert f'mtok_lost_tokens_total{{kind="output",replica="{chosen.name}"}} 20.0' in exposed


async def test_attempts_that_all_fail(engine: Engine, second: Engine, start: Start) -> None:
    """Each replica's loss is told apart; nothing is billed."""
    engine.script = second.script = dies
    served = await start(engine, second)
    assert (await served.post()).status == 502
    event = await served.event()
    assert {attempt["replica"] for attempt in event["failed_attempts"]} == {engine.name, second.name}
    assert all(attempt["input_tokens"] == PROMPT_MOST for attempt in event["failed_attempts"])
    assert (event["status"], event.get("cost_nanousd", 0)) == ("upstream_lost", 0)
    assert "undelivered_input_max" not in event


@pytest.mark.parametrize(("status", "burnt"), [(500, (PROMPT_MOST, 20)), (400, (0, 0)), (503, (0, 0))])
async def test_an_engines_refusal(engine: Engine, start: Start, status: int, burnt: tuple[int, int]) -> None:
    """Nothing is billed; an engine that failed may have counted anything before, one that refused has not begun."""
    engine.script = as_json({"error": {"message": "no", "code": status}}, status=status)
    served = await start(engine)
    await served.post()
    event = await served.event()
    assert event["usage"]["input_tokens"] == event["usage"]["output_tokens"] == 0
    assert (event.get("undelivered_input_max", 0), event.get("undelivered_output_max", 0)) == burnt
    assert ("failed_attempts" in event) == (status == 503)


async def test_a_refused_connection_burns_nothing(engine: Engine, second: Engine, start: Start) -> None:
    """The request runs elsewhere; the attempt is told, without tokens."""
    engine.script = second.script = recording("chat").script()
    served = await start(engine, second)
    first = await served.post()
    assert first.status == 200
    chosen = engine if engine.received else second
    await chosen.refuse()
    for connection in list(chosen.connections):
        connection.die()
    assert (await served.post()).status == 200
    event = (await served.events(at_least=2))[1]
    assert event["failed_attempts"] == [{"replica": chosen.name, "code": "connect"}]
    assert event["replica"] != chosen.name
    assert event["usage"]["output_tokens"] == 8
