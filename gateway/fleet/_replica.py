"""One engine process as the gateway knows it: its connections, its load from here, whether it answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.engines import Dialect, dialect_of
from gateway.policy import rank_name
from gateway.wire import Endpoint

from ._connection import Connection, UpstreamLost, UpstreamMoved, UpstreamSilent
from ._counters import Reading, is_restart
from ._health import SLOW_START_S, Health
from ._liveness import Liveness

CONNECT_TIMEOUT_S = 3.0
IDLE_TTL_S = 4.0
"""uvicorn, which serves vLLM, closes connections idle for 5 s: ours are given up earlier, so that none dies in use."""

KEEP_ALIVE_RACE_S = 1.0
"""A kept connection that ends so soon, with nothing received, is one that the engine had just closed."""
STALLED_FOR_S = 60.0
"""Streams of a replica that gives nobody a token are given up after this silence: they may go on elsewhere."""
MOVING_S = 5.0
"""A stream that got something within so long is one that runs well."""

_COMPUTES = tuple(b"POST %b " % endpoint.path.encode() for endpoint in Endpoint if endpoint.computes)
_VLLM = dialect_of("vllm")


LOAD_EVERY_S = 0.25
"""What an engine says of its load is believed for half a second."""


class ConnectFailed(Exception):
    """No connection could be made, so nothing was sent: the request may run elsewhere."""


class Rank(Struct, frozen=True):
    """One of several engines behind a replica's address. `header` is the request's line that leads to it."""

    name: str
    replica: Replica
    number: int
    header: bytes


class Replica:
    """A pool of connections to one engine, and what is known about it.

    `in_flight` counts this worker's own requests there, `requests_sent` those for GPU time that it ever sent. `healthy`
    says whether it may get new requests, `health` why; a new replica is not healthy until it has answered once.
    `share` is the part of its even share that it should have, below 1 while it starts. `reading` is what its metrics
    page said when a worker read it last; up to two of the scraper's intervals old. `salted_paths` is where its engine
    takes a `cache_salt`; None until that has been asked of this engine.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect = _VLLM,
        *,
        api_key: str | None = None,
        slow_start_s: float = SLOW_START_S,
        changed: Callable[[Replica], None] | None = None,
        restarted: Callable[[Replica], None] | None = None,
    ) -> None:
        """Made inside the event loop it is used from. `changed` hears of changes of its health, `restarted` of a new
        process, whose cache is empty."""
        self._loop = asyncio.get_running_loop()
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.url = url
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.name = f"{self.host}:{self.port}"
        self.ranks: tuple[Rank, ...] = ()
        self.places: tuple[str, ...] = (self.name,)
        """What the places are called that a request may be placed at here."""
        self.in_flight = 0
        self.requests_sent = 0
        self.healthy = False
        self.share = 1.0
        self.health = Health(slow_start_s=slow_start_s, changed=self._follow)
        self.liveness = Liveness()
        self.context_tokens: int | None = None
        self.salted_paths: frozenset[str] | None = None
        self.reading: Reading | None = None
        self._seen: Reading | None = None
        self._changed = changed or _nobody
        self._restarted = restarted or _nobody
        self._last_token_s: float | None = None
        self._load_asked_s = -LOAD_EVERY_S
        self._stalled_s = 0.0
        self._trial: Connection | None = None
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._base_path = parts.path
        self._host_header = parts.netloc.encode()
        self.speak(dialect, api_key)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    def serve_ranks(self, numbers: Iterable[int]) -> None:
        """These data-parallel ranks are behind its address; none: it is one engine."""
        self.ranks = tuple(
            Rank(rank_name(self.name, number), self, number, b"x-data-parallel-rank: %d\r\n" % number)
            for number in numbers
        )
        self.places = tuple(rank.name for rank in self.ranks) or (self.name,)

    def speak(self, dialect: Dialect, api_key: str | None) -> None:
        """From now on requests go there in this dialect and with this key of the platform's own."""
        self.dialect = dialect
        self._authorization = b"" if api_key is None else b"authorization: Bearer %b\r\n" % api_key.encode()
        self.control_headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._started: dict[str, bytes] = {}

    @property
    def is_there(self) -> bool:
        """Whether its machine is, so that its GPUs cost money."""
        return self.health.is_there

    def head(self, path: str, request_id: bytes, length: int, extra: bytes = b"") -> bytes:
        """The request head. `extra` holds whole header lines, each ended with CRLF."""
        started = self._started.get(path) or self._start(path)
        return b"%bx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n" % (started, request_id, length, extra)

    def _start(self, path: str) -> bytes:
        """The head's lines that are the same each time."""
        started = self._started[path] = (
            b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\naccept: */*\r\n%b"
        ) % (self.dialect.path(self._base_path, path).encode(), self._host_header, self._authorization)
        return started

    @property
    def _idle_ttl_s(self) -> float:
        return IDLE_TTL_S if self.dialect.idle_ttl_s is None else self.dialect.idle_ttl_s

    def send(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Starts an exchange on one of this replica's connections."""
        if self.health.is_trial and self._trial is None:
            self._trial = connection
            self.health.sent(self._loop.time())
        connection.send(head, body)
        self.requests_sent += head.startswith(_COMPUTES)

    def oldest_exchange_s(self) -> float | None:
        """How long ago the oldest exchange that still runs was sent, in seconds; None when none runs."""
        began_at = min((connection.began_at for connection in self._busy), default=None)
        return None if began_at is None else self._loop.time() - began_at

    def asks_load(self) -> bool:
        """Whether an answer that comes whole is to say how much its engine has to do: now and then, where it can."""
        now_s = self._loop.time()
        if not self.dialect.load_header or now_s - self._load_asked_s < LOAD_EVERY_S:
            return False
        self._load_asked_s = now_s
        return True

    def take_idle(self) -> Connection | None:
        """A connection kept alive and still good, or None: then `connect`."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and self._loop.time() - connection.active_at < self._idle_ttl_s:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection for a request. Raises `ConnectFailed`, and then nothing more is sent here for now."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self.new_connection()
        except (ConnectFailed, TimeoutError) as error:
            self.refused(str(error) or "connecting took too long")
            raise ConnectFailed(f"{self.name}: {error or 'timed out'}") from error
        self._busy.add(connection)
        return connection

    async def new_connection(self) -> Connection:
        """A connection that is not one of its requests'. Raises `ConnectFailed`."""
        loop = self._loop
        try:
            _, connection = await loop.create_connection(lambda: Connection(loop), self.host, self.port, ssl=self._ssl)
        except OSError as error:
            raise ConnectFailed(str(error)) from error
        return connection

    def get_head(self, path: str) -> bytes:
        """The head of a request to its control plane."""
        return b"GET %b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\n%b\r\n" % (
            path.encode(),
            self._host_header,
            self._authorization,
        )

    def release(self, connection: Connection) -> None:
        """Takes a connection back: kept if its exchange is complete, closed otherwise. How it ended is a sign of the
        replica's health."""
        self._busy.discard(connection)
        self._judge(connection)
        if connection.complete and connection.reusable and not connection.lost:
            connection.active_at = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()

    def cut(self, reason: str) -> int:
        """Ends all that runs here, whether or not it can go on elsewhere; how many that were."""
        running = list(self._busy)
        for connection in running:
            connection.cut(reason)
        return len(running)

    def refused(self, detail: str) -> None:
        """No connection can be made: nobody listens there, or nobody answers."""
        self.health.out(self._loop.time(), "refused", detail)

    def answered(self, *, joins: bool) -> None:
        """A probe was answered rightly. What listens where nobody listened before is a new process."""
        is_new_process = self.health.refuses
        self.health.answered(self._loop.time(), joins=joins)
        if is_new_process:
            self._restarted(self)

    def look(self) -> None:
        """About twice a second: what has come since, of tokens and of readings."""
        now_s = self._loop.time()
        self._look_for_restart(now_s)
        streams = 0
        for connection in self._busy:
            if connection.streams and not connection.complete:
                streams += not connection.paused
                self._token(connection.active_at)
        liveness, health = self.liveness, self.health
        if (trial := self._trial) is not None and trial.streams:
            self._trial = None
            health.good(now_s, is_trial=True)
        stalled = liveness.stalls
        liveness.look(now_s, streams=streams, last_token_s=self._last_token_s)
        if liveness.stalls:
            self._stalled_s = self._stalled_s if stalled else now_s
            silent_s = max(liveness.silent_for_s(now_s), liveness.frozen_for_s(now_s))
            health.stalled(now_s, f"no token for {silent_s:.0f} s, {streams} streams are open")
        elif stalled and liveness.moved_s is not None and liveness.moved_s >= self._stalled_s:
            health.moved(now_s)
        elif stalled:
            health.emptied(now_s)
        health.tick(now_s)
        self.share = health.share

    def _look_for_restart(self, now_s: float) -> None:
        """Compares the last two readings: their counters only grow while the process lives."""
        before, now = self._seen, self.reading
        if now is None or now is before:
            return
        self._seen = now
        self.liveness.read(now_s, running=now.running - now.waiting, tokens=_tokens(now))
        if before is None:
            return
        if is_restart(before, now):
            self.health.restarted(now_s)
            self._restarted(self)
        elif _tokens(now) > _tokens(before):
            self._token(now_s)

    def _token(self, at_s: float) -> None:
        if self._last_token_s is None or at_s > self._last_token_s:
            self._last_token_s = at_s

    def _judge(self, connection: Connection) -> None:
        """What the end of an exchange says: 4xx, 429 and 503 say nothing, nor does what our side has ended."""
        if connection.complete and connection.status < 300 and self._trial is None and not connection.blamed:
            self.health.well += 1  # nearly all of them: nothing else is to be done
            self._token(connection.active_at)
            return
        now_s, health, fault = self._loop.time(), self.health, connection.fault
        if is_trial := connection is self._trial:
            self._trial = None
        status = connection.status
        if connection.complete and connection.blamed:
            health.fault(now_s, "garbage", connection.blamed, moving=self._moving(now_s), is_trial=is_trial)
        elif connection.complete and status < 300:
            self._token(connection.active_at)
            health.good(now_s, is_trial=is_trial)
        elif status >= 500 and status != 503:
            health.fault(now_s, "errors", f"answered {status}", moving=self._moving(now_s), is_trial=is_trial)
        elif isinstance(fault, UpstreamMoved):
            health.good(now_s, is_trial=is_trial)
        elif isinstance(fault, UpstreamLost) and not self._is_race(connection, now_s):
            kind: Literal["silent", "lost"] = "silent" if isinstance(fault, UpstreamSilent) else "lost"
            health.fault(now_s, kind, str(fault), moving=self._moving(now_s), is_trial=is_trial)
        elif is_trial:
            health.trial_void(now_s)

    def _moving(self, now_s: float) -> int:
        """Streams that get tokens."""
        return sum([connection.streams and now_s - connection.active_at < MOVING_S for connection in self._busy])

    @staticmethod
    def _is_race(connection: Connection, now_s: float) -> bool:
        """Whether the engine had closed the connection, idle for long, when a request was sent on it."""
        received = connection.active_at > connection.began_at
        return connection.exchanges > 1 and not received and now_s - connection.began_at < KEEP_ALIVE_RACE_S

    def _follow(self) -> None:
        """Its health has changed."""
        self.healthy, self.share = self.health.admits, self.health.share
        self._changed(self)

    def sweep(self, *, now_s: float, silence_s: float) -> None:
        """Closes idle connections past their time and ends exchanges in which the engine was silent for `silence_s`;
        streams of a replica that gives nobody a token, earlier."""
        fresh = [c for c in self._idle if not c.lost and now_s - c.active_at < self._idle_ttl_s]
        for connection in set(self._idle).difference(fresh):
            connection.abort()
        self._idle = fresh
        stalls_s = min(silence_s, STALLED_FOR_S) if self.liveness.stalls else silence_s
        for connection in list(self._busy):
            most_s = stalls_s if connection.streams else silence_s
            if now_s - connection.active_at > most_s and not connection.paused:
                connection.expire(f"{self.name} sent nothing for {most_s:g} s")

    def close(self) -> None:
        """Closes every connection."""
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()


def _tokens(reading: Reading) -> int:
    """Prompt tokens read and answers' tokens made."""
    return reading.counters.get("prompt", 0) + reading.counters.get("generation", 0)


def _nobody(replica: Replica) -> None:
    """Nobody hears of it."""
