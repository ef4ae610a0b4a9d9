"""By when a request has to be dispatched so that its first token still comes within the target.

What the engine needs beyond a prompt's own prefill (prompts ahead of it, the step that runs, its API server) is
measured from dispatch on, over all replicas of a model: the tail of that, not its mean, has to be left of the target.
"""

from __future__ import annotations

from collections import deque

from ._work import Work

FIRST_BEYOND_MS = 250.0
"""Before anything was measured: what P lets be ahead of a prompt."""
REMEMBERED = 256
"""First tokens whose times are looked at: some ten seconds of a busy replica, so that an incident is soon forgotten."""
IN_TIME = 0.99
"""The part of them that what is left has to do for: as many as a p99 target wants."""
LEAST_WAIT_PART = 0.1
"""Of the target, how long a request may wait in any case: with less nearly all would be refused whenever engines are
slow, and nothing would be measured any more."""

_LOOKED_AT_EVERY = 16


class FirstTokens:
    """Learns from streams' first tokens; no clock and no I/O."""

    def __init__(self) -> None:
        self.beyond_ms = FIRST_BEYOND_MS
        """What nearly all of the engines' first tokens took, their own prefill not counted."""
        self._beyond: deque[float] = deque(maxlen=REMEMBERED)
        self._new = 0

    def came(self, took_ms: float, own_ms: float) -> None:
        """One came `took_ms` after its dispatch; its own prompt was expected to be read in `own_ms`."""
        self._beyond.append(took_ms - own_ms)
        self._new += 1
        if self._new >= _LOOKED_AT_EVERY:
            self._new = 0
            self.beyond_ms = max(0.0, sorted(self._beyond)[int(IN_TIME * len(self._beyond))])

    def dispatch_by_ms(self, work: Work, ttft_ms: int, own_ms: float) -> int:
        """The latest time to dispatch `work` for a first token within `ttft_ms` of its arrival; never later than its
        deadline. One whose own prefill takes longer than that cannot keep the target, and has its deadline alone."""
        if own_ms >= ttft_ms:
            return work.deadline_ms
        left_ms = max(LEAST_WAIT_PART * ttft_ms, ttft_ms - own_ms - self.beyond_ms)
        return min(work.deadline_ms, work.arrived_ms + int(left_ms))
