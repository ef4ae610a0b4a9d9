"""An engine's answer on its way to the client: opened with the first bytes in, pumped with back-pressure, cut at once.

Nothing reaches the client before the engine's first body bytes have arrived, so that until then another replica may be
tried. The last bytes are held back until the answer is settled: an answer that has ended is on the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

import msgspec

from gateway.engines import Load
from gateway.errors import Refusal
from gateway.fleet import Connection, Replica, UpstreamLost
from gateway.wire import FIRST_EVENT_MAX_BYTES, Endpoint, StreamScanner, first_event_is_whole, in_band_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

FIRST_EVENT_WAIT_S = 1.0
"""An engine writes an event at once: one that takes so long to be whole is worth no more waiting."""
MAX_WHOLE_BYTES = 16 * 1024 * 1024
"""An answer that is not streamed is held up to this size, so that its usage is read before its end is sent."""

_USAGE_WINDOW_BYTES = 4096
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    }
)


CLIENT = "mtok.client"
"""The ASGI extension by which the server hands over its `Client`."""


class Client(Protocol):
    """What the server offers beyond ASGI, where that costs a task, or a coroutine per part of a request or answer."""

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's headers, names in lower case; of one that is repeated the last."""

    @property
    def full(self) -> bool:
        """Whether the client's connection takes nothing more now: wait for `room`."""

    def call_when_gone(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when the client leaves before its answer is complete."""

    def body_nowait(self) -> bytes | None:
        """The request's body, if it has arrived whole and in one piece; None: `receive` it."""

    def start(self, status: int, headers: Headers) -> None:
        """Sets the answer's head, which leaves with the first part of its body."""

    def write_nowait(self, body: bytes) -> bool:
        """Writes a part of the answer's body. False: the connection is full now."""

    def end_nowait(self, body: bytes) -> None:
        """Writes the last part of the answer's body."""

    async def room(self) -> None:
        """Returns when the connection has room, or is gone."""


class Interruptible(Protocol):
    """What ends when the client leaves."""

    def interrupt(self) -> None: ...


class Guard(Protocol):
    """What sees to it that a client that leaves takes its connection along."""

    def guard(self, connection: Interruptible) -> None: ...


class ClientWatch:
    """Knows when the client has gone, and closes the engine's connection at that moment, unless its answer is to be
    finished all the same.

    The server calls back. Waiting for ASGI's `receive` instead would be a task per request, 10 µs.
    """

    __slots__ = ("_connection", "_running", "finishes", "gone")

    def __init__(self, client: Client, running: set[ClientWatch], *, finishes: bool = False) -> None:
        """`running` holds every watch that is in use, so that all can be interrupted together. `finishes`: a client
        that leaves does not stop the engine."""
        self.gone = False
        self.finishes = finishes
        self._connection: Interruptible | None = None
        self._running = running
        client.call_when_gone(self._on_gone)

    def __enter__(self) -> ClientWatch:
        self._running.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.discard(self)
        self._connection = None

    def guard(self, connection: Interruptible) -> None:
        """From now on a client that leaves takes this with it: a connection, or a place in a queue."""
        self._connection = connection
        if self.gone and not self.finishes:
            connection.interrupt()

    def interrupt(self) -> None:
        """Ends what is guarded for a reason of our own."""
        if self._connection is not None:
            self._connection.interrupt()

    def _on_gone(self) -> None:
        self.gone = True
        if not self.finishes:
            self.interrupt()


LOAD_HEADER = b"endpoint-load-metrics"


class Answer:
    """An engine's answer whose head and first body bytes have arrived. Close it, or its replica counts it for ever.

    `headers` are the engine's headers that are the client's business. `error` is the body of an error that the engine
    told in the first event of a stream, and `status` then the one that it means.
    """

    __slots__ = ("_closed", "_connection", "error", "first", "headers", "is_stream", "replica", "status")

    def __init__(self, replica: Replica, connection: Connection, first: bytes) -> None:
        self.replica = replica
        self.first = first
        self.status = connection.status
        self.error: bytes | None = None
        self._closed = False
        self.is_stream = False
        self.headers: Headers = []
        kept = replica.dialect.kept_headers
        for pair in connection.headers:
            if pair[0] not in _HOP_BY_HOP and (kept is None or pair[0] in kept):
                self.headers.append(pair)
                if pair[0] == b"content-type" and pair[1].startswith(b"text/event-stream"):
                    self.is_stream = connection.streams = True
        self._connection = connection

    @property
    def has_room(self) -> bool:
        """Whether the engine has taken the request, rightly or not, rather than being full."""
        return self.status not in self.replica.dialect.full

    @property
    def complete(self) -> bool:
        """Whether everything the engine will send has been read."""
        return self._connection.drained

    async def read(self) -> bytes:
        """More of the body; empty at its end."""
        return await self._connection.read()

    async def look(self) -> None:
        """Waits for the whole first event of a stream, as long and as much as that is worth, and takes an error there
        as the answer that it should have been."""
        if not first_event_is_whole(self.first):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_EVENT_WAIT_S):
                    while not (self.complete or len(self.first) > FIRST_EVENT_MAX_BYTES):
                        self.first += await self._connection.read()
                        if first_event_is_whole(self.first):
                            break
        if found := in_band_error(self.first):
            self.status, self.error, self.is_stream = found.status, found.body, False
            self._connection.status = found.status

    def take_load(self) -> Load | None:
        """What the engine has said of its load, since it was asked: that is not the client's business."""
        for index, (name, value) in enumerate(self.headers):
            if name == LOAD_HEADER:
                del self.headers[index]
                return self.replica.dialect.load(value)
        return None

    def blame(self, what: str) -> None:
        """It is not what it should be, though it was complete: that counts against its replica."""
        self._connection.blamed = what

    async def push(self, sink: Callable[[bytes], bool]) -> None:
        """More of the body, as it comes, until its end or until `sink` is full and says so by False."""
        await self._connection.push(sink)

    def guarded_by(self, watch: Guard) -> None:
        """From now on a client that leaves takes this along."""
        watch.guard(self._connection)

    def close(self) -> None:
        """Once is enough."""
        if self._closed:
            return
        self._closed = True
        self.replica.in_flight -= 1
        self.replica.release(self._connection)


