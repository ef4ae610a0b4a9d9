"""How many requests may be tried again: a share of the traffic, so that an outage is not made worse by retries."""

from __future__ import annotations

SHARE = 0.1
"""Of the requests that come, so many may be tried again. Envoy's budget is a fifth, gRPC's and Finagle's a tenth."""
FLOOR_PER_S = 1.0
"""Little traffic earns too little to live through one lost replica."""
SAVED_MAX = 100.0
"""What one worker may spend at once: all that wait for their first byte at a replica that dies."""


class RetryBudget:
    """A bucket that each request fills by `SHARE` and each retry empties by one. Full at first. Pure: time is passed
    in, as monotonic seconds."""

    __slots__ = ("_saved", "_since_s")

    def __init__(self) -> None:
        self._saved = SAVED_MAX
        self._since_s: float | None = None

    def earn(self) -> None:
        """A request has come."""
        if self._saved < SAVED_MAX:
            self._saved += SHARE

    def spend(self, now_s: float) -> bool:
        """Whether one request may be tried once more; then it is paid for."""
        if self._since_s is not None:
            self._saved = min(SAVED_MAX, self._saved + FLOOR_PER_S * max(0.0, now_s - self._since_s))
        self._since_s = now_s
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
