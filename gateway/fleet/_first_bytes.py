"""How long first bytes take here of late, so that one that is unusually late is known. Pure."""

from __future__ import annotations

from collections import deque

KEPT = 256
KNOWN_FROM = 32
"""Of fewer the slowest twentieth is no more than one."""
RECKONED_EVERY = 16


class FirstBytes:
    """Of one model's streams, in milliseconds from being sent."""

    __slots__ = ("_p95_ms", "_times_ms", "_until_next")

    def __init__(self) -> None:
        self._times_ms: deque[int] = deque(maxlen=KEPT)
        self._until_next = KNOWN_FROM
        self._p95_ms: int | None = None

    @property
    def p95_ms(self) -> int | None:
        """Nineteen in twenty came sooner; None while too few have come."""
        return self._p95_ms

    def came(self, after_ms: int) -> None:
        """One has come."""
        self._times_ms.append(after_ms)
        self._until_next -= 1
        if not self._until_next:
            self._until_next = RECKONED_EVERY
            self._p95_ms = sorted(self._times_ms)[len(self._times_ms) * 19 // 20]
