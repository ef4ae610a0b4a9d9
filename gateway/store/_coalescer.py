"""The coalescing client: what concurrent requests want of Redis travels together.

At most one batch is on its way at a time. Whoever wants something meanwhile is put on the list, and the next batch
takes all of it: one script call per caller (a caller is one tenant's account, so a call's keys share one hash tag),
all calls in one pipeline. No task and no timer per operation. A batch of one leaves on the loop's next turn; under load
more gathers while one is away, and none leaves sooner than `PACE_S` after the last: a thousand requests a second then
share 500 calls.

A failure is told to everyone aboard, and a caller who still has something to say is asked again after a pause that
doubles up to `RETRY_MAX_S`. New wishes do not wait for that pause: the first one may find Redis back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from redis.asyncio import Redis

from ._errors import StoreUnavailable
from ._link import Link, Reply, pack
from ._scripts import Script

log = logging.getLogger(__name__)

PACE_S = 0.002
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0


class Call(NamedTuple):
    """One script call: its keys, all of one hash tag, and its arguments."""

    keys: list[str]
    arguments: list[bytes]


class Caller(Protocol):
    """Someone who gathers operations and hands them over as one script call."""

    def take(self, now_ms: int) -> Call | None:
        """Everything that waits, as one call; None when nothing does. `finish` or `fail` follows each call."""

    def finish(self, reply: bytes) -> bool:
        """The call's answer. True when more waits already."""

    def fail(self, error: StoreUnavailable) -> bool:
        """The call failed; it may or may not have been applied. True when it is to be tried again."""


