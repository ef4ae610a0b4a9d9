"""Overload: more and more is offered than two replicas can serve. What is served keeps its targets, the rest is refused
at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._load import (
    CAPACITY_RPS,
    TTFT_MS,
    arrivals,
    between,
    good_tokens,
    itl_ms,
    refused_ms,
    service_fleet,
    ttft_ms,
    waited_in_vain,
)
from .clients import Story, play_apart

TENANTS: Final = ("a", "b", "c", "d")
SETTLES_S: Final = 40.0
"""Each replica's knee begins at 64 sequences, and comes down to what the targets allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`workers` of each gateway; each step of load takes `step_s`, of which the first quarter is not counted."""

    workers: Sequence[int] = (1,)
    steps: Sequence[float] = (1.0, 2.0, 5.0, 10.0)
    step_s: float = 40.0
    seed: int = 1


LEAST_OF_PEAK: Final = 0.95
REFUSED_MS: Final = 50.0
"""At the median, on a machine that does other things beside. The goal is 10 ms at p99, on one that does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of load: `times` what the replicas can serve. Times are milliseconds."""

    times: float
    offered: int
    served: int
    refused: int
    good_tokens_per_s: float
    ttft_p99: float
    itl_p99: float
    refused_p50: float
    refused_p99: float
    in_vain: int
    other: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All steps."""

    steps: Sequence[Step]

    @property
    def peak(self) -> float:
        """Good tokens a second of the best step."""
        return max(step.good_tokens_per_s for step in self.steps)

    @property
    def broken(self) -> list[str]:
        """What was promised and not kept, in words."""
        found = []
        for step in self.steps:
            at = f"at {step.times:g} x"
            if step.times >= 2 and step.good_tokens_per_s < LEAST_OF_PEAK * self.peak:
                found.append(f"{at}: {step.good_tokens_per_s / self.peak:.1%} of the best goodput")
            if step.ttft_p99 > TTFT_MS:
                found.append(f"{at}: p99 TTFT {step.ttft_p99:.0f} ms of {TTFT_MS}")
            if step.refused_p50 > REFUSED_MS:
                found.append(f"{at}: refused at once in {step.refused_p50:.1f} ms at the median")
            if step.other:
                found.append(f"{at}: {step.other} neither served nor refused")
        return found

    def lines(self) -> list[str]:
        """A line for each step."""
        lines = [
            "offered   requests  served  refused  after a wait  other  good tok/s  of peak  TTFT p99  ITL p99  "
            "refused at once in p50   p99"
        ]
        for step in self.steps:
            counts = f"{step.offered:>8}  {step.served:>6}  {step.refused:>7}  {step.in_vain:>12}  {step.other:>5}"
            good = f"{step.good_tokens_per_s:>10.0f}  {step.good_tokens_per_s / self.peak:>7.1%}"
            times = f"{step.ttft_p99:>5.0f} ms  {step.itl_p99:>4.0f} ms  {step.refused_p50:>19.1f} ms"
            lines.append(f"{step.times:>4g} x    {counts}  {good}  {times}  {step.refused_p99:.1f} ms")
        return lines


async def run(options: Options, directory: Path) -> Verdict:
    """One step after the other, on a fleet that has settled. Raises `DidNotStart`."""
    async with service_fleet(directory, TENANTS, workers=options.workers) as fleet:
        visits = arrivals(fleet, _rates(2.0), from_s=0.0, to_s=SETTLES_S, seed=options.seed)
        for number, times in enumerate(options.steps):
            from_s = SETTLES_S + number * options.step_s
            visits += arrivals(
                fleet, _rates(times), from_s=from_s, to_s=from_s + options.step_s, seed=options.seed + number
            )
        stories = await play_apart(visits)
    steps = []
    for number, times in enumerate(options.steps):
        to_s = SETTLES_S + (number + 1) * options.step_s
        counted_s = options.step_s * 0.75
        steps.append(_step(times, between(stories, to_s - counted_s, to_s), counted_s))
    return Verdict(steps=steps)


def _rates(times: float) -> dict[str, float]:
    return {name: times * CAPACITY_RPS / len(TENANTS) for name in TENANTS}


def _step(times: float, stories: list[Story], counted_s: float) -> Step:
    served = sum(story.served for story in stories)
    refused = sum(story.last.status == 429 for story in stories)
    return Step(
        times=times,
        offered=len(stories),
        served=served,
        refused=refused,
        good_tokens_per_s=good_tokens(stories) / counted_s,
        ttft_p99=ttft_ms(stories, 0.99),
        itl_p99=itl_ms(stories, 0.99),
        refused_p50=refused_ms(stories, 0.5),
        refused_p99=refused_ms(stories, 0.99),
        in_vain=waited_in_vain(stories),
        other=len(stories) - served - refused,
    )
