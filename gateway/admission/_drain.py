"""How fast the queue drains: cost dispatched per millisecond in which something waited."""

from __future__ import annotations

from math import exp

WINDOW_MS = 15_000.0
"""What was dispatched so long ago counts e times less. Only time with something waiting passes: what an idle fleet
dispatches says how much it was asked for, not how much it can."""

_KNOWN_FROM = 8
"""Dispatches before the rate is believed."""

_FOLD_MS = 50.0


class Drain:
    def __init__(self) -> None:
        self._cost: dict[int, float] = {}
        self._total = 0.0
        self._dispatches = 0.0
        self._ms = 0.0
        self._since_fold_ms = 0.0
        self._now_ms = 0
        self._began_ms = 0
        self._seen = 0

    def passed(self, now_ms: int, *, waits: bool) -> None:
        """Time is `now_ms`; until now something waited or not."""
        if not waits:
            self._began_ms = now_ms
        elif now_ms > self._now_ms:
            self._since_fold_ms += now_ms - self._now_ms
            if self._since_fold_ms >= _FOLD_MS:
                self._fold()
        self._now_ms = now_ms

    def dispatched(self, band: int, cost: float) -> None:
        """One was dispatched; it counts if something waited until then."""
        if self._now_ms <= self._began_ms:
            return
        self._cost[band] = self._cost.get(band, 0.0) + cost
        self._total += cost
        self._dispatches += 1
        self._seen += 1

    def undone(self, band: int, cost: float) -> None:
        """It was dispatched, and came back."""
        self._cost[band] = max(0.0, self._cost.get(band, 0.0) - cost)
        self._total = max(0.0, self._total - cost)
        self._dispatches = max(0.0, self._dispatches - 1)

    @property
    def total(self) -> float | None:
        """Cost per millisecond of all bands; None before enough was seen."""
        ms = self._ms + self._since_fold_ms
        return self._total / ms if self._seen >= _KNOWN_FROM and ms > 0 and self._total > 0 else None

    def left_for(self, band: int, floor: float) -> float | None:
        """Cost per millisecond of what higher bands do not take; at least `floor` of the total."""
        total = self.total
        if total is None:
            return None
        higher = sum(cost for priority, cost in self._cost.items() if priority > band)
        return max(floor, 1 - higher / self._total) * total

    @property
    def interval_ms(self) -> float:
        """Mean time between dispatches while something waits."""
        return (self._ms + self._since_fold_ms) / self._dispatches if self._dispatches else 0.0

    def _fold(self) -> None:
        kept = exp(-self._since_fold_ms / WINDOW_MS)
        self._ms = self._ms * kept + self._since_fold_ms
        self._total *= kept
        self._dispatches *= kept
        for band in self._cost:
            self._cost[band] *= kept
        self._since_fold_ms = 0.0
