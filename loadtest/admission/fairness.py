"""A noisy neighbour.

Nine tenants ask for nine tenths of their fair shares of what two replicas can serve, without and with a tenth one who
asks for twenty times its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._load import CAPACITY_RPS, TTFT_MS, arrivals, between, itl_ms, jain, max_min, service_fleet, ttft_ms
from .clients import Story, play_apart

NINE: Final = tuple(f"t{number}" for number in range(1, 10))
TENTH: Final = "flood"
SHARE_RPS: Final = CAPACITY_RPS / 10
PART_OF_SHARE: Final = 0.9
"""More than its share a tenant asks for by chance now and then, and waits for that like anybody."""
TIMES: Final = 20
SETTLES_S: Final = 30.0
CHANGES_S: Final = 10.0
"""Not counted after each change of load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`workers` of each gateway; each part is counted for `part_s`."""

    workers: Sequence[int] = (1,)
    part_s: float = 90.0
    seed: int = 1


ITL_RATIO: Final = 1.3
LEAST_JAIN: Final = 0.98
LEAST_SERVED: Final = 0.95
"""With 24 places on each replica and 4 s an answer, a place is free in time for those below their share, but not at
once: with the flood all replicas are at their knees. So their first tokens are held to the target; the ratio is told.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the run. Latencies are milliseconds, of the nine; `tokens` are of answers, per second, and `wanted`
    what they would be if all had been served, with answers as long as those were."""

    name: str
    asked: int
    served: int
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    tokens: dict[str, float]
    wanted: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`jain` is of what the ten were given, each as a part of its max-min fair share of all that was given."""

    alone: Part
    flooded: Part
    jain: float

    @property
    def ttft_ratio(self) -> float:
        return self.flooded.ttft_p99 / self.alone.ttft_p99

    @property
    def itl_ratio(self) -> float:
        return self.flooded.itl_p99 / self.alone.itl_p99

    @property
    def broken(self) -> list[str]:
        """What was promised and not kept, in words."""
        found = []
        if self.flooded.ttft_p99 > TTFT_MS:
            found.append(f"the nine's p99 TTFT is {self.flooded.ttft_p99:.0f} ms of {TTFT_MS}")
        if self.itl_ratio > ITL_RATIO:
            found.append(f"the nine's p99 ITL is {self.itl_ratio:.2f} times what they have alone")
        if self.jain < LEAST_JAIN:
            found.append(f"Jain index {self.jain:.3f}")
        if self.flooded.served < LEAST_SERVED * self.flooded.asked:
            found.append(f"{self.flooded.served} of the nine's {self.flooded.asked} requests were served")
        return found

    def lines(self) -> list[str]:
        """The table's."""
        lines = ["the nine      asked  served  TTFT p50    p99   ITL p50   p99   their tok/s  the tenth's  all"]
        for part in (self.alone, self.flooded):
            tenth, everything = part.tokens[TENTH], sum(part.tokens.values())
            lines.append(
                f"{part.name:<12}  {part.asked:>5}  {part.served:>6}  {part.ttft_p50:>8.0f}  {part.ttft_p99:>5.0f}  "
                f"{part.itl_p50:>8.0f}  {part.itl_p99:>4.0f}  {everything - tenth:>12.0f}  {tenth:>11.0f}  "
                f"{everything:>3.0f}"
            )
        lines.append(
            f"with the tenth: p99 TTFT {self.ttft_ratio:.2f} x, p99 ITL {self.itl_ratio:.2f} x; "
            f"Jain index of the ten {self.jain:.3f}"
        )
        return lines


async def run(options: Options, directory: Path) -> Verdict:
    """Runs it in `directory`. Raises `DidNotStart`."""
    nine = dict.fromkeys(NINE, PART_OF_SHARE * SHARE_RPS)
    async with service_fleet(directory, (*NINE, TENTH), workers=options.workers) as fleet:
        alone_s = SETTLES_S + CHANGES_S
        flooded_s = alone_s + options.part_s + CHANGES_S
        ends_s = flooded_s + options.part_s
        flood = {TENTH: TIMES * SHARE_RPS}
        visits = arrivals(fleet, nine, from_s=0.0, to_s=ends_s, seed=options.seed)
        visits += arrivals(fleet, flood, from_s=0.0, to_s=SETTLES_S, seed=options.seed + 1)
        visits += arrivals(fleet, flood, from_s=flooded_s - CHANGES_S, to_s=ends_s, seed=options.seed + 2)
        stories = await play_apart(visits)
    alone = _part("without", between(stories, alone_s, alone_s + options.part_s), options.part_s)
    flooded = _part("with", between(stories, flooded_s, ends_s), options.part_s)
    fair = max_min(flooded.wanted, sum(flooded.tokens.values()))
    given = [tokens / fair[tenant] for tenant, tokens in flooded.tokens.items()]
    return Verdict(alone=alone, flooded=flooded, jain=jain(given))


def _part(name: str, stories: Sequence[Story], counted_s: float) -> Part:
    tokens = {
        tenant: sum(story.last.output_tokens for story in stories if story.served and story.visit.who == tenant)
        / counted_s
        for tenant in (*NINE, TENTH)
    }
    mean = sum(tokens.values()) / max(1, sum(story.served for story in stories))
    wanted = {
        tenant: tokens[tenant] + mean * sum(not story.served for story in stories if story.visit.who == tenant)
        for tenant in tokens
    }
    nine = [story for story in stories if story.visit.who != TENTH]
    return Part(
        name=name,
        asked=len(nine),
        served=sum(story.served for story in nine),
        ttft_p50=ttft_ms(nine, 0.5),
        ttft_p99=ttft_ms(nine, 0.99),
        itl_p50=itl_ms(nine, 0.5),
        itl_p99=itl_ms(nine, 0.99),
        tokens=tokens,
        wanted=wanted,
    )
