"""Answers that do not reach their end: the client left, the engine died, the gateway stops. What is billed, said."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from gateway import lifecycle, relay
from gateway.metering._journal import Journal
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    Conversation,
    Engine,
    Received,
    as_stream,
    as_stream_cut_after,
    recording,
    says_nothing,
)
from tests.integration.gateway.serving import ASKED, CHAT, eventually
from tests.integration.gateway.test_relay import DONE, RUNNING_USAGE, chunk, final

STREAMED = ASKED | {"stream": True}
LIMITS = {"requests_per_minute": 100, "tokens_per_minute": 5000, "concurrent_requests": 2, "budget_usd": 1}


async def everything_is_back(served: Any, *, used: int = 0) -> None:
    """No lease is left and no money is reserved; of tokens/min only what was used is gone."""
    left = (await served.usage())["limits"]
    assert left["concurrent_requests"]["remaining"] == 2
    assert left["budget_usd"]["reserved_usd"] == "0.00"
    assert left["tokens_per_minute"]["remaining"] >= 5000 - used
    assert served.lifecycle.idle
    assert all(replica.in_flight == 0 for replica in served.lifecycle.fleet.replicas)
    assert not any(replica._busy for replica in served.lifecycle.fleet.replicas)


# The client leaves.


@pytest.mark.parametrize("body", [ASKED, STREAMED])
async def test_a_client_that_leaves_before_the_first_byte(engine: Engine, start: Start, body: dict[str, Any]) -> None:
    """The engine's connection closes at once, streamed or not; nothing had been generated, so nothing is billed."""
    left_after_s: list[float] = []

    async def wait(talk: Conversation, _: Received) -> None:
        await talk.gone.wait()
        left_after_s.append(asyncio.get_running_loop().time())

    engine.script = wait
    served = await start(engine, limits=LIMITS)
    async with served.connect() as client:
        client.post(CHAT, body, key=served.key)
        await eventually(lambda: engine.received)
        began_s = asyncio.get_running_loop().time()
        client.leave()
        await eventually(lambda: left_after_s)
    assert left_after_s[0] - began_s < 0.5
    event = await served.event()
    assert event["status"] == "client_gone"
    assert event["replica"] == engine.name
    assert event["usage"]["output_tokens"] == 0
    assert event.get("cost_nanousd", 0) == 0
    await everything_is_back(served)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_leaves_a_stream_pays_for_what_was_reported(
    engine: Engine, start: Start, count: int
) -> None:
    """Cut after k chunks: the last usage the engine reported is billed, the engine's connection closes at once."""
    gone = asyncio.Event()

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        for k in range(1, count + 1):
            talk.chunk(chunk(0, "x", 9, 7 * k))
        await talk.gone.wait()
        gone.set()

    engine.script = script
    served = await start(engine, limits=LIMITS)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        assert (await client.head())[0] == 200
        got = b""
        while got.count(b"\n\n") < count:
            got += await client.chunk()
        client.leave()
        await asyncio.wait_for(gone.wait(), 1)
    event = await served.event()
    assert event["status"] == "client_gone"
    assert event["usage"] == {"input_tokens": 9, "input_cached_tokens": 0, "output_tokens": 7 * count}
    assert not event.get("estimated")
    assert event["cost_nanousd"] == 4500 + 7000 * count
    await everything_is_back(served, used=9 + 7 * count)


async def test_a_client_that_leaves_three_answers_pays_for_each(engine: Engine, start: Start) -> None:
    """vLLM counts each choice for itself: a cut is billed with the sum of their last counts and the prompt once."""

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        for index, count in ((0, 1), (1, 1), (2, 1), (0, 5), (2, 3)):
            talk.chunk(chunk(index, "x", 9, count))
        await talk.gone.wait()

    engine.script = script
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, STREAMED | {"n": 3}, key=served.key)
        await client.head()
        got = b""
        while got.count(b"\n\n") < 5:
            got += await client.chunk()
    assert (await served.event())["usage"] == {"input_tokens": 9, "input_cached_tokens": 0, "output_tokens": 9}


async def test_a_client_that_half_closes_is_gone(engine: Engine, start: Start) -> None:
    """A client that can say no more has left, as far as HTTP servers go: the engine stops."""
    engine.script = says_nothing
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key)
        await eventually(lambda: engine.received)
        client.writer.write_eof()
        assert (await served.event())["status"] == "client_gone"


