"""What this worker's lines share with those of other workers and gateways over the same replicas, through Redis.

About twice a second each model's line tells what its tenants were given here and what it runs and waits for, and hears
the same of the others. So a tenant's counter grows by what all gateways gave it, asking many of them is no advantage,
and together they send a replica no more than one would. A line that has nothing to run says nothing; the first request
speaks at once. While Redis is away each line keeps its last share and is fair among its own requests; what it gave
meanwhile is told when Redis is back.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable

import msgspec
from redis.asyncio import Redis

from gateway.admission import Heard, Pool, Told
from gateway.dispatch import Dispatcher, Line
from gateway.store import (
    Call,
    Coalescer,
    ModelKeys,
    StoreUnavailable,
    load_script,
    packed_growth,
    share_call,
    share_reply,
    total_growth,
)

SHARE_INTERVAL_S = 0.5
"""What is heard is at most a second old: told up to an interval late, heard up to one after."""
ASK_INTERVAL_S = 0.1
"""A line that is short of its share asks before its time, but not more often."""
CALL_TIMEOUT_S = 1.0

_encode = msgspec.json.Encoder().encode
_decode_told = msgspec.json.Decoder(Told).decode


def _read(told: str) -> Told:
    """What another worker told. One of another version may not be understood: of it only what it was granted counts."""
    try:
        return _decode_told(told)
    except msgspec.DecodeError:
        return Told({}, 0, 0, {})


class SharedLine:
    """One model's line as it talks to its like: a caller of the coalescing client."""

    def __init__(self, model: str, line: Line, pool: Pool) -> None:
        self._keys = ModelKeys(model)
        self._line = line
        self._pool = pool
        self._number = 0
        self._growth = b""
        self._after = ""
        self._told = Told({}, 0, 0, {})

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell: also, once, that there is nothing more."""
        return bool(self._growth or self._told.demand or self._line.has_news or not self._line.idle)

    def fall_silent(self) -> None:
        """The next request is told of at once."""
        self._line.silent = True

    def take(self, now_ms: int) -> Call | None:
        """The growth is what was given since the last call; the same again where that may not have been heard."""
        line, pool = self._line, self._pool
        line.has_news = False
        if not self._growth:
            self._growth = packed_growth(line.queue.counters())
            self._number += 1
        knees = line.knees_by_name()
        told = self._told = pool.told(line.queue, line.itl_ms, knees)
        return share_call(
            self._keys,
            pool.name,
            number=self._number,
            growth=self._growth,
            after=self._after,
            told=_encode(told),
            limits=pool.limits(knees),
            wants=pool.wants(told, knees),
        )

    def finish(self, reply: bytes) -> bool:
        heard = share_reply(reply)
        self._growth, self._after = b"", heard.after
        if heard.growths:
            self._line.queue.merge(total_growth(heard.growths))
        self._line.heard(
            Heard(
                leads=heard.leads == 1,
                limits=heard.limits,
                grants=heard.grants,
                others={name: _read(told) for name, told in heard.others},
            )
        )
        return False

    def fail(self, error: StoreUnavailable) -> bool:
        """Told again at the next interval."""
        self._line.lost()
        return False


class Sharing:
    """One worker's part in the exchange. `async with` runs it. `now_ms` is Unix time."""

    def __init__(self, dispatcher: Dispatcher, redis: Redis, *, now_ms: Callable[[], int]) -> None:
        self._dispatcher = dispatcher
        self._redis = redis
        self._now_ms = now_ms
        self._worker = secrets.token_hex(6)
        self._lines: list[SharedLine] = []

    async def __aenter__(self) -> Sharing:
        self._coalescer = Coalescer(
            self._redis,
            load_script("share"),
            now_ms=self._now_ms,
            timeout_s=CALL_TIMEOUT_S,
            random=random.random,
        )
        self._running = asyncio.create_task(self._run(), name="sharing")
        self._dispatcher.on_line = self._join
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        self._coalescer.close()

    def _join(self, model: str, line: Line) -> None:
        """A model is asked for the first time."""
        pool = Pool(self._worker)
        shared = SharedLine(model, line, pool)
        self._lines.append(shared)
        loop, asked_s = asyncio.get_running_loop(), -ASK_INTERVAL_S

        def ask() -> None:
            nonlocal asked_s
            if loop.time() - asked_s >= ASK_INTERVAL_S:
                asked_s = loop.time()
                self._coalescer.wake(shared)

        line.share(pool, ask)
        ask()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SHARE_INTERVAL_S)
            for shared in self._lines:
                if shared.has_news:
                    self._coalescer.wake(shared)
                else:
                    shared.fall_silent()
