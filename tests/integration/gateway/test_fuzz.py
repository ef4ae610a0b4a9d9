"""Whatever comes in, from clients or from engines: never a 500, never a connection that hangs."""

from __future__ import annotations

import asyncio
import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import client
from gateway.wire import Endpoint
from tests.integration.gateway.engine import Conversation, Engine, Received, recording, running
from tests.integration.gateway.serving import ASKED, CHAT, key_of, policies, serve

READ_TIMEOUT_S = 0.25
DEADLINE_S = 4.0
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


class Target:
    """A gateway and its engine in a thread of their own, so that hypothesis may drive blocking sockets."""

    def __init__(self, directory: Path, valkey_url: str) -> None:
        self.port = 0
        self.said = b""
        """What the engine says next; empty: a good answer."""
        self.failures: list[str] = []
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run(directory, valkey_url)), daemon=True)

    async def _run(self, directory: Path, valkey_url: str) -> None:
        engine = Engine(script=self._script)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        limits = {"max_input_tokens": 3000, "max_output_tokens": 2000, "budget_usd": 1000}
        async with running(engine), client(valkey_url) as redis:
            await redis.flushall()
            chosen = policies(engine, limits=limits)
            async with serve(chosen, directory, redis, valkey_url, read_timeout_s=READ_TIMEOUT_S) as served:
                self.port = served.port
                self._ready.set()
                await self._stop.wait()

    async def _script(self, talk: Conversation, request: Received) -> None:
        if not self.said:
            await recording("stream_cont" if b'"stream":true' in request.body else "chat").script()(talk, request)
            return
        talk.write(self.said)
        await talk.room()
        talk.close()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def talk(self, requests: list[list[bytes]]) -> list[bytes]:
        """Each request in its pieces on a connection of its own, all at once. What came back on each: to the end of the
        connection, or a whole answer on one that stays open. Fails for a connection that does neither in time."""
        selector = selectors.DefaultSelector()
        got: dict[socket.socket, bytes] = {}
        for pieces in requests:
            sock = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            got[sock] = b""
            try:
                for piece in pieces:
                    sock.sendall(piece)
            except OSError:
                pass  # refused in the middle; what was said about it is read below
            selector.register(sock, selectors.EVENT_READ)
        open_ones = set(got)
        end = time.monotonic() + DEADLINE_S
        while open_ones and time.monotonic() < end:
            for key, _ in selector.select(0.05):
                sock: Any = key.fileobj
                try:
                    data = sock.recv(1 << 16)
                except OSError:
                    data = b""
                got[sock] += data
                if not data or whole(got[sock]):
                    selector.unregister(sock)
                    open_ones.discard(sock)
        selector.close()
        for sock in got:
            sock.close()
        hung = [pieces for pieces, sock in zip(requests, got, strict=True) if sock in open_ones]
        assert not hung, f"neither answered nor ended: {hung}"
        return list(got.values())


def whole(data: bytes) -> bool:
    """Whether a whole final answer is here."""
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return len(body) >= int(line[16:])
    return body.endswith(b"0\r\n\r\n")


class Listening(logging.Handler):
    """What the gateway logs as an error while it is fuzzed."""

    def __init__(self, target: Target) -> None:
        super().__init__(logging.ERROR)
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.failures.append(self.format(record))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Target]:
    """One gateway for all that is thrown at it."""
    target = Target(tmp_path_factory.mktemp("fuzz"), valkey_url)
    target.start()
    listening = Listening(target)
    logging.getLogger().addHandler(listening)
    yield target
    logging.getLogger().removeHandler(listening)
    target.stop()


def request(body: Any = None, path: str = CHAT, *, head: str = "") -> bytes:
    """A good request, with more header lines."""
    content = body if isinstance(body, bytes) else json.dumps(ASKED if body is None else body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {key_of('acme')}\r\n"
        f"content-type: application/json\r\n{head}content-length: {len(content)}\r\n\r\n"
    ).encode() + content


def still_serves(target: Target) -> None:
    """Nothing that was sent had an effect on anybody else."""
    target.said = b""
    (answer,) = target.talk([[request()]])
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer[:200]
    failures, target.failures = target.failures, []
    assert not failures, failures[0]


def sane(answer: bytes) -> None:
    """Nothing, or answers that are HTTP and none of them a 500; refusals have OpenAI's shape."""
    if not answer:
        return
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert b"HTTP/1.1 500" not in answer
    status, (head, _, body) = int(answer[9:12]), answer.partition(b"\r\n\r\n")
    if status >= 400 and b"content-length" in head and b"HTTP/1.1" not in body and body:
        assert sorted(json.loads(body)["error"]) == ["code", "message", "param", "type"]


# Clients.

