"""What this worker's lines share with those of other workers and gateways over the same replicas, through Redis.

About twice a second each model's line tells what its tenants were given here and hears what they were given elsewhere,
so that a tenant's counter grows by what all gateways gave it and asking many of them is no advantage. While Redis is
away each line is fair among its own requests; what it gave meanwhile is told when Redis is back.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable

from redis.asyncio import Redis

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
CALL_TIMEOUT_S = 1.0


class SharedLine:
    """One model's line as it talks to its like: a caller of the coalescing client."""

    def __init__(self, model: str, line: Line, worker: str) -> None:
        self._keys = ModelKeys(model)
        self._line = line
        self._worker = worker
        self._number = 0
        self._growth = b""
        self._after = ""

    def take(self, now_ms: int) -> Call | None:
        """What was given since the last call; the same again where that is not known to have been heard."""
        if not self._growth:
            self._growth = packed_growth(self._line.queue.counters())
            self._number += 1
        return share_call(self._keys, self._worker, number=self._number, growth=self._growth, after=self._after)

    def finish(self, reply: bytes) -> bool:
        heard = share_reply(reply)
        self._growth, self._after = b"", heard.after
        if heard.growths:
            self._line.queue.merge(total_growth(heard.growths))
        return False

    def fail(self, error: StoreUnavailable) -> bool:
        """Told again at the next interval."""
        return False


class Sharing:
    """One worker's part in the exchange. `async with` runs it. `now_ms` is Unix time."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        redis: Redis,
        *,
        now_ms: Callable[[], int],
        interval_s: float | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._redis = redis
        self._now_ms = now_ms
        self._interval_s = SHARE_INTERVAL_S if interval_s is None else interval_s
        self._worker = secrets.token_hex(6)
        self._lines: dict[str, SharedLine] = {}

    async def __aenter__(self) -> Sharing:
        self._coalescer = Coalescer(
            self._redis,
            load_script("share"),
            now_ms=self._now_ms,
            timeout_s=CALL_TIMEOUT_S,
            random=random.random,
        )
        self._running = asyncio.create_task(self._run(), name="sharing")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        self._coalescer.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            for model, line in self._dispatcher.lines.items():
                shared = self._lines.get(model)
                if shared is None:
                    shared = self._lines[model] = SharedLine(model, line, self._worker)
                self._coalescer.wake(shared)
