"""One HTTP/1.1 connection to a replica: `asyncio.Protocol` and httptools, one exchange at a time.

httpx costs 50 times as much CPU per request and aiohttp three times (measured in the design notes), so tokens travel
here. Back-pressure: once `HIGH_WATER_BYTES` wait unread the transport stops reading, TCP closes the window, and the
engine waits; so a stream never holds more than that plus one read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

HIGH_WATER_BYTES = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024


class UpstreamLost(Exception):
    """The replica closed, reset or garbled the connection before its answer was complete."""


class UpstreamSilent(UpstreamLost):
    """The replica has sent nothing for too long; it may have computed all the while."""


class UpstreamMoved(UpstreamLost):
    """The replica is well, but has to be left: what it has begun is to be finished elsewhere."""


class Interrupted(Exception):
    """Our side gave the exchange up: the client left, or the gateway stops."""


class Connection(asyncio.Protocol):
    """Call `send`, then `read` or `push` until `drained`. Not for concurrent use.

    `lost` tells whether the connection can carry another exchange, `began_at` when the last one was sent. Reads raise
    `UpstreamLost` when the replica ends early and `Interrupted` after `interrupt()`.
    """

    __slots__ = (
        "_chunks",
        "_fault",
        "_full",
        "_head_bytes",
        "_loop",
        "_parser",
        "_paused",
        "_sink",
        "_transport",
        "_until_close",
        "_waiter",
        "active_at",
        "began_at",
        "blamed",
        "complete",
        "exchanges",
        "headers",
        "lost",
        "on_body",
        "reusable",
        "status",
        "streams",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: list[bytes] = []
        # The parser keeps its callbacks from here on. In C, since a busy stream has 64 chunks to three reads: a method
        # of ours for each was a tenth of a stream's cost.
        self.on_body = self._chunks.append
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.lost = False
        self.active_at = self.began_at = loop.time()
        self.exchanges = 0
        self._begin()

    def _begin(self) -> None:
        self._chunks.clear()
        self._head_bytes = 0
        self._paused = False
        self._full = False
        self._sink: Callable[[bytes], bool] | None = None
        self._until_close = True
        self._fault: Exception | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.reusable = False
        self.streams = False
        """Whether its answer is a stream that has begun."""
        self.blamed = ""
        """What was wrong in an answer that HTTP cannot tell."""

    def send(self, head: bytes, body: bytes) -> None:
        """Starts an exchange. `head` ends with the empty line."""
        assert self._transport is not None
        self._begin()
        self.exchanges += 1
        self.active_at = self.began_at = self._loop.time()
        if len(body) <= HIGH_WATER_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def read(self) -> bytes:
        """The next body bytes, all that have arrived; empty once the answer is complete."""
        if not (self._chunks or self.complete or self._fault):
            await self.readable()
        return self.read_nowait()

    def readable(self) -> asyncio.Future[None]:
        """Done when `read_nowait` has something to tell. For an exchange of which nothing has arrived."""
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def read_nowait(self) -> bytes:
        """As `read`, when it is known that it need not wait."""
        if self._chunks:
            return self._take()
        if self._fault is not None and not self.complete:
            raise self._fault
        return b""

    async def push(self, sink: Callable[[bytes], bool]) -> None:
        """Gives `sink` the body as it is read, without waking a task each time, until the answer is complete or `sink`
        returns False: it is full, and nothing is read from the engine until the next call. Raises as `read` does.
        """
        if self._chunks and not sink(self._take()):
            return
        self._full = False
        self._resume_reading()
        while not (self.complete or self._full):
            if self._fault is not None:
                raise self._fault
            self._sink = sink
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._sink = self._waiter = None

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        if self._paused:
            self._resume_reading()
        return data

    def _resume_reading(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    @property
    def paused(self) -> bool:
        """Whether the engine is not being read, since the client does not read either."""
        return self._paused

    @property
    def drained(self) -> bool:
        """Whether the answer is complete and all of it has been read."""
        return self.complete and not self._chunks

    @property
    def fault(self) -> Exception | None:
        """What ended the exchange before its answer was complete."""
        return None if self.complete else self._fault

    def interrupt(self) -> None:
        """Gives the exchange up: the socket closes now, so the engine stops; the reader gets `Interrupted`."""
        if not self.complete:
            self._fail(Interrupted())
            self.abort()

    def abort(self) -> None:
        """Closes without waiting for anything."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def expire(self, reason: str) -> None:
        """Ends an exchange that went silent, as if the replica had died."""
        self._fail(UpstreamSilent(reason))
        self.abort()

    def cut(self, reason: str) -> None:
        """Ends an exchange, so that it goes on at another replica."""
        if not self.complete:
            self._fail(UpstreamMoved(reason))
            self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._transport = None
        if self.status and not self.complete and self._until_close and exc is None:
            self.complete = True
            self._wake()
        elif not self.complete:
            self._fail(UpstreamLost(str(exc) if exc else "the replica closed the connection"))

    def data_received(self, data: bytes) -> None:
        self.active_at = self._loop.time()
        broken: Exception | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = error
        if self._sink is not None and self._chunks:
            try:
                self._full = not self._sink(self._take())
            except Exception as error:  # the one who waits must hear of it, not the event loop
                self._fail(error)
                self.abort()
                return
            if self._full:
                self._pause_reading()
        elif sum(map(len, self._chunks)) > HIGH_WATER_BYTES:
            self._pause_reading()
        if broken is None:
            if self._waiter is not None:
                self._wake()
            return
        self._fail(UpstreamLost(f"the replica's answer is not HTTP: {broken}"))  # after what was still readable
        self.abort()

    def on_message_begin(self) -> None:
        if self.complete:  # nobody asked for this one: it must not become a part of the next answer
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("response head too large")
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._until_close = False
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_message_complete(self) -> None:
        if not self.status:
            self.headers.clear()
            return
        self.complete = True
        self.reusable = self._parser.should_keep_alive()

    def _fail(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        over = self.complete or self._full or self._fault is not None
        if waiter is not None and not waiter.done() and (over or self._chunks):
            waiter.set_result(None)
