"""Retry-After: a burst is more than two replicas can serve at once, and who is refused comes back when told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._load import CAPACITY_RPS, arrivals, service_fleet
from .clients import play_apart

BURST: Final = "burst"
STEADY: Final = "steady"
SETTLES_S: Final = 20.0
QUIET_S: Final = 60.0
"""After the knees have settled: how much first attempts leave is an average of two minutes."""
ATTEMPTS: Final = 12
PATIENCE_S: Final = 600.0
LEAST_FIRST_RETRY: Final = 0.9
MOST_OVER_ORACLE: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`workers` of each gateway. For `burst_s` the burst offers `times` what can be served, beside a steady tenant that
    offers `steady` of it all the time, for `after_s` more."""

    workers: Sequence[int] = (1,)
    times: float = 3.0
    burst_s: float = 10.0
    steady: float = 0.5
    after_s: float = 90.0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`came_back[k]` were admitted at their retry k + 1; `never` were not admitted at all."""

    clients: int
    at_once: int
    came_back: list[int]
    never: int
    retries: int
    longest_s: float
    oracle_s: float
    """How long after the burst's end the last would have been served, had all the room been used."""

    @property
    def refused(self) -> int:
        """At their first attempt. An oracle would have each of them come back once."""
        return self.clients - self.at_once

    @property
    def first_retry(self) -> float:
        """The share of them that got in with their first retry."""
        return self.came_back[0] / self.refused if self.refused else 1.0

    @property
    def over_oracle(self) -> float:
        return self.retries / self.refused if self.refused else 1.0

    @property
    def broken(self) -> list[str]:
        """What was promised and not kept, in words."""
        found = []
        if self.first_retry < LEAST_FIRST_RETRY:
            found.append(f"{self.first_retry:.1%} were admitted at their first retry")
        if self.over_oracle > MOST_OVER_ORACLE:
            found.append(f"{self.over_oracle:.2f} times an oracle's retries")
        if self.never:
            found.append(f"{self.never} clients never got in")
        return found

    def lines(self) -> list[str]:
        """The table's."""
        return [
            f"{self.clients} clients in the burst: {self.at_once} served at once, {self.refused} refused; admitted at "
            f"retry 1, 2, ..: {', '.join(map(str, self.came_back))}; never: {self.never}",
            f"admitted at the first retry {self.first_retry:.1%}; retries {self.retries}, "
            f"{self.over_oracle:.2f} x an oracle's; the last was served after {self.longest_s:.0f} s "
            f"(an oracle: {self.oracle_s:.0f} s)",
        ]


async def run(options: Options, directory: Path) -> Verdict:
    """Runs it in `directory`. Raises `DidNotStart`."""
    async with service_fleet(directory, (BURST, STEADY), workers=options.workers) as fleet:
        began_s = SETTLES_S + QUIET_S
        ended_s = began_s + options.burst_s
        rate = CAPACITY_RPS * options.steady
        visits = arrivals(fleet, {STEADY: 2.0 * CAPACITY_RPS}, from_s=0.0, to_s=SETTLES_S, seed=options.seed)
        visits += arrivals(fleet, {STEADY: rate}, from_s=SETTLES_S, to_s=ended_s + options.after_s, seed=options.seed)
        visits += arrivals(
            fleet,
            {BURST: options.times * CAPACITY_RPS},
            from_s=began_s,
            to_s=ended_s,
            seed=options.seed,
            attempts=ATTEMPTS,
            patience_s=PATIENCE_S,
        )
        stories = [story for story in await play_apart(visits) if story.visit.who == BURST]
    served = [len(story.answers) - 1 for story in stories if story.served]
    refused = sum(len(story.answers) > 1 for story in stories)
    return Verdict(
        clients=len(stories),
        at_once=served.count(0),
        came_back=[served.count(retry) for retry in range(1, max(1, *served) + 1)],
        never=len(stories) - len(served),
        retries=sum(len(story.answers) - 1 for story in stories),
        oracle_s=refused / ((1.0 - options.steady) * CAPACITY_RPS),
        longest_s=max(story.begun_s[-1] - story.visit.at_s for story in stories if story.served),
    )
