"""When to come back: clients that are told a time come at that time, so each is told its own."""

from __future__ import annotations

from heapq import heappop, heappush
from zlib import crc32

HONOURED_MS = 120_000
"""OpenAI's Python client fails without a retry where it is told to wait longer (openai-python #3555)."""

_SHORTEST_MS = 1_000
_SPREAD_MS = 5_000.0
_LONGEST_DOUBLING_S = 32
_KEPT = 4096


def spread(request_id: str) -> float:
    """A number in [0, 1) that is always the same for the same request, and even over all of them."""
    return crc32(request_id.encode()) / 2**32


class Returns:
    """Times at which the refused of one band should come back: each tenant's one after the other, as fast as its share
    of the room allows. At most 4,096 tenants are remembered, those refused last."""

    def __init__(self) -> None:
        self._next: dict[str, tuple[float, float]] = {}
        self._ends: list[tuple[float, str]] = []
        self._weight = 0.0
        self._all_ms = 0.0
        """When all the room will have served all that were told to come back."""

    def __len__(self) -> int:
        return len(self._next)

    def after_ms(
        self,
        tenant: str,
        weight: float,
        request_id: str,
        *,
        wait_ms: float,
        alone_ms: float,
        waiting_weight: float,
        now_ms: int,
    ) -> int:
        """Milliseconds until it should come back.

        `wait_ms` is what it would have waited, `alone_ms` the time in which all the room there is would serve it, and
        `waiting_weight` that of the tenants that wait for room now.
        """
        self._forget_past(now_ms)
        next_ms, known_weight = self._next.pop(tenant, (0.0, 0.0))
        others = self._weight - known_weight
        spacing = alone_ms * max(waiting_weight, others + weight) / weight
        soonest_ms = now_ms + max(wait_ms, _SHORTEST_MS)
        self._all_ms = max(self._all_ms, soonest_ms)
        at = max(soonest_ms, min(next_ms, self._all_ms))
        if at - now_ms < HONOURED_MS:
            next_ms = at + spacing
            self._all_ms += alone_ms
        if not known_weight:
            heappush(self._ends, (max(next_ms, now_ms), tenant))
        self._next[tenant] = (next_ms, weight)
        self._weight = others + weight
        if len(self._next) > _KEPT:
            self._weight -= self._next.pop(next(iter(self._next)))[1]
        return int(at + spread(request_id) * min(spacing, _SPREAD_MS)) - now_ms

    def _forget_past(self, now_ms: int) -> None:
        while self._ends and self._ends[0][0] <= now_ms:
            _, tenant = heappop(self._ends)
            next_ms, weight = self._next.get(tenant, (0.0, 0.0))
            if next_ms > now_ms:
                heappush(self._ends, (next_ms, tenant))
            elif weight:
                del self._next[tenant]
                self._weight -= weight
        if not self._next:
            self._weight = 0.0


class Doubling:
    """For want of a rate: seconds that double while refusals go on, and go down by one when they cease (Kubernetes
    API Priority and Fairness, `dropped_requests_tracker.go`: 1 to 32 s, doubled at 3 refusals a second of waiting)."""

    def __init__(self) -> None:
        self._seconds = 1
        self._refused = 0
        self._since_ms = 0

    def after_ms(self, request_id: str, now_ms: int) -> int:
        elapsed_ms = now_ms - self._since_ms
        if elapsed_ms >= 1000 * self._seconds:
            if self._refused >= 3 * self._seconds and elapsed_ms < 2000 * self._seconds:
                self._seconds = min(_LONGEST_DOUBLING_S, 2 * self._seconds)
            else:
                self._seconds = max(1, self._seconds - elapsed_ms // (1000 * self._seconds))
            self._refused, self._since_ms = 0, now_ms
        self._refused += 1
        return int(1000 * self._seconds * (1 + spread(request_id)))
