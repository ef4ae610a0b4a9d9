"""Whether tokens come of a replica that has streams open. Pure.

`/health` of an engine says that its process runs, also while its loop is wedged; a busy one answers late. What an
engine is for is tokens: a wedged one shows by the silence of all its streams, longer than its slowest step has been.
"""

from __future__ import annotations

from typing import Final

SILENCE_LEAST_S: Final = 15.0
"""Longer than between two readings of the counters, which tell of tokens that a parser holds back."""
SILENCE_MOST_S: Final = 60.0
STEPS: Final = 3.0
"""How much longer than the slowest step a silence must be."""
FORGET: Final = 0.999
"""By how much what was learnt shrinks at each look: half of it is left after 6 minutes of looks every half second."""


class Liveness:
    """One replica's. `moved_s` is when it last was seen to give a token, None: never; `stalls`: it gives none now."""

    __slots__ = ("_frozen_s", "_silent_s", "_slowest_s", "_streams_s", "_tokens", "moved_s", "stalls")

    def __init__(self) -> None:
        self.moved_s: float | None = None
        self.stalls = False
        self._slowest_s = 0.0
        self._silent_s = 0.0
        self._streams_s: float | None = None
        self._tokens = -1
        self._frozen_s: float | None = None

    @property
    def silence_most_s(self) -> float:
        """The longest silence that is not a stall."""
        return min(SILENCE_MOST_S, max(SILENCE_LEAST_S, STEPS * self._slowest_s))

    def silent_for_s(self, now_s: float) -> float:
        """For how long its open streams have been silent; 0 where there are none."""
        if self._streams_s is None:
            return 0.0
        return now_s - max(self._streams_s, self.moved_s or self._streams_s)

    def read(self, now_s: float, *, running: int, tokens: int) -> None:
        """The engine's own page says that it has made so many tokens, and that so many sequences are in its batch. Of
        answers that come whole nothing else tells."""
        if not running or tokens != self._tokens:
            self._frozen_s = None
        elif self._frozen_s is None:
            self._frozen_s = now_s
        self._tokens = tokens

    def frozen_for_s(self, now_s: float) -> float:
        """For how long the engine's counters have stood still though it has something to do."""
        return 0.0 if self._frozen_s is None else now_s - self._frozen_s

    def look(self, now_s: float, *, streams: int, last_token_s: float | None) -> None:
        """`streams` have begun and not ended, all read by their clients; their last token, and those of streams that
        have ended, came at `last_token_s`. A silence that ends by a token was a slow step."""
        self._slowest_s *= FORGET
        if last_token_s is not None and (self.moved_s is None or last_token_s > self.moved_s):
            self._slowest_s = max(self._slowest_s, self._silent_s)
            self.moved_s = last_token_s
        if not streams:
            self._streams_s = None
        elif self._streams_s is None:
            self._streams_s = now_s
        self._silent_s = self.silent_for_s(now_s)
        self.stalls = self._silent_s > self.silence_most_s or self.frozen_for_s(now_s) > SILENCE_MOST_S