class Coalescer:
    """Calls one script for many callers over one connection. Not for use from several event loops."""

    def __init__(
        self,
        redis: Redis,
        script: Script,
        *,
        now_ms: Callable[[], int],
        timeout_s: float,
        random: Callable[[], float],
        on_connected: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`timeout_s` bounds a batch from its sending to its last reply, and a connection's opening. `random` in
        [0, 1) spreads the retries of many workers. `on_connected` hears of every new connection, before anything is
        sent on it, and for how many seconds there had been no answer (0: it is the first)."""
        self._redis = redis
        self._script = script
        self._now_ms = now_ms
        self._timeout_s = timeout_s
        self._random = random
        self._on_connected = on_connected
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: dict[Caller, None] = {}
        self._aboard: list[tuple[Caller, Call]] = []
        self._busy = False
        self._leaving: asyncio.TimerHandle | None = None
        self._leaves_s = 0.0
        self._left_s = 0.0
        self._answered_s: float | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_MIN_S
        self._to_retry: dict[Caller, None] = {}
        self._closed = False
        self.failures = 0
        """Batches that failed since the last one that came back; 0 means that Redis is there."""

    def wake(self, caller: Caller, *, within_s: float = 0.0) -> None:
        """`caller` has something to say: `take` is called when the next batch leaves, which may take `within_s` if
        nobody is in a hurry. After `close` none does."""
        if self._closed:
            return
        self._waiting[caller] = None
        if not self._busy:
            self._leave(within_s)

    def close(self) -> None:
        """Drops the connection; who waits is told so."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for timer in (self._retry, self._leaving):
            if timer is not None:
                timer.cancel()
        self._drop_link()
        stopping = StoreUnavailable("The gateway is shutting down")
        self._fail(stopping)
        self._board()
        self._fail(stopping)

    def _leave(self, within_s: float) -> None:
        now_s = self._loop.time()
        at_s = max(now_s + within_s, self._left_s + PACE_S)
        if self._leaving is not None:
            if self._leaves_s <= at_s:
                return
            self._leaving.cancel()
        self._leaves_s = at_s
        self._leaving = self._loop.call_at(at_s, self._depart)

    def _depart(self) -> None:
        self._leaving = None
        if self._closed:
            return
        self._busy = True
        if self._link is None:
            if self._connecting is None:
                self._connecting = self._loop.create_task(self._connect())
            return
        self._board()
        if not self._aboard:
            self._busy = False
            return
        self._send([self._evalsha(call) for _, call in self._aboard])

    def _board(self) -> None:
        now_ms = self._now_ms()
        waiting, self._waiting = self._waiting, {}
        for caller in waiting:
            try:
                call = caller.take(now_ms)
            except Exception as error:
                self._disown(caller, error)
                continue
            if call is not None:
                self._aboard.append((caller, call))

    def _tell(self, caller: Caller, reply: bytes) -> None:
        try:
            more = caller.finish(reply)
        except Exception as error:
            self._disown(caller, error)
            return
        if more:
            self._waiting[caller] = None

    def _disown(self, caller: Caller, error: Exception) -> None:
        """A defect of ours in one caller: it must not keep the others waiting, nor be repeated for ever."""
        log.critical("%s cannot be served", caller, exc_info=error)
        caller.fail(StoreUnavailable(f"A defect in {caller}: {error!r}"))

    def _evalsha(self, call: Call) -> bytes:
        return pack(b"EVALSHA", self._script.sha1, len(call.keys), *call.keys, *call.arguments)

    def _send(self, commands: list[bytes]) -> None:
        assert self._link is not None
        self._left_s = self._loop.time()
        self._timeout = self._loop.call_at(self._left_s + self._timeout_s, self._time_out)
        self._link.send(b"".join(commands), replies=len(commands))

    def _arrive(self, replies: list[Reply]) -> None:
        assert self._timeout is not None
        self._timeout.cancel()
        self._answered_s = self._loop.time()
        if len(replies) > len(self._aboard):  # the script was loaded first
            loaded = replies.pop(0)
            if isinstance(loaded, Exception):
                self._lost(StoreUnavailable(f"Redis did not take the script: {loaded}"))
                return
        elif any(isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT") for reply in replies):
            self._reload(replies)
            return
        aboard, self._aboard = self._aboard, []
        refused: StoreUnavailable | None = None
        for (caller, _), reply in zip(aboard, replies, strict=True):
            if isinstance(reply, bytes):
                self._tell(caller, reply)
            else:
                # Redis is there but does not do it: out of memory, read-only, still loading, a type that is not ours.
                refused = StoreUnavailable(f"Redis refused the call of {caller}: {reply}")
                if caller.fail(refused):
                    self._to_retry[caller] = None
        if refused is not None:
            self._count_failure(refused)
        elif self.failures:
            log.warning("Redis is back after %d failures", self.failures)
            self.failures = 0
            self._retry_s = RETRY_MIN_S
        self._plan_retry()
        self._go_on()

    def _reload(self, replies: list[Reply]) -> None:
        """Redis forgot the script (a restart, SCRIPT FLUSH): load it, and call again for those it did nothing for."""
        again = []
        for (caller, call), reply in zip(self._aboard, replies, strict=True):
            if not isinstance(reply, bytes):
                again.append((caller, call))
            else:
                self._tell(caller, reply)
        self._aboard = again
        load = pack(b"SCRIPT", b"LOAD", self._script.text)
        self._send([load, *(self._evalsha(call) for _, call in self._aboard)])

    def _go_on(self) -> None:
        self._busy = False
        if self._waiting:
            self._leave(0.0)

    async def _connect(self) -> None:
        link = Link(self._arrive, self._lost)
        try:
            async with asyncio.timeout(self._timeout_s):
                await link.open(self._redis)
        except Exception as error:
            link.close()
            self._connecting = None
            self._board()
            self._fail(_unavailable(error))
            return
        self._connecting = None
        self._link = link
        self._on_connected(0.0 if self._answered_s is None else self._loop.time() - self._answered_s)
        self._depart()

    def _time_out(self) -> None:
        self._lost(StoreUnavailable(f"Redis did not answer within {self._timeout_s:g} s"))

    def _lost(self, error: StoreUnavailable) -> None:
        self._drop_link()
        self._fail(error)

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if self._timeout is not None:
            self._timeout.cancel()

    def _fail(self, error: StoreUnavailable) -> None:
        aboard, self._aboard = self._aboard, []
        if aboard and not self._closed:
            self._count_failure(error)
        for caller, _ in aboard:
            if caller.fail(error):
                self._to_retry[caller] = None
        if not self._closed:
            self._plan_retry()
            self._go_on()

    def _count_failure(self, error: StoreUnavailable) -> None:
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:  # the 1st, 2nd, 4th, 8th...: an outage does not fill the log
            log.error("%s (failure %d in a row)", error, self.failures)

    def _plan_retry(self) -> None:
        if self._to_retry and self._retry is None:
            self._retry = self._loop.call_later(self._retry_s * (0.5 + self._random() / 2), self._try_again)
            self._retry_s = min(RETRY_MAX_S, 2 * self._retry_s)

    def _try_again(self) -> None:
        self._retry = None
        callers, self._to_retry = self._to_retry, {}
        for caller in callers:
            self.wake(caller)


def _unavailable(error: Exception) -> StoreUnavailable:
    match error:
        case StoreUnavailable():
            return error
        case TimeoutError():
            return StoreUnavailable("Redis does not accept connections in time")
        case _:
            log.exception("Connecting to Redis failed in an unexpected way", exc_info=error)
            return StoreUnavailable(f"Connecting to Redis failed: {error!r}")