async def test_a_client_that_leaves_while_its_prompt_is_counted(engine: Engine, start: Start) -> None:
    """Before a replica was chosen: the engine is not troubled at all, and the event says that the client left."""
    counting, count = asyncio.Event(), asyncio.Event()
    answer = engine.answer

    async def slow(talk: Conversation, request: Received) -> None:
        if request.path == "/tokenize":
            counting.set()
            await count.wait()
        await answer(talk, request)

    engine.answer = slow  # type: ignore[method-assign]
    engine.script = recording("chat").script()
    served = await start(engine, limits=LIMITS)
    async with served.connect() as client:
        client.post(CHAT, ASKED | {"max_tokens": 4000}, key=served.key)
        await counting.wait()
        client.leave()
        await eventually(lambda: len(served.server.server_state.connections) == 0)
    count.set()
    event = await served.event()
    assert (event["status"], event.get("code", "")) == ("client_gone", "")
    assert engine.received == []
    await everything_is_back(served)


async def test_a_client_that_leaves_while_it_sends(engine: Engine, start: Start) -> None:
    """Half a request is no request: nothing is booked, nothing fails, and the next one is served."""
    engine.script = recording("chat").script()
    served = await start(engine)
    async with served.connect() as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer {served.key}\r\ncontent-length: 50\r\n\r\n{{".encode()
        )
        await eventually(lambda: served.server.server_state.tasks)
        client.leave()
        await eventually(lambda: not served.server.server_state.tasks)
    assert (await served.post()).status == 200
    assert len(await served.events()) == 1


# The engine dies.


@pytest.mark.parametrize("count", [1, 3])
async def test_an_engine_that_dies_in_a_stream(engine: Engine, start: Start, count: int) -> None:
    """The stream ends with an error event and [DONE], not silently; what was delivered is billed."""
    chunks = [chunk(0, "x", 9, k) for k in range(1, count + 1)]
    engine.script = as_stream_cut_after(*chunks)
    served = await start(engine, limits=LIMITS)
    answer = await served.post(STREAMED)
    assert (answer.status, answer.complete) == (200, True)
    said, error = answer.body.removesuffix(DONE).rsplit(b"data: ", 1)
    assert said == b"".join(RUNNING_USAGE.sub(b"", one) for one in chunks)
    told = json.loads(error)["error"]
    assert sorted(told) == ["code", "message", "param", "type"]
    assert (told["code"], told["type"]) == ("upstream_lost", "upstream_error")
    event = await served.event()
    assert (event["status"], event["code"]) == ("upstream_lost", "upstream_lost")
    assert event["usage"] == {"input_tokens": 9, "input_cached_tokens": 0, "output_tokens": count}
    await everything_is_back(served, used=9 + count)


async def test_an_engine_that_dies_in_the_middle_of_an_event(engine: Engine, start: Start) -> None:
    """Half an event is not passed on, so that the error event can be read."""
    engine.script = as_stream_cut_after(chunk(0, "x", 9, 1), chunk(0, "y", 9, 2)[:40])
    served = await start(engine)
    answer = await served.post(STREAMED)
    events = [event for event in answer.body.split(b"\n\n") if event]
    assert json.loads(events[0][6:])["choices"][0]["delta"] == {"content": "x"}
    assert json.loads(events[1][6:])["error"]["code"] == "upstream_lost"
    assert events[2] == b"data: [DONE]"
    assert (await served.event())["usage"]["output_tokens"] == 1


async def test_an_engine_that_dies_after_the_last_event(engine: Engine, start: Start) -> None:
    """All events were there and only the end of the transfer encoding was not: the answer is whole."""
    engine.script = as_stream_cut_after(chunk(0, "x", 9, 1), chunk(0, "y", 9, 2) + final(9, 2) + DONE)
    served = await start(engine)
    answer = await served.post(STREAMED)
    assert answer.complete
    assert answer.body == RUNNING_USAGE.sub(b"", (chunk(0, "x", 9, 1) + chunk(0, "y", 9, 2)).decode().encode()) + DONE
    event = await served.event()
    assert event["status"] == "ok"
    assert event["usage"]["output_tokens"] == 2


@pytest.mark.parametrize("body", [b"garbage", b"zz\r\n", b"-5\r\n"])
@pytest.mark.parametrize("at_once", [False, True])
async def test_an_engine_whose_framing_breaks(engine: Engine, start: Start, body: bytes, at_once: bool) -> None:
    """Bytes that are no chunk end the stream as a death does; what came before them, in the same read too, counts."""
    read = asyncio.Event()

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(chunk(0, "x", 9, 1))
        await read.wait()
        more = chunk(0, "y", 9, 2) if at_once else b""
        talk.write((b"%x\r\n%b\r\n" % (len(more), more) if more else b"") + body + b"\r\n")

    engine.script = script
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        await client.head()
        got = await client.chunk()
        read.set()
        while part := await client.chunk():
            got += part
    delivered = [chunk(0, "x", 9, 1), *([chunk(0, "y", 9, 2)] if at_once else [])]
    assert got.startswith(b"".join(RUNNING_USAGE.sub(b"", one) for one in delivered))
    assert b'"upstream_lost"' in got
    assert got.endswith(DONE)
    assert (await served.event())["usage"]["output_tokens"] == len(delivered)


async def test_a_responses_stream_cut(engine: Engine, start: Start) -> None:
    """Its error is an event of its own dialect; a delta is a token at least, the prompt is counted: estimated."""
    events = recording("responses_stream").events
    assert sum(b".delta\n" in event for event in events[:6]) == 2
    engine.script = as_stream_cut_after(*events[:6])
    served = await start(engine)
    answer = await served.post({"model": "tiny", "input": "import os", "stream": True}, "/v1/responses")
    said, error = answer.body.split(b"event: error\ndata: ")
    assert said == b"".join(events[:6])
    told = json.loads(error)
    assert (told["type"], told["code"], told["param"]) == ("error", "upstream_lost", None)
    assert told["message"]
    event = await served.event()
    assert event["usage"] == {"input_tokens": 7, "input_cached_tokens": 0, "output_tokens": 2}
    assert event["estimated"] is True


async def test_a_messages_stream_cut(engine: Engine, start: Start) -> None:
    """As Anthropic's SDK reads it; the input is the engine's own count."""
    events = recording("messages_stream").events
    assert sum(b"content_block_delta" in event for event in events[:5]) == 3
    engine.script = as_stream_cut_after(*events[:5])
    served = await start(engine)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "stream": True}
    answer = await served.post(body, "/v1/messages")
    said, error = answer.body.split(b"event: error\ndata: ")
    assert said == b"".join(events[:5])
    assert json.loads(error)["type"] == "error"
    assert json.loads(error)["error"]["code"] == "upstream_lost"
    event = await served.event()
    assert event["usage"] == {"input_tokens": 9, "input_cached_tokens": 0, "output_tokens": 3}
    assert event["estimated"] is True


