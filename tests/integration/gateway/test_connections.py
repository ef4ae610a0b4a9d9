"""Connections: kept alive, replaced when stale, slowed down with the client, and who may read what on them."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from gateway.fleet import _replica
from gateway.fleet._connection import HIGH_WATER_BYTES
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, as_json, recording, says_nothing
from tests.integration.gateway.serving import ASKED, CHAT, Served, eventually
from tests.integration.gateway.test_relay import DONE, chunk, final
from tests.integration.gateway.wire_client import Connection

READ_BYTES = 256 * 1024
"""The most uvloop reads at once."""


async def test_connections_to_engines_are_kept_alive(engine: Engine, start: Start) -> None:
    """One request after the other travels on one connection; two at once on two, of which both are kept."""
    engine.script = recording("chat").script()
    served = await start(engine)
    for _ in range(3):
        assert (await served.post()).status == 200
    assert len({request.connection for request in engine.received}) == 1

    async def when_both_are_there(talk: Conversation, request: Received) -> None:
        await eventually(lambda: len(engine.received) >= 5)
        await recording("chat").script()(talk, request)

    engine.script = when_both_are_there
    await asyncio.gather(served.post(), served.post())
    assert len({request.connection for request in engine.received}) == 2
    assert len(served.replica(engine)._idle) == 2


async def test_streams_leave_their_connection_usable(engine: Engine, start: Start) -> None:
    """A stream read to its end gives its connection back; one that was left does not."""
    engine.script = recording("stream_cont").script()
    served = await start(engine)
    body = ASKED | {"stream": True}
    await served.post(body)
    await served.post(body)
    assert len({request.connection for request in engine.received}) == 1


async def test_an_engines_wish_to_close_is_followed(engine: Engine, start: Start) -> None:
    """After `connection: close` the next request has a connection of its own."""
    engine.script = as_json(recording("chat").body, headers=("connection: close",))
    served = await start(engine)
    await served.post()
    await served.post()
    assert len({request.connection for request in engine.received}) == 2


async def test_a_stale_connection_is_replaced(engine: Engine, start: Start) -> None:
    """The engine closed an idle connection: the next request is sent once, on a new one, unseen by the client."""
    engine.script = recording("chat").script()
    served = await start(engine)
    await served.post()
    (idle,) = served.replica(engine)._idle
    (talk,) = [talk for talk in engine.connections if talk.number == engine.only.connection]
    talk.close()
    await eventually(lambda: idle.lost)
    assert (await served.post()).status == 200
    first, then = engine.received
    assert first.connection != then.connection


async def test_a_connection_idle_for_too_long_is_not_used(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's server closes connections idle for 5 s: ours are given up before that."""
    assert _replica.IDLE_TTL_S < 5
    engine.script = recording("chat").script()
    served = await start(engine)
    await served.post()
    monkeypatch.setattr(_replica, "IDLE_TTL_S", 0.0)
    assert (await served.post()).status == 200
    assert len({request.connection for request in engine.received}) == 2


@pytest.mark.parametrize(
    "noise",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong",
        b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nwro",
        b"HTTP/1.1 408 Request Timeout\r\nconne",
        b"\x00\x01\x02",
    ],
)
async def test_an_answer_nobody_asked_for_is_nobodys(engine: Engine, start: Start, noise: bytes) -> None:
    """What an engine says on an idle connection never becomes a part of the next request's answer."""
    engine.script = recording("chat").script()
    served = await start(engine)
    await served.post()
    (idle,) = served.replica(engine)._idle
    (talk,) = [talk for talk in engine.connections if talk.number == engine.only.connection]
    talk.write(noise)
    await eventually(lambda: idle.lost)
    answer = await served.post()
    assert (answer.status, answer.body) == (200, recording("chat").body)


async def test_two_answers_at_once_are_not_one(engine: Engine, start: Start) -> None:
    """An engine that answers twice is believed once, and its connection is not used again."""
    body = recording("chat").body
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def twice(talk: Conversation, _: Received) -> None:
        talk.write(head + body + head + body)

    engine.scripts.append(twice)
    engine.script = recording("chat").script()
    served = await start(engine)
    for _ in range(2):
        answer = await served.post()
        assert (answer.status, answer.body) == (200, body)
    assert len({request.connection for request in engine.received}) == 2


