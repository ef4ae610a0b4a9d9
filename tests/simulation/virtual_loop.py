"""An event loop in virtual time: what waits for a timer gets there at once, and nothing else can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from selectors import SelectSelector
from typing import Any, TypeVar

T = TypeVar("T")


class _Skips(SelectSelector):
    """Instead of waiting lets virtual time pass."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and is as far as its timers have led."""

    def __init__(self) -> None:
        self._skips = _Skips()
        super().__init__(self._skips)

    def time(self) -> float:
        return self._skips.now_s

    def now_ms(self) -> int:
        return int(self._skips.now_s * 1000)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end in virtual time; what it left running is cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