async def test_an_engine_that_dies_in_a_whole_answer(engine: Engine, start: Start) -> None:
    """Nothing had reached the client, so it reads 502; nothing is billed."""

    async def script(talk: Conversation, _: Received) -> None:
        talk.head(200, "content-type: application/json", "content-length: 1000")
        talk.write(b'{"id":"x",')
        await talk.room()
        talk.close()

    engine.script = script
    served = await start(engine, limits=LIMITS)
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
    event = await served.event()
    assert event["status"] == "upstream_lost"
    await everything_is_back(served)


async def test_an_engine_that_dies_in_an_answer_too_long_to_hold(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its beginning is with the client already: the connection breaks, which a client can see; a 200 would lie."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(relay, "MAX_WHOLE_BYTES", 1000)

    async def script(talk: Conversation, _: Received) -> None:
        talk.head(200, "content-type: application/json", "content-length: 1000000")
        talk.write(b'{"id":"' + b"x" * 500_000)
        await talk.room()
        talk.close()

    engine.script = script
    served = await start(engine, limits=LIMITS)
    answer = await served.post()
    assert (answer.status, answer.complete) == (200, False)
    event = await served.event()
    assert (event["status"], event["code"]) == ("upstream_lost", "upstream_lost")
    await everything_is_back(served)


async def test_an_error_event_in_mid_stream(engine: Engine, start: Start) -> None:
    """The engine's own error event reaches the client as it is; what was generated before is billed."""
    error = (
        b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "param": null, "code": 500}}'
    )
    engine.script = as_stream(chunk(0, "x", 9, 1), chunk(0, "y", 9, 2), error + b"\n\n", DONE)
    served = await start(engine, limits=LIMITS)
    answer = await served.post(STREAMED)
    assert answer.body.endswith(error + b"\n\n" + DONE)
    event = await served.event()
    assert event["status"] == "engine_error"
    assert event["usage"]["output_tokens"] == 2
    await everything_is_back(served, used=11)