async def open_answer(replica: Replica, head: bytes, body: bytes, watch: Guard) -> Answer:
    """Sends a request and waits for the first bytes of its answer.

    Raises `ConnectFailed` (nothing was sent), `UpstreamLost` (the replica died before it answered), `Interrupted`.
    """
    replica.in_flight += 1
    connection: Connection | None = None
    try:
        connection = replica.take_idle() or await replica.connect()
        watch.guard(connection)
        replica.send(connection, head, body)
        await connection.readable()
        return Answer(replica, connection, connection.read_nowait())
    except BaseException:
        replica.in_flight -= 1
        if connection is not None:
            replica.release(connection)
        raise


class Outgoing:
    """The answer on its way to the client; its head leaves with its first bytes."""

    __slots__ = ("_headers", "_status", "client", "started")

    def __init__(self, client: Client) -> None:
        self.client = client
        self._status = 0
        self._headers: Headers = []
        self.started = False

    def prepare(self, status: int, headers: Headers) -> None:
        """Sets the head, which can be set anew until something has been sent."""
        self._status = status
        self._headers = headers

    def start(self) -> None:
        """From here on the head is fixed."""
        if not self.started:
            self.started = True
            self.client.start(self._status, self._headers)

    async def write(self, data: bytes) -> None:
        """Returns when the client's connection has room again."""
        self.start()
        if not self.client.write_nowait(data):
            await self.client.room()

    async def end(self, data: bytes = b"") -> None:
        """Writes the last bytes, once the client's connection has room for them."""
        self.start()
        if self.client.full:
            await self.client.room()
        self.client.end_nowait(data)

    async def refuse(self, refusal: Refusal, headers: Headers) -> None:
        """Answers with a refusal."""
        content = refusal.body()
        self.prepare(refusal.status, [*json_head(content), *refusal.headers(), *headers])
        await self.end(content)


def json_head(content: bytes) -> Headers:
    """Headers of a JSON answer."""
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]


async def pump_stream(answer: Answer, scanner: StreamScanner, outgoing: Outgoing) -> bytes:
    """Relays a stream up to its last event, which it returns: the caller settles, then sends it."""
    held: list[bytes] = []
    client = outgoing.client

    def sink(data: bytes) -> bool:
        out = scanner.feed(data)
        if scanner.ended or answer.complete:
            held.append(out)
            return True
        return not out or client.write_nowait(out)

    outgoing.start()
    sink(answer.first)
    try:
        while not answer.complete:
            if client.full:
                await client.room()
            await answer.push(sink)
    except UpstreamLost:
        if not scanner.ended:
            raise  # else every event was there; only the framing's end was not
    return b"".join((*held, scanner.finish()))


async def read_whole(answer: Answer) -> tuple[bytes, bool]:
    """The body and True; what has arrived and False once that is longer than `MAX_WHOLE_BYTES`."""
    if answer.error is not None:
        return answer.error, True
    parts, size = [answer.first], len(answer.first)
    while not answer.complete and size <= MAX_WHOLE_BYTES:
        parts.append(await answer.read())
        size += len(parts[-1])
    return b"".join(parts), answer.complete


async def pump_long(answer: Answer, start: bytes, outgoing: Outgoing) -> tuple[bytes, bytes]:
    """Relays an answer too long to hold. Returns its last bytes, unsent, and the last `usage` in a JSON object."""
    usage, data, tail = b"", start, b""
    while True:
        tail = tail[-_USAGE_WINDOW_BYTES:] + data
        for match in _USAGE_OBJECT.finditer(tail):
            usage = match[0]
        if answer.complete:
            return data, b"{%b}" % usage
        await outgoing.write(data)
        data = await answer.read()


def stream_error(endpoint: Endpoint, message: str, code: str) -> bytes:
    """The event that ends a stream which cannot be completed, in the endpoint's own dialect."""
    error = {"message": message, "type": "upstream_error", "param": None, "code": code}
    match endpoint:
        case Endpoint.RESPONSES:
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode({**error, "type": "error"})
        case Endpoint.MESSAGES:
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode({"type": "error", "error": error})
        case _:
            return b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode({"error": error})
