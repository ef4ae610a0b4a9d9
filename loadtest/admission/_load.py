"""Load for a fleet of narrow replicas, and what came of it: goodput, latencies, refusals, shares."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..load import Answer, percentile_ms
from ._fleet import Fleet
from .clients import Story, Visit

REPLICAS: Final = 2
TTFT_MS: Final = 2500
ITL_MS: Final = 80
MOST_TOKENS: Final = 200
"""Answers have 60 in the middle, and few come near this."""

CAPACITY_RPS: Final = 11.5
"""Good answers a second of both replicas at their knees, which are at 23 to 25 sequences: measured with three times as
many offered."""

SERVICE: Final[Mapping[str, object]] = {"max_wait_s": 1.5, "slo": {"ttft_p99_ms": TTFT_MS, "itl_p99_ms": ITL_MS}}
"""The engine's own part of the first token takes some 0.3 s of the target, more on a machine that is busy beside."""


VAIN_S: Final = 0.25


def service_fleet(directory: Path, tenants: Iterable[str], *, workers: Sequence[int]) -> Fleet:
    """Gateways of so many workers before `REPLICAS` narrow replicas, for tenants of the class `SERVICE`."""
    return Fleet(
        directory,
        workers=workers,
        replicas=REPLICAS,
        profile="narrow",
        tenants={name: {"class": "service"} for name in tenants},
        classes={"service": SERVICE},
    )


def arrivals(
    fleet: Fleet,
    rates: Mapping[str, float],
    *,
    from_s: float,
    to_s: float,
    seed: int,
    attempts: int = 1,
    patience_s: float = 0.0,
    words: Callable[[random.Random], int] = lambda dice: dice.randint(20, 120),
) -> list[Visit]:
    """Poisson arrivals of each tenant, so many a second."""
    visits = []
    for number, (tenant, rate) in enumerate(rates.items()):
        dice = random.Random(1000 * seed + number)  # noqa: S311 - load, not secrets
        at_s = from_s
        while (at_s := at_s + dice.expovariate(rate)) < to_s:
            visits.append(
                Visit(
                    at_s=at_s,
                    who=tenant,
                    key=fleet.keys[tenant],
                    ports=dice.sample(fleet.ports, len(fleet.ports)),
                    seed=dice.getrandbits(48),
                    words=words(dice),
                    max_tokens=MOST_TOKENS,
                    attempts=attempts,
                    patience_s=patience_s,
                )
            )
    return sorted(visits, key=lambda visit: visit.at_s)


def between(stories: Sequence[Story], from_s: float, to_s: float) -> list[Story]:
    """Those whose clients came in that time."""
    return [story for story in stories if from_s <= story.visit.at_s < to_s]


def is_good(story: Story) -> bool:
    """Whether the answer kept the targets: its first token, and the mean time between its tokens."""
    answer = story.last
    if not story.served or answer.first_s is None or answer.first_s * 1000 > TTFT_MS:
        return False
    return not answer.gaps_s or sum(answer.gaps_s) / len(answer.gaps_s) * 1000 <= ITL_MS


def good_tokens(stories: Sequence[Story]) -> int:
    """Tokens of answers that kept the targets."""
    return sum(story.last.output_tokens for story in stories if is_good(story))


def ttft_ms(stories: Sequence[Story], share: float) -> float:
    """Of those that were served; 0 where none was."""
    firsts = [story.last.first_s for story in stories if story.served and story.last.first_s is not None]
    return percentile_ms(firsts, share) or 0.0


def itl_ms(stories: Sequence[Story], share: float) -> float:
    """Of all times between tokens of those that were served."""
    return percentile_ms([gap for story in stories if story.served for gap in story.last.gaps_s], share) or 0.0


def refused_ms(stories: Sequence[Story], share: float) -> float:
    """How long it took to be refused on arrival, from before the connection on."""
    took = [answer.ended_s for story in stories for answer in story.answers if _is_refused_at_once(answer)]
    return percentile_ms(took, share) or 0.0


def waited_in_vain(stories: Sequence[Story]) -> int:
    """How many attempts were refused after a wait."""
    refused = [answer for story in stories for answer in story.answers if answer.status == 429]
    return sum(not _is_refused_at_once(answer) for answer in refused)


def _is_refused_at_once(answer: Answer) -> bool:
    """A wait ends with the class's longest one, or when a first token would come too late: half a second at least."""
    return answer.status == 429 and answer.ended_s < VAIN_S


def jain(amounts: Sequence[float]) -> float:
    """1 where all have the same, 1/n where one has all."""
    squares = sum(amount * amount for amount in amounts)
    return sum(amounts) ** 2 / (len(amounts) * squares) if squares else 1.0


def max_min(wanted: Mapping[str, float], total: float) -> dict[str, float]:
    """The fair division of `total`: nobody gets more than he wants, and what one leaves is the others'."""
    given: dict[str, float] = {}
    left = total
    for number, (name, most) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        given[name] = min(most, left / (len(wanted) - number))
        left -= given[name]
    return given