TOKENS = st.sampled_from(
    [
        *(b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\x00", b" ", b":", b"\t", b"\xff", b"\x80", b"{", b"}", b'"', b"[[["),
        *(b"HTTP/1.1", b"HTTP/2.0", b"HTTP/9.9", b"POST ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT a:1 "),
        *(b"content-length: 5\r\n", b"content-length: -1\r\n", b"content-length: 99999999999999999999\r\n"),
        *(b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"expect: 100-continue\r\n"),
        *(b"connection: close\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n", b"upgrade: websocket\r\n"),
        *(b"ffffffffffffffff\r\n", b"5;ext=1\r\nabcde\r\n", b"authorization: Bearer \r\n", b"x" * 70_000, b"0\r\n\r\n"),
    ]
)  # fmt: skip


@st.composite
def broken(draw: st.DrawFn) -> list[bytes]:
    """A good request with pieces taken out, doubled, put in; or nothing like one. Cut into writes."""
    base = draw(
        st.sampled_from(
            [
                request(),
                request(ASKED | {"stream": True}),
                request(head="transfer-encoding: chunked\r\n"),
                request(head="expect: 100-continue\r\n"),
                b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n",
                b"GET /healthz HTTP/1.0\r\n\r\n",
                b"GET /v1/usage?start=%zz HTTP/1.1\r\n\r\n",
                request() + request(b"{"),
                b"",
            ]
        )
    )
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(base)))
        to = min(len(base), at + draw(st.integers(0, 12)))
        put = draw(st.one_of(TOKENS, st.binary(max_size=8), st.just(base[at:to] * 2)))
        base = base[:at] + put + base[to:]
    cuts = sorted(draw(st.lists(st.integers(0, len(base)), max_size=3)))
    return [base[a:b] for a, b in zip([0, *cuts], [*cuts, len(base)], strict=True) if b > a] or [b"\r\n"]


@FEW
@given(requests=st.lists(broken(), min_size=8, max_size=24))
def test_malformed_http(target: Target, requests: list[list[bytes]]) -> None:
    """Each connection is answered or closed in time, with no 500 and no failure in the log."""
    for answer in target.talk(requests):
        sane(answer)
    still_serves(target)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(["tiny", "small", "other", "\ud800", "\x00", "user", "x" * 2000]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "include_usage", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("n", "best_of", "instructions", "tools", "system", "max_output_tokens", "prompt_embeds", "usage", "é"),
    ]
)
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}


@FEW
@given(
    bodies=st.lists(
        st.tuples(
            st.sampled_from([endpoint.value for endpoint in Endpoint]),
            st.one_of(
                st.dictionaries(NAMES, VALUES, max_size=4).map(lambda fields: json.dumps(GOOD | fields).encode()),
                st.dictionaries(NAMES, VALUES, max_size=4).map(lambda fields: json.dumps(fields).encode()),
                st.binary(max_size=50),
            ),
        ),
        min_size=8,
        max_size=24,
    )
)
def test_json_of_any_kind(target: Target, bodies: list[tuple[str, bytes]]) -> None:
    """Any body on any endpoint: an answer or a refusal, never a failure."""
    for answer in target.talk([[request(body, path)] for path, body in bodies]):
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4"))
        sane(answer)
    still_serves(target)


@FEW
@given(
    queries=st.lists(
        st.text(st.characters(codec="ascii", exclude_characters=" \r\n#"), max_size=30), min_size=5, max_size=20
    )
)
def test_paths_and_queries_of_any_kind(target: Target, queries: list[str]) -> None:
    """The gateway's own pages take any path and query there can be."""
    head = f" HTTP/1.1\r\nauthorization: Bearer {key_of('acme')}\r\n\r\n"
    asked = [f"GET {prefix}{query}{head}" for query in queries for prefix in ("/v1/usage?", "/v1/models/", "/")]
    for answer in target.talk([[one.encode()] for one in asked]):
        sane(answer)
    still_serves(target)


# Engines.

ANSWERS = [
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n"
    b'{"usage":{"prompt_tokens":1}}',
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b'2b\r\ndata: {"choices":[],"usage":{"a":"\\u1"}}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n',
    b'HTTP/1.1 400 Bad Request\r\ncontent-length: 26\r\n\r\n{"error":{"message":"no"}}',
    b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
]  # fmt: skip


@st.composite
def said(draw: st.DrawFn) -> bytes:
    """An engine's answer with something wrong with it."""
    base = draw(st.sampled_from(ANSWERS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(base)))
        to = min(len(base), at + draw(st.integers(0, 8)))
        base = base[:at] + draw(st.one_of(TOKENS, st.binary(max_size=6))) + base[to:]
    return base or b"\n"


@settings(FEW, max_examples=80)
@given(said=said(), stream=st.booleans())
def test_an_engine_that_says_anything(target: Target, said: bytes, stream: bool) -> None:
    """Its garbage is a 502, a broken connection or, where it looked like an answer, that; never a failure of ours."""
    target.said = said
    for answer in target.talk([[request(ASKED | {"stream": stream})]]):
        assert b"HTTP/1.1 500" not in answer[:12]
    target.failures[:] = [one for one in target.failures if "UpstreamLost" not in one]
    still_serves(target)
