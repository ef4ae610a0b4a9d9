"""uvicorn's HTTP protocol with deadlines, bounded heads, and errors in OpenAI's shape.

uvicorn waits for ever for a request that trickles in, holds heads of any size, and answers malformed HTTP in plain
text. Here a request must be complete within `read_timeout_s` of its first byte; a body that the application did not
wait for (it refused early) is discarded for a moment, so that the client can read the refusal, then cut off.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway import refusals
from gateway.errors import Refusal

MAX_HEAD_BYTES = 64 * 1024
LINGER_S = 1.0
LINGER_BYTES = 1024 * 1024

_MALFORMED = Refusal(status=400, code="malformed_http", message="The request is not valid HTTP/1.1.")
_HEAD_TOO_LARGE = Refusal(
    status=431, code="headers_too_large", message=f"The headers are larger than {MAX_HEAD_BYTES} bytes. Send fewer."
)


class BoundedProtocol(HttpToolsProtocol):
    """One client connection."""

    read_timeout_s = 30.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._arriving = False
        self._in_head = True
        self._head_bytes = 0
        self._discarded_bytes = 0
        self._lingers = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.read_timeout_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self.transport.close()
                return
        if self._in_head:
            self._head_bytes += len(data)
            self._arriving = True
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._answer_and_close(_HEAD_TOO_LARGE)
        elif self._arriving and self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.read_timeout_s, self._too_late)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._disarm()
        self._arriving = self._lingers = False
        self._in_head = True
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._arriving and not self._in_head and not self.transport.is_closing():
            self._disarm()
            self._lingers = True
            self._discarded_bytes = 0
            self._deadline = self.loop.call_later(LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._answer_and_close(_MALFORMED)

    def _too_late(self) -> None:
        self._deadline = None
        if self._arriving:
            self._answer_and_close(refusals.body_too_slow(self.read_timeout_s))
        else:
            self.transport.close()

    def _answer_and_close(self, refusal: Refusal) -> None:
        """Answers what never reached the application, unless an answer is already on its way."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
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

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
