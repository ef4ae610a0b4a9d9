"""One request and its answer on a client connection: ASGI's `receive` and `send`, with the fewest system calls.

uvicorn's own cycle writes an answer's head and body apart, makes an `asyncio.Event` per request and tells of a
disconnect only to a coroutine that waits for it. This one writes head and first body bytes together (a system call
less per answer, 5 µs), waits on a future only when it has to, and offers itself as `relay.Client`: it calls back when
the client has gone, and takes a stream's parts without a coroutine each. Measured together: docs/decisions/0002.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway import refusals

if TYPE_CHECKING:
    from ._protocol import BoundedProtocol

log = logging.getLogger(__name__)


class Cycle:
    """State of one request. The protocol fills it in; the application takes from it."""

    __slots__ = (
        "_chunked",
        "_delivered",
        "_head",
        "_on_gone",
        "_protocol",
        "_waiter",
        "body",
        "disconnected",
        "expects_continue",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "task",
    )

    def __init__(self, protocol: BoundedProtocol, scope: dict[str, Any], *, keep_alive: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = False
        self.body: list[bytes] = []
        self.more_body = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.task: asyncio.Task[None] | None = None
        self._protocol = protocol
        self._delivered = False
        self._chunked = False
        self._head: bytes | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_gone: Callable[[], None] | None = None

    def call_when_gone(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when the client leaves before its answer is complete."""
        self._on_gone = callback
        if self.disconnected:
            callback()

    def wake(self) -> None:
        """More of the body has come, or nothing will."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def gone(self) -> None:
        """The client has closed the connection."""
        if not self.response_complete:
            self.disconnected = True
            if self._on_gone is not None:
                self._on_gone()
        self.wake()

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        """Runs the application; whatever it does, the connection ends in a state the client understands."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("the application failed")
        finally:
            self._protocol.tasks.discard(self.task)
            # The scope refers back to this object; left so, every request would wait for the garbage collector.
            self.scope.pop("extensions", None)
            self.task = self._on_gone = None
        if not self.response_complete and not self.disconnected:
            if self.response_started:
                self._protocol.transport.close()
            else:
                self._protocol.answer_and_close(refusals.INTERNAL)

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next part of the body, then the disconnect."""
        if self.expects_continue:
            self.expects_continue = False
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.disconnected or self.response_complete):
            if not self._delivered and (self.body or not self.more_body):
                body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
                self.body.clear()
                self._delivered = not self.more_body
                self._protocol.flow.resume_reading()
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            self._waiter = self._protocol.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        """ASGI: the answer. Waits while the client's connection is full."""
        flow = self._protocol.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self.response_started = True
            self._head = self._encode_head(message["status"], message["headers"])
            return
        assert not self.response_complete, "the answer has ended"
        body, more = message["body"], message.get("more_body", False)
        self._write(body, more=more)
        if not more:
            self.response_complete = True
            self.wake()
            if not self.keep_alive:
                self._protocol.transport.close()
            self._protocol.on_response_complete()

    def write_nowait(self, body: bytes) -> bool:
        """A part of the body, without a coroutine. False: the connection is full now."""
        if not self.disconnected:
            self._write(body, more=True)
        return not self._protocol.flow.write_paused

    async def room(self) -> None:
        """Returns when the connection has room, or is gone."""
        await self._protocol.flow.drain()

    def _encode_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the answer.
        has_body = self.scope["method"] != "HEAD" and status not in {204, 304}
        self._chunked = has_body and self.scope["http_version"] != "1.0"
        lines = [STATUS_LINE[status]]
        for name, value in self._protocol.server_state.default_headers:
            lines.append(b"%b: %b\r\n" % (name, value))
        for name, value in headers:
            if name == b"content-length":
                self._chunked = False
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def _write(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head or b"", None
        if self.scope["method"] == "HEAD":
            body = b""
        if self._chunked:
            frame = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._protocol.transport.write(b"%b%b%b" % (head, frame, b"" if more else b"0\r\n\r\n"))
        elif head or body:
            self._protocol.transport.write(head + body)
