"""When to come back: clients that are told a time come at that time, so each is told its own."""

from __future__ import annotations

from zlib import crc32

HONOURED_MS = 120_000
"""OpenAI's Python client fails without a retry where it is told to wait longer (openai-python #3555)."""

SPARE = 0.5
"""Of a tenant's share of the drain rate, so much is given out to those who come back: first attempts go before."""

_SHORTEST_MS = 1_000
_LONGEST_DOUBLING_S = 32
_KEPT = 4096


def spread(request_id: str) -> float:
    """A number in [0, 1) that is always the same for the same request, and even over all of them."""
    return crc32(request_id.encode()) / 2**32


class Returns:
    """Gives the refused of each tenant times at which there will be room for one after the other."""

    def __init__(self) -> None:
        self._next_ms: dict[tuple[int, str], float] = {}

    def __len__(self) -> int:
        return len(self._next_ms)

    def after_ms(
        self, band: int, tenant: str, request_id: str, *, wait_ms: float, service_ms: float, now_ms: int
    ) -> int:
        """Milliseconds until it should come back. `wait_ms` is what it would have waited, `service_ms` the time its
        tenant's share needs to serve it."""
        key = (band, tenant)
        spacing = service_ms / SPARE
        at = max(now_ms + max(wait_ms, _SHORTEST_MS), self._next_ms.get(key, 0.0))
        if at - now_ms < HONOURED_MS:
            if key not in self._next_ms and len(self._next_ms) >= _KEPT:
                self._next_ms = {key: at for key, at in self._next_ms.items() if at > now_ms + _SHORTEST_MS}
            self._next_ms[key] = at + spacing
        return int(at + spread(request_id) * spacing) - now_ms


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
