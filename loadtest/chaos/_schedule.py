"""When what is struck: drawn from a seed, so that a run that failed can be had again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["worker", "gateway", "engine", "valkey", "pause", "restore"]

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
    """

    at_request: int
    delay_ms: int
    kind: Kind
    target: int
    lasts_s: float = 0.0


def schedule(seed: int, *, requests: int, kills: int, pause_s: float, restore_s: float) -> list[Strike]:
    """`kills` SIGKILLs over the run, half of them in bursts; one pause of Valkey and one restore of older files, unless
    that would last no time."""
    dice = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
    kinds: list[Kind] = []
    while len(kinds) < kills:
        kinds += _ROUND
    kinds = kinds[:kills]
    dice.shuffle(kinds)
    # The pause and the restore have stretches of their own: between them everything has to be caught up.
    pause_at, restore_at = sorted(dice.sample([requests * part // 10 for part in (3, 5, 7)], 2))
    if dice.random() < 0.5:
        pause_at, restore_at = restore_at, pause_at
    strikes = []
    if pause_s:
        strikes.append(Strike(pause_at, 0, "pause", 0, pause_s))
    if restore_s:
        strikes.append(Strike(restore_at, 0, "restore", 0, restore_s))
    at = 0
    for kind in kinds:
        if at == 0 or dice.random() >= _BURST_SHARE:
            at = dice.randrange(requests // 20, requests * 19 // 20)
        strikes.append(Strike(at, dice.randrange(_BURST_MS), kind, dice.randrange(2)))
    return sorted(strikes, key=lambda strike: (strike.at_request, strike.delay_ms))
