"""How fast the queue drains, in cost per millisecond.

Measured on what is dispatched while something waits, since what an idle fleet dispatches says how much it was asked
for, not how much it can. That is exact after some dozen dispatches; until then it is held against what Little's law
says: the cost that runs over the time it runs for.
"""

from __future__ import annotations

from math import exp

WINDOW_MS = 15_000.0
"""What was dispatched so long ago counts e times less; only time with something waiting passes."""

LOAD_WINDOW_MS = 120_000.0
"""What first attempts took so long ago counts e times less in what they leave to those who come back."""

_LOAD_KNOWN_MS = 10_000.0
_SPARE_GIVEN = 0.7
_LEAST_SPARE = 0.2

_KNOWN_FROM = 8
"""Dispatches, or ends, before a rate is believed."""

_LITTLE_WEIGHT = 32.0
"""Little's law counts like so many dispatches."""

_END_KEPT = 0.995
"""The times of some 200 ends are remembered."""

_FOLD_MS = 50.0


class Drain:
    """`running` is the cost of all that runs."""

    def __init__(self) -> None:
        self.running = 0.0
        self._runs = 0
        self._now_ms = 0
        self._waits_since_ms = 0
        self._cost: dict[int, float] = {}
        self._total = 0.0
        self._dispatches = 0.0
        self._seen = 0
        self._ms = 0.0
        self._unfolded_ms = 0.0
        self._ended = 0.0
        self._ended_ms = 0.0
        self._ends_kept = 0.0
        self._ends = 0
        self._first = 0.0
        self._load_ms = 0.0
        self._load_at_ms = 0

    def passed(self, now_ms: int, *, waits: bool) -> None:
        """Time is `now_ms`; until now something waited or not."""
        if not waits:
            self._waits_since_ms = now_ms
        elif now_ms > self._now_ms:
            self._unfolded_ms += now_ms - self._now_ms
            if self._unfolded_ms >= _FOLD_MS:
                self._fold()
        self._now_ms = now_ms

    def started(self, cost: float, *, retry: bool) -> None:
        """One was dispatched, whether or not it had waited."""
        self.running += cost
        self._runs += 1
        if self._now_ms > self._load_at_ms:
            passed_ms = self._now_ms - self._load_at_ms if self._load_at_ms else 0
            kept = exp(-passed_ms / LOAD_WINDOW_MS)
            self._first *= kept
            self._load_ms = self._load_ms * kept + passed_ms
            self._load_at_ms = self._now_ms
        if not retry:
            self._first += cost

    def dispatched(self, band: int, cost: float, *, retry: bool) -> None:
        """One from the queue was dispatched; it counts for the rate if something had waited for it to be."""
        self.started(cost, retry=retry)
        if self._now_ms <= self._waits_since_ms:
            return
        self._cost[band] = self._cost.get(band, 0.0) + cost
        self._total += cost
        self._dispatches += 1
        self._seen += 1

    def undone(self, band: int, cost: float) -> None:
        """It was dispatched, and came back."""
        self._left(cost)
        self._cost[band] = max(0.0, self._cost.get(band, 0.0) - cost)
        self._total = max(0.0, self._total - cost)
        self._dispatches = max(0.0, self._dispatches - 1)

    def ended(self, cost: float, ran_ms: int) -> None:
        """One that was predicted to cost `cost` ran for `ran_ms`."""
        self._left(cost)
        self._ended = self._ended * _END_KEPT + cost
        self._ended_ms = self._ended_ms * _END_KEPT + cost * ran_ms
        self._ends_kept = self._ends_kept * _END_KEPT + 1
        self._ends += 1

    @property
    def rate(self) -> float | None:
        """Cost per millisecond of all bands; None before enough was seen."""
        cost, ms = self._by_little
        if self._seen >= _KNOWN_FROM:
            cost += self._total
            ms += self._ms + self._unfolded_ms
        return cost / ms if cost > 0 and ms > 0 else None

    def left_for(self, band: int, floor: float) -> float:
        """The part of the rate that higher bands do not take; at least `floor`."""
        if not self._total:
            return 1.0
        higher = sum([cost for priority, cost in self._cost.items() if priority > band])
        return max(floor, 1 - higher / self._total)

    def spare(self, rate: float) -> float:
        """The part of `rate` to give to those who come back: most of what first attempts leave."""
        return max(_LEAST_SPARE, _SPARE_GIVEN * (1 - self._first / max(self._load_ms, _LOAD_KNOWN_MS) / rate))

    @property
    def interval_ms(self) -> float:
        """Mean time between dispatches while something waits."""
        cost, ms = self._by_little
        dispatches = self._dispatches + (_LITTLE_WEIGHT if cost else 0.0)
        return (self._ms + self._unfolded_ms + ms) / dispatches if dispatches else 0.0

    @property
    def _by_little(self) -> tuple[float, float]:
        """The cost of some dispatches and the time they should take, as Little's law has it."""
        if self._ends < _KNOWN_FROM or not (self.running and self._ended_ms):
            return 0.0, 0.0
        cost = _LITTLE_WEIGHT * self._ended / self._ends_kept
        return cost, cost * self._ended_ms / (self._ended * self.running)

    def _left(self, cost: float) -> None:
        # What rounding leaves of sums must not pass for a fleet that drains next to nothing.
        self._runs -= 1
        self.running = max(0.0, self.running - cost) if self._runs else 0.0

    def _fold(self) -> None:
        kept = exp(-self._unfolded_ms / WINDOW_MS)
        self._ms = self._ms * kept + self._unfolded_ms
        self._total *= kept
        self._dispatches *= kept
        for band in self._cost:
            self._cost[band] *= kept
        self._unfolded_ms = 0.0