async def test_a_replica_that_comes_back_serves_again(engine: Engine, start: Start) -> None:
    """Refused connections take a replica out; the next probe that succeeds takes it back in."""
    engine.script = recording("chat").script()
    served = await start(engine)
    await engine.refuse()
    assert (await served.post()).status == 503
    assert not served.replica(engine).healthy
    await engine.listen()
    await served.lifecycle.fleet._probe_all()
    assert (await served.post()).status == 200


async def test_a_dead_replica_is_avoided(engine: Engine, second: Engine, start: Start) -> None:
    """Once a connection was refused the others serve everything, without trying it again."""
    engine.script = second.script = recording("chat").script()
    served = await start(engine, second)
    engine.kill()
    await served.lifecycle.fleet._probe_all()
    assert not served.replica(engine).healthy
    for number in range(8):
        answer = await served.post(ASKED | {"messages": [{"role": "user", "content": f"prompt {number}"}]})
        assert answer.status == 200
    assert (len(engine.received), len(second.received)) == (0, 8)
    assert (await served.get("/readyz")).status == 200


# The client's connection.


async def test_one_connection_for_many_requests(engine: Engine, start: Start) -> None:
    """Answers, refusals and pages of our own follow each other on one connection of the client."""
    engine.script = recording("chat").script()
    served = await start(engine)
    async with served.connect() as client:
        for body, status in ((ASKED, 200), ({}, 400), (ASKED, 200), (ASKED | {"model": "nope"}, 404), (ASKED, 200)):
            client.post(CHAT, body, key=served.key)
            assert (await client.answer()).status == status
        client.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await client.answer()).status == 200
        client.post(CHAT, ASKED, key="wrong")
        assert (await client.answer()).status == 401


async def test_pipelined_requests_are_answered_in_order(engine: Engine, start: Start) -> None:
    """Three at once on one connection: three answers, first come first."""
    engine.script = recording("chat").script()
    served = await start(engine)
    async with served.connect() as client:
        for number in range(3):
            client.post(CHAT, ASKED, key=served.key, x_request_id=f"r{number}")
        assert [(await client.answer()).headers["x-request-id"] for _ in range(3)] == ["r0", "r1", "r2"]


async def test_a_client_that_wants_to_close_is_closed_to(engine: Engine, start: Start) -> None:
    """`connection: close` ends the connection after the answer, which says so."""
    engine.script = recording("chat").script()
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key, connection="close")
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert await client.ended() == b""


async def test_a_body_refused_early_does_not_spoil_the_connection(engine: Engine, start: Start) -> None:
    """A refusal before the body was read: the body is passed over, and the next request is read as one."""
    engine.script = recording("chat").script()
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, b"x" * 200_000, key="mtok-nobody-knows-it")
        assert (await client.answer()).status == 401
        client.post(CHAT, ASKED, key=served.key)
        assert (await client.answer()).status == 200


# Back-pressure.


class Slow:
    """A client that has asked for a stream and reads only when told; small kernel buffers on its side."""

    def __init__(self, served: Served) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.setblocking(False)
        self._served = served

    async def ask(self) -> Connection:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._sock, ("127.0.0.1", self._served.port))
        reader, writer = await asyncio.open_connection(sock=self._sock, limit=4096)
        connection = Connection(reader, writer)
        connection.post(CHAT, ASKED | {"stream": True, "max_tokens": 4000}, key=self._served.key)
        await eventually(lambda: self._served.server.server_state.tasks)
        return connection