async def test_a_failure_of_ours(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a mistake in the gateway gives back what was reserved, is booked as what it is, and says 500 without why."""
    served = await start(engine, limits=LIMITS)

    def fail(*_: bytes) -> list[int]:
        raise ValueError("secret detail")

    monkeypatch.setattr(lifecycle, "prefix_chain", fail)
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "secret detail" in caplog.text
    event = await served.event()
    assert (event["status"], event["code"]) == ("upstream_lost", "internal_error")
    await everything_is_back(served)


# The gateway stops.


async def test_draining(engine: Engine, start: Start) -> None:
    """New requests are refused with 503 and `Retry-After`, on open connections too; what runs ends well."""
    more = asyncio.Event()

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(chunk(0, "x", 9, 1))
        await more.wait()
        talk.chunk(chunk(0, "y", 9, 2) + final(9, 2) + DONE)
        talk.end()

    engine.script = script
    served = await start(engine, limits=LIMITS)
    async with served.connect() as client, served.connect() as other:
        client.post(CHAT, STREAMED, key=served.key)
        other.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await other.answer()).status == 200
        assert (await client.head())[0] == 200
        await client.chunk()
        served.gateway.drain()
        assert not served.gateway.idle
        assert (await served.get("/readyz")).status == 503
        assert (await served.get("/healthz")).status == 200
        for refused in (await served.post(), await _again(other, served.key)):
            assert (refused.status, refused.error["code"]) == (503, "shutting_down")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["retry-after-ms"] == "1000"
        more.set()
        rest = b""
        while part := await client.chunk():
            rest += part
        assert rest.endswith(DONE)
        await eventually(lambda: served.server.should_exit)
    event = await served.event()
    assert (event["status"], event["usage"]["output_tokens"]) == ("ok", 2)
    assert len(engine.received) == 1


async def _again(connection: Any, key: str) -> Any:
    connection.post(CHAT, ASKED, key=key)
    return await connection.answer()


async def test_the_drain_deadline(engine: Engine, start: Start) -> None:
    """Past it, running streams end with an error their clients can read, whole answers with 503; both are booked."""

    async def script(talk: Conversation, request: Received) -> None:
        if request.json.get("stream"):
            talk.stream()
            talk.chunk(chunk(0, "x", 9, 5))
        await talk.gone.wait()

    engine.script = script
    served = await start(engine, limits=LIMITS, settings={"drain_timeout_s": 0.1})
    async with served.connect() as streaming, served.connect() as waiting:
        streaming.post(CHAT, STREAMED, key=served.key)
        waiting.post(CHAT, ASKED, key=served.key)
        await streaming.head()
        await streaming.chunk()
        await eventually(lambda: len(engine.received) == 2)
        served.gateway.drain()
        rest = b""
        while part := await streaming.chunk():
            rest += part
        whole = await waiting.answer()
    assert json.loads(rest.removesuffix(DONE)[6:])["error"]["code"] == "shutdown"
    assert (whole.status, whole.error["code"]) == (503, "shutting_down")
    events = await served.events(at_least=2)
    assert sorted(event["status"] for event in events) == ["upstream_lost", "upstream_lost"]
    assert sorted(event["usage"]["output_tokens"] for event in events) == [0, 5]
    await everything_is_back(served, used=14)


# Settled before it ends.


@pytest.mark.parametrize("name", ["chat", "stream_cont"])
async def test_no_answer_ends_before_it_is_booked(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last bytes wait for the disk: while the journal takes no records no answer ends; then its event is there."""
    said = recording(name)
    pause_s = 0.4
    writable = threading.Event()
    on_disk: list[Any] = []
    commit = Journal._commit

    def when_writable(self: Journal, work: Any) -> Any:
        if work.records:
            writable.wait(10)
        committed = commit(self, work)
        on_disk.extend(committed)
        return committed

    monkeypatch.setattr(Journal, "_commit", when_writable)
    engine.script = said.script()
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, STREAMED if said.is_stream else ASKED, key=served.key)
        await eventually(lambda: engine.received)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        loop.call_later(pause_s, writable.set)
        await client.head()
        last = b""
        while not last.endswith(DONE if said.is_stream else b"}"):
            async with asyncio.timeout(10):
                last += await client.reader.read(65536)
            last = last.removesuffix(b"\r\n0\r\n\r\n").removesuffix(b"\r\n")
        assert loop.time() - began_s > pause_s * 0.9
        assert len(on_disk) == 1
    assert (await served.event())["status"] == "ok"


async def test_every_event_is_sent_on_before_the_next_has_come(engine: Engine, start: Start) -> None:
    """Nothing is held back but the end: the engine says the next event only once the client has read the one before."""
    read = asyncio.Semaphore(1)

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        for event in recording("stream_cont").events:
            await read.acquire()
            talk.chunk(event)
        talk.end()

    engine.script = script
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, STREAMED, key=served.key)
        await client.head()
        for _ in range(6):
            assert (await client.chunk()).count(b"\n\n") == 1
            read.release()
        read.release()  # the usage event, which is the gateway's alone
        assert await client.chunk() == DONE
        assert await client.chunk() == b""
