"""An engine that says exactly the bytes a test gives it, and remembers what it was asked and when it was left.

A `Script` is one answer: a coroutine that gets the conversation and the request. Without a script the engine answers
like a healthy vLLM does: `/health`, `/v1/models`, `/tokenize`, but without counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools

RECORDED = Path(__file__).parents[2] / "conformance" / "engines" / "vllm-0.24.0-h200"
CONTEXT_TOKENS = 4096

Script = Callable[["Conversation", "Received"], Awaitable[None]]


@dataclass
class Received:
    """One request as it came in. `connection` counts the engine's connections from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Conversation(asyncio.Protocol):
    """The engine's end of one connection."""

    def __init__(self, engine: Engine) -> None:
        self.gone = asyncio.Event()
        """Set when the gateway has closed the connection, or this side has."""
        self.sent_bytes = 0
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._room = asyncio.Event()
        self._room.set()
        self._tasks: set[asyncio.Task[None]] = set()

    # What scripts say.

    def head(self, status: int = 200, *lines: str, reason: str = "OK") -> None:
        """The answer's head: status line, then these header lines."""
        self.write("\r\n".join([f"HTTP/1.1 {status} {reason}", *lines]).encode() + b"\r\n\r\n")

    def stream(self) -> None:
        """The head of an event stream."""
        self.head(200, "content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked")

    def write(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self.transport.write(data)

    def chunk(self, data: bytes) -> None:
        """One chunk of the transfer encoding."""
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The chunk that ends the transfer encoding."""
        self.write(b"0\r\n\r\n")

    async def room(self) -> None:
        """Waits until the kernel has taken what was written."""
        await self._room.wait()

    def close(self) -> None:
        """Ends the connection in order."""
        self.transport.close()

    def die(self) -> None:
        """Ends the connection as a killed process does, unsent bytes and all."""
        self.transport.abort()

    # What asyncio and the parser say.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport: Any = transport
        transport.set_write_buffer_limits(high=0)  # type: ignore[attr-defined]
        self._engine.connections.add(self)
        self._engine.connections_made += 1
        self.number = self._engine.connections_made

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.connections.discard(self)
        self.gone.set()
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path, self._body, self._headers = b"", b"", {}

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        request = Received(method, self._path.decode(), self._headers, self._body, self.number)
        task = asyncio.get_running_loop().create_task(self._engine.answer(self, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass
class Engine:
    """One replica. `scripts` answer the next POSTs in turn; once they are used up, `script` answers all others."""

    script: Script | None = None
    healthy: bool = True
    model: str = "tiny"
    """What `/v1/models` lists."""
    context_tokens: int = CONTEXT_TOKENS
    openapi: Any = None
    """How it describes its requests; None: it does not."""
    prompt_tokens: int | None = 7
    """What `/tokenize` answers for a prompt, each word of a generated text being a token; None: it cannot tell."""
    received: list[Received] = field(default_factory=list)
    """Every request but the control plane's."""
    scripts: deque[Script] = field(default_factory=deque)
    connections: set[Conversation] = field(default_factory=set)
    token_ids: list[int] = field(default_factory=list)
    """The tokens that `/tokenize` says a prompt has."""
    connections_made: int = 0
    tokenized: list[Received] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def listen(self) -> None:
        """Accepts connections, after `refuse` on the port it had before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Conversation(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """From now on connections are refused; those that exist live on."""
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)

    def kill(self) -> None:
        """The process is gone: nobody listens, and every connection is reset."""
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.die()

    async def answer(self, talk: Conversation, request: Received) -> None:
        """Answers one request by script, or as vLLM's control plane."""
        if request.path == "/health":
            talk.head(200 if self.healthy else 503, "content-length: 0")
        elif request.path == "/v1/models":
            card = {"id": self.model, "object": "model", "max_model_len": self.context_tokens}
            await as_json({"object": "list", "data": [card]})(talk, request)
        elif request.path == "/openapi.json":
            await as_json(self.openapi or {"detail": "Not Found"}, status=200 if self.openapi else 404)(talk, request)
        elif request.path == "/metrics":
            await as_json({"detail": "Not Found"}, status=404)(talk, request)
        elif request.path in ("/tokenize", "/v1/messages/count_tokens") and request.headers.get(
            "user-agent", ""
        ).startswith("python-httpx"):
            self.tokenized.append(request)
            if self.prompt_tokens is None:
                await as_json({"detail": "Not Found"}, status=404)(talk, request)
            else:
                name = "count" if request.path == "/tokenize" else "input_tokens"
                said = None if request.json.get("add_special_tokens", True) else request.json["prompt"]
                count = self.prompt_tokens if said is None else len(said.split())
                await as_json({name: count, "tokens": self.token_ids})(talk, request)
        else:
            self.received.append(request)
            script = self.scripts.popleft() if self.scripts else self.script
            assert script is not None, f"nothing to answer {request.path} with"
            with contextlib.suppress(ConnectionError):
                await script(talk, request)

    @property
    def only(self) -> Received:
        """The one request there was."""
        assert len(self.received) == 1, [request.path for request in self.received]
        return self.received[0]


@asynccontextmanager
async def running(*engines: Engine) -> AsyncIterator[None]:
    """Engines that listen while the block lasts."""
    for engine in engines:
        await engine.listen()
    try:
        yield
    finally:
        for engine in engines:
            engine.kill()


def as_json(content: Any, *, status: int = 200, headers: tuple[str, ...] = ()) -> Script:
    """A whole JSON answer."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def script(talk: Conversation, _: Received) -> None:
        talk.head(status, "content-type: application/json", f"content-length: {len(body)}", *headers)
        talk.write(body)

    return script


def as_stream(*reads: bytes) -> Script:
    """A whole event stream; each of `reads` is a chunk of its own."""

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        for data in reads:
            talk.chunk(data)
        talk.end()

    return script


def as_stream_cut_after(*reads: bytes) -> Script:
    """The start of an event stream; then the engine's process is gone."""

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        for data in reads:
            talk.chunk(data)
        await talk.room()
        talk.close()

    return script


async def dies(talk: Conversation, _: Received) -> None:
    """The engine's process is gone before it has said anything."""
    talk.die()


async def says_nothing(talk: Conversation, _: Received) -> None:
    """The engine takes the request and thinks until the gateway leaves."""
    await talk.gone.wait()


@dataclass(frozen=True)
class Recording:
    """A recorded answer of vLLM 0.24.0 on an H200."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def events(self) -> list[bytes]:
        """Events of a stream, each with its empty line."""
        return [event + b"\n\n" for event in self.body.removesuffix(b"\n\n").split(b"\n\n")]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def script(self) -> Script:
        """The engine says it again: a stream in an event per chunk, everything else at once."""
        if self.is_stream:
            return as_stream(*self.events)
        extra = tuple(f"{name}: {value}" for name, value in self.headers.items() if name in ("allow", "vary"))
        return as_json(self.body, status=self.status, headers=extra)


def recording(name: str) -> Recording:
    """A recording by its file's name."""
    head, _, body = (RECORDED / f"{name}.http").read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    status, *lines = head.decode().split("\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Recording(int(status.split()[1]), headers, body)