async def test_a_client_that_reads_slowly_slows_the_engine_down(engine: Engine, start: Start) -> None:
    """While the client does not read, the gateway stops reading the engine, and holds a bounded number of bytes; then
    every byte arrives, in order, and usage is exact."""
    text = "x" * 16_000
    blocked = asyncio.Event()
    events = [chunk(0, f"{number} {text}", 9, number) for number in range(1, 4001)]  # 64 MB, far over what TCP holds

    async def flood(talk: Conversation, _: Received) -> None:
        talk.stream()
        for event in events:
            talk.chunk(event)
            if not talk._room.is_set():
                try:
                    await asyncio.wait_for(talk.room(), 0.5)
                except TimeoutError:
                    blocked.set()
                    await talk.room()
            if talk.gone.is_set():
                return
        talk.chunk(final(9, 4000) + DONE)
        talk.end()

    engine.script = flood
    served = await start(engine)
    client = await Slow(served).ask()
    await asyncio.wait_for(blocked.wait(), 10)
    (upstream,) = served.replica(engine)._busy
    assert upstream._paused
    assert sum(map(len, upstream._chunks)) <= HIGH_WATER_BYTES + READ_BYTES
    (downstream,) = served.server.server_state.connections
    held: Any = downstream.transport
    assert held.get_write_buffer_size() <= HIGH_WATER_BYTES + READ_BYTES + 20_000
    (talk,) = [talk for talk in engine.connections if talk.number == engine.only.connection]
    sent_while_blocked = talk.sent_bytes
    assert sent_while_blocked < 24 * 1024 * 1024, "the kernel's buffers of four sockets, and not the whole stream"
    assert (await client.head())[0] == 200
    got, number = b"", 0
    while part := await client.chunk():
        got += part
        *whole, got = got.split(b"\n\n")
        for event in whole:
            number += 1
            assert number > 4000 or event.startswith(
                b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%d x' % number
            )
    assert number == 4001
    client.leave()
    assert (await served.event())["usage"]["output_tokens"] == 4000


async def test_a_slow_client_that_leaves_frees_the_engine(engine: Engine, start: Start) -> None:
    """Nobody reads and then hangs up: the engine's connection closes though the gateway was waiting to write."""
    blocked = asyncio.Event()

    async def flood(talk: Conversation, _: Received) -> None:
        talk.stream()
        number = 0
        while not talk.gone.is_set():
            number += 1
            talk.chunk(chunk(0, "x" * 60_000, 9, number))
            if not talk._room.is_set():
                try:
                    await asyncio.wait_for(talk.room(), 0.3)
                except TimeoutError:
                    blocked.set()
                    await talk.room()

    engine.script = flood
    served = await start(engine)
    client = await Slow(served).ask()
    await asyncio.wait_for(blocked.wait(), 10)
    (talk,) = [talk for talk in engine.connections if talk.number == engine.only.connection]
    client.leave()
    await asyncio.wait_for(talk.gone.wait(), 1)
    event = await served.event()
    assert event["status"] == "client_gone"
    assert event["usage"]["output_tokens"] > 0


async def test_a_client_that_leaves_with_a_request_in_line_frees_the_engine(engine: Engine, start: Start) -> None:
    """Two requests on one connection, the first at the engine: when the client leaves, both are over."""
    engine.script = says_nothing
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key)
        client.post(CHAT, ASKED, key=served.key)
        await eventually(lambda: engine.received)
    (talk,) = [talk for talk in engine.connections if talk.number == engine.only.connection]
    await asyncio.wait_for(talk.gone.wait(), 1)
    assert (await served.event())["status"] == "client_gone"


async def test_garbage_behind_a_request(engine: Engine, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """What follows a request on its connection and is no HTTP ends the connection; nothing fails, the event is one."""
    more = asyncio.Event()

    async def wait(talk: Conversation, request: Received) -> None:
        await more.wait()
        if not talk.gone.is_set():
            await recording("chat").script()(talk, request)

    engine.script = wait
    served = await start(engine)
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key)
        await eventually(lambda: engine.received)
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1\r\n\r\n{\x00garbage\r\n\r\n")
        said = asyncio.create_task(client.ended())
        await eventually(lambda: said.done() or not served.server.server_state.connections)
        more.set()
        await said
    assert (await served.event())["status"] in ("ok", "client_gone")
    await eventually(lambda: not served.server.server_state.tasks)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_of_http_1_0(engine: Engine, start: Start, stream: bool) -> None:
    """It knows no chunks: a stream is sent plain and ends with the connection."""
    engine.script = recording("stream" if stream else "chat").script()
    served = await start(engine)
    body = json.dumps(ASKED | {"stream": stream}).encode()
    async with served.connect() as client:
        head = f"POST {CHAT} HTTP/1.0\r\nauthorization: Bearer {served.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        client.send(head.encode() + body)
        told, _, got = (await client.ended()).partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in told
    assert b"connection: close" in told
    assert got == recording("stream" if stream else "chat").body
