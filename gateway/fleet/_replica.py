"""One engine process as the gateway knows it: its connections, its load from here, whether it answers."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

from gateway.wire import Endpoint

from ._connection import Connection
from ._counters import Reading

CONNECT_TIMEOUT_S = 3.0
IDLE_TTL_S = 4.0
"""uvicorn, which serves vLLM, closes connections idle for 5 s: ours are given up earlier, so that none dies in use."""

_COMPUTES = tuple(b"POST %b " % endpoint.path.encode() for endpoint in Endpoint if endpoint.computes)


class ConnectFailed(Exception):
    """No connection could be made, so nothing was sent: the request may run elsewhere."""


class Replica:
    """A pool of connections to one engine, and what is known about it.

    `in_flight` counts this worker's own requests there, `requests_sent` those for GPU time that it ever sent. `healthy`
    is the last word of the prober or of a failed connect; a new replica is not healthy until it has answered once.
    `reading` is what its metrics page said when a worker read it last; up to two of the scraper's intervals old.
    `salted_paths` is where its engine takes a `cache_salt`; None until that has been asked of this engine.
    """

    def __init__(self, url: str) -> None:
        """Made inside the event loop it is used from."""
        self._loop = asyncio.get_running_loop()
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.url = url
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.name = f"{self.host}:{self.port}"
        self.in_flight = 0
        self.requests_sent = 0
        self.healthy = False
        self.probes_missed = 0
        self.context_tokens: int | None = None
        self.salted_paths: frozenset[str] | None = None
        self.reading: Reading | None = None
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._host_header = parts.netloc.encode()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    def head(self, path: str, request_id: bytes, length: int, extra: bytes = b"") -> bytes:
        """The request head. `extra` holds whole header lines, each ended with CRLF."""
        return (
            b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\naccept: */*\r\n"
            b"x-request-id: %b\r\ncontent-length: %d\r\n%b\r\n"
        ) % (path.encode(), self._host_header, request_id, length, extra)

    def send(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Starts an exchange on one of this replica's connections."""
        connection.send(head, body)
        self.requests_sent += head.startswith(_COMPUTES)

    def oldest_exchange_s(self) -> float | None:
        """How long ago the oldest exchange that still runs was sent, in seconds; None when none runs."""
        began_at = min((connection.began_at for connection in self._busy), default=None)
        return None if began_at is None else self._loop.time() - began_at

    def take_idle(self) -> Connection | None:
        """A connection kept alive and still good, or None: then `connect`."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and self._loop.time() - connection.active_at < IDLE_TTL_S:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises `ConnectFailed`."""
        loop = self._loop
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), self.host, self.port, ssl=self._ssl
                )
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(f"{self.name}: {error or 'timed out'}") from error
        self._busy.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Takes a connection back: kept if its exchange is complete, closed otherwise."""
        self._busy.discard(connection)
        if connection.complete and connection.reusable and not connection.lost:
            connection.active_at = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()

    def sweep(self, *, now_s: float, silence_s: float) -> None:
        """Closes idle connections past their time and ends exchanges in which the engine was silent for `silence_s`."""
        fresh = [c for c in self._idle if not c.lost and now_s - c.active_at < IDLE_TTL_S]
        for connection in set(self._idle).difference(fresh):
            connection.abort()
        self._idle = fresh
        for connection in list(self._busy):
            if now_s - connection.active_at > silence_s and not connection.paused:
                connection.expire(f"{self.name} sent nothing for {silence_s:g} s")

    def close(self) -> None:
        """Closes every connection."""
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()
