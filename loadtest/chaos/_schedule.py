"""When what is struck: drawn from a seed, so that a run that failed can be had again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["worker", "gateway", "engine", "valkey", "pause", "restore", "flush"]

_ROUND: Final[tuple[Kind, ...]] = ("worker", "gateway", "engine", "valkey", "worker")
"""Kills in this proportion, in random order."""
_BURST_SHARE: Final = 0.5
_BURST_MS: Final = 250


@dataclass(frozen=True, slots=True)
class Strike:
    """Something that happens once `at_request` requests have begun, and `delay_ms` later.

    worker, gateway, engine, valkey   SIGKILL; a gateway is all its processes
    pause                             Valkey stands still (SIGSTOP) for `lasts_s`
    restore                           Valkey is killed, and comes back with its files as they were `lasts_s` before
    flush                             FLUSHALL
    """

    at_request: int
    delay_ms: int
    kind: Kind
    target: int
    lasts_s: float = 0.0


def schedule(seed: int, *, requests: int, kills: int, pause_s: float, restore_s: float) -> list[Strike]:
    """`kills` SIGKILLs over the run, half of them in bursts; one pause, one restore and one flush of Valkey."""
    dice = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
    kinds = [_ROUND[number % len(_ROUND)] for number in range(kills)]
    dice.shuffle(kinds)
    # These have stretches of their own: between them everything has to be caught up.
    pause_at, restore_at, flush_at = dice.sample([requests * part // 10 for part in (2, 5, 8)], 3)
    strikes = [
        Strike(pause_at, 0, "pause", 0, pause_s),
        Strike(restore_at, 0, "restore", 0, restore_s),
        Strike(flush_at, 0, "flush", 0),
    ]
    # What a dead worker left is adopted and shipped, and then lost.
    for kind in [kind for kind in ("worker", "gateway") if kind in kinds]:
        kinds.remove(kind)
        strikes.append(Strike(restore_at, dice.randrange(int(restore_s * 1000)), kind, dice.randrange(2)))
    at = 0
    for kind in kinds:
        if at == 0 or dice.random() >= _BURST_SHARE:
            at = dice.randrange(requests // 20, requests * 19 // 20)
        strikes.append(Strike(at, dice.randrange(_BURST_MS), kind, dice.randrange(2)))
    return sorted(strikes, key=lambda strike: (strike.at_request, strike.delay_ms))
