"""What other gateways have in flight at the replicas, as they told it last. Pure: `now_ms` is any clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ._news import Held

BELIEVED_MS = 500
"""What was told counts in full for so long; whoever lives tells it again before."""
FORGOTTEN_MS = 1500
"""From then on it counts for less, and after so long for nothing: its gateway is gone, or cannot be heard, and much of
what it had has ended."""


UNTOLD_TOKENS = 1_000
"""What a request is taken to wait with that no gateway has told of: a prompt of middling length."""


class Beside(NamedTuple):
    """What others have at one replica, as in `Held`."""

    waiting_tokens: int
    running: int


class _Told(NamedTuple):
    at_ms: int
    held: list[Held]


class Elsewhere:
    """The other gateways' loads."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    @property
    def gateways(self) -> int:
        """How many are known to have something in flight."""
        return len(self._told)

    def heard(self, gateway: str, held: Iterable[Held], now_ms: int) -> None:
        """It has this in flight now, and nothing else."""
        if told := list(held):
            self._told[gateway] = _Told(now_ms, told)
        else:
            self._told.pop(gateway, None)

    def engine_said(self, replica: str, waiting: int, own: int, now_ms: int) -> None:
        """An engine has so many requests waiting. More than all gateways that are known of have there, this one's `own`
        included, are somebody else's: of a gateway that cannot be heard, or of a client that goes past all of them."""
        engine = f"engine {replica}"
        known = own + sum(
            held.running
            for gateway, told in self._told.items()
            for held in told.held
            if held.replica == replica and gateway != engine
        )
        untold = max(0, waiting - known)
        self.heard(engine, [Held(replica, untold * UNTOLD_TOKENS, untold)] if untold else [], now_ms)

    def beside(self, now_ms: int) -> dict[str, Beside]:
        """What all of them have at each replica that any of them uses, by how old it is."""
        total: dict[str, Beside] = {}
        for gateway, told in list(self._told.items()):
            age_ms = now_ms - told.at_ms
            if age_ms >= FORGOTTEN_MS:
                del self._told[gateway]
                continue
            share = min(1.0, (FORGOTTEN_MS - age_ms) / (FORGOTTEN_MS - BELIEVED_MS))
            for held in told.held:
                before = total.get(held.replica, _NOTHING)
                total[held.replica] = Beside(
                    before.waiting_tokens + round(share * held.waiting_tokens),
                    before.running + round(share * held.running),
                )
        return total


_NOTHING = Beside(0, 0)
