"""Time as a dependency: handed in by the composition root, never read inside a decision."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for records and periods, monotonic time for durations."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""

    def monotonic_s(self) -> float:
        """Seconds that never run backwards."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()
