"""uvicorn's HTTP protocol with deadlines, bounded heads, and errors in OpenAI's shape.

uvicorn waits for ever for a request that trickles in, holds heads of any size, and answers malformed HTTP in plain
text. Here a request must be complete within `read_timeout_s` of its first byte; a body that the application did not
wait for (it refused early) is discarded for a moment, so that the client can read the refusal, then cut off.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway import refusals
from gateway.errors import Refusal
from gateway.relay import CLIENT

from ._cycle import Cycle

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
LINGER_S = 1.0
LINGER_BYTES = 1024 * 1024

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_MALFORMED = Refusal(status=400, code="malformed_http", message="The request is not valid HTTP/1.1.")
_HEAD_TOO_LARGE = Refusal(
    status=431, code="headers_too_large", message=f"The headers are larger than {MAX_HEAD_BYTES} bytes. Send fewer."
)


class BoundedProtocol(HttpToolsProtocol):
    """One client connection.

    Its requests run one after the other in one task, which lives as long as the connection: a task for each request
    costs 5 µs, most of it for asyncio's set of all tasks.

    It has one timer for everything that may take too long (a request arriving, a body being discarded, an idle
    connection), set anew only when it fires too early: a request that arrives at once costs no timer at all.
    """

    read_timeout_s = 30.0
    cycle: Cycle  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # The parser keeps its callbacks from when it is made. These two are methods in C, so that a header costs no
        # call of ours; of a header that is repeated the last one counts.
        self._url: list[bytes] = []
        self._given: dict[bytes, bytes] = {}
        self.on_url = self._url.append  # type: ignore[method-assign,assignment]
        self.on_header = self._given.__setitem__  # type: ignore[method-assign,assignment]
        super().__init__(config, server_state, app_state, _loop)
        self._line: deque[Cycle] = deque()
        """Requests whose answers are not complete; the first one runs."""
        self._runner: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._arriving = False
        self._in_head = True
        self._head_bytes = 0
        self._discarded_bytes = 0
        self._lingers = False
        self._timer: asyncio.TimerHandle | None = None
        self._due_s: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._due_in(self.read_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for cycle in self._line:
            cycle.gone()
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self.transport.close()
                return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.answer_and_close(_MALFORMED)
            return
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here; the request is answered as it stands
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self.answer_and_close(_HEAD_TOO_LARGE)
        elif self._head_bytes and not self._arriving and self._in_head:
            self._arriving = True
            self._due_in(self.read_timeout_s)

    def on_message_begin(self) -> None:
        self._url.clear()
        self._given.clear()
        self._arriving = True
        if self._due_s is None:
            self._due_in(self.read_timeout_s)

    def on_headers_complete(self) -> None:
        self._in_head = False
        http_version = self.parser.get_http_version()
        url = self._url[0] if len(self._url) == 1 else b"".join(self._url)
        if url[:1] == b"/" and b"?" not in url and b"%" not in url:
            raw_path, query = url, b""
            path = url.decode("ascii")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
            path = unquote(raw_path.decode("ascii"))
        given = {name.lower(): value for name, value in self._given.items()}
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": http_version,
            "method": self.parser.get_method().decode("ascii"),
            "scheme": self.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": given.items(),
            "client": self.client,
            "server": self.server,
        }
        cycle = Cycle(self, scope, given, keep_alive=http_version != "1.0" and self.parser.should_keep_alive())
        if b"expect" in given:
            cycle.expects_continue = given[b"expect"].lower() == b"100-continue"
        scope["extensions"] = {CLIENT: cycle}
        self.cycle = cycle
        self._line.append(cycle)
        if len(self._line) > 1:
            self.flow.pause_reading()
        elif self._runner is None:
            self._runner = self.loop.create_task(self._run())
            self.tasks.add(self._runner)
        elif self._next is not None and not self._next.done():
            self.tasks.add(self._runner)
            self._next.set_result(None)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body.append(body)
        if len(body) > HIGH_WATER_LIMIT or len(cycle.body) > 1:
            self.flow.pause_reading()
        if cycle.waiter is not None:
            cycle.wake()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        cycle.more_body = False
        if cycle.waiter is not None:
            cycle.wake()
        self._arriving = self._lingers = False
        self._in_head = True
        self._head_bytes = 0
        self._due_s = None

    def on_response_complete(self) -> None:
        self._line.popleft()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self._arriving and not self._in_head:
            self._lingers = True
            self._discarded_bytes = 0
            self._due_in(LINGER_S)
        elif not self._line:
            self._due_in(self.timeout_keep_alive)

    def answer_and_close(self, refusal: Refusal) -> None:
        """Answers what never reached the application, unless an answer is already on its way."""
        if self.transport.is_closing():
            return
        running = self._line[0] if self._line else None
        # Behind a request that still runs, an answer would be taken for that one's.
        if running is None or (running is self.cycle and not running.response_started):
            content = refusal.body()
            head = [
                STATUS_LINE[refusal.status],
                b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(content),
                b"x-request-id: %b\r\n" % secrets.token_hex(16).encode(),
                *(b"%b: %b\r\n" % pair for pair in refusal.headers()),
                b"\r\n",
            ]
            self.transport.write(b"".join(head) + content)
        self.transport.close()

    async def _run(self) -> None:
        """Runs the application for each request; whatever it does, the connection ends in a state the client
        understands. `tasks`, which the server waits for when it stops, holds this task while a request runs."""
        runner = self._runner
        assert runner is not None
        try:
            while not self.transport.is_closing():
                if not self._line:
                    self.tasks.discard(runner)
                    self._next = self.loop.create_future()
                    await self._next
                    continue
                cycle = self._line[0]
                try:
                    await self.app(cycle.scope, cycle.receive, cycle.send)
                except Exception:
                    log.exception("the application failed")
                finally:
                    cycle.leave()
                if cycle.response_complete or cycle.disconnected:
                    continue
                if cycle.response_started:
                    self.transport.close()
                else:
                    self.answer_and_close(refusals.INTERNAL)
        finally:
            self.tasks.discard(runner)

    def _due_in(self, seconds: float) -> None:
        self._due_s = due_s = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > due_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(due_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._due_s is None:
            return
        if self._due_s > self.loop.time() + 0.001:
            self._timer = self.loop.call_at(self._due_s, self._on_timer)
        elif self._arriving and not self._lingers:
            self.answer_and_close(refusals.body_too_slow(self.read_timeout_s))
        else:
            self.transport.close()
