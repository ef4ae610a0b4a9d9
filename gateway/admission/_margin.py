"""How much longer than predicted to expect a wait to be, learnt from those that waited in vain.

A prediction knows who waits now; those who come later and whose turn is earlier make it too short. So it is multiplied
by what lets about one in ten of those that wait miss its deadline.
"""

from __future__ import annotations

MISSES = 0.1
"""The part of those that wait which may miss its deadline: every tenth, as with a 90th percentile."""

_STEP = 0.06
_MOST = 8.0


class Margin:
    """`factor` is at least 1."""

    def __init__(self) -> None:
        self.factor = 1.0

    def served(self) -> None:
        """One that had waited was dispatched in time."""
        self.factor = max(1.0, self.factor * (1 - _STEP * MISSES))

    def missed(self) -> None:
        """One was let wait, and its deadline passed."""
        self.factor = min(_MOST, self.factor * (1 + _STEP * (1 - MISSES)))
