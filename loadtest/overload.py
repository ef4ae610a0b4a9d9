"""What admission is worth, in virtual time on the simulated H200: offered more than it can serve, through Mtok and
through what others do. First the engine itself against what was measured on the GPU.

`python -m loadtest.overload`, or `make bench-admission`: some minutes on 2 cores; the same seeds give the same table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean

from tests.simulation.virtual_gateway import (
    ANSWER,
    CAPACITY_PER_S,
    H200,
    PROMPT,
    Aimd,
    Asked,
    Front,
    Gauges,
    Mtok,
    Open,
    Static,
    World,
    poisson,
)

TIMES = (1, 2, 5, 10)
"""Offered, as multiples of the capacity."""

CAPS = (96, 128, 160, 192, 256)
SETTLES_S = 20.0
QUIET = [f"tenant {number}" for number in range(9)]
FLOOD = "flood"
FRONTS: dict[str, Callable[[], Front]] = {
    "none": Open,
    **{f"static {cap}": partial(Static, cap) for cap in CAPS},
    "GIE's defaults": Gauges,
    "AIMD on ITL": Aimd,
    "Mtok": Mtok,
}

RECORDED = Path(__file__).parent.parent / "tests/simulation/poisson_arrivals.json"
MEASURED = {
    "35": (33.9, "33.9 of 34.0"),
    "37.5": (27.9, "27.9 of 38.2"),
    "40": (25.0, "25.0 of 41.1"),
    "60": (0.0, "0"),
}
"""Good requests per second of those that came in seconds 5 to 25 (`vllm-0.24.0-h200/README.md`, "Poisson arrivals and
the knee"). What arrived is recorded of 35 and 40 a second."""

OFFERED_MEASURED = {"37.5": 38.2, "60": 61.1}
MEASURED_CAPS = {
    32.9: {32: 17.7, 48: 21.8, 64: 25.1, 96: 28.7, 128: 29.5, 192: 32.7, 256: 32.9},
    43.3: {32: 19.5, 48: 21.4, 64: 24.9, 96: 28.1, 128: 29.5, 192: 22.2, 256: 24.6},
}
"""The same page's caps: good requests per second of 15 s, by what was offered."""


@dataclass(frozen=True, slots=True)
class Run:
    """One front at one load, with one seed."""

    front: str
    times: int
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a run, or the mean of several. `goodput` and `offered` are tokens of answers per second."""

    goodput: float
    offered: float
    good_per_s: float
    ttft_p99_s: float
    refused: float
    at_once: float
    jain: float


def arrivals(times: int, seed: int, until_s: float) -> list[Asked]:
    """Half of it is one tenant's, the rest nine others' alike: at twice the capacity the nine ask for just about their
    shares together."""
    per_s = times * CAPACITY_PER_S
    asked = poisson(FLOOD, per_s / 2, seed=seed, until_s=until_s)
    for name in QUIET:
        asked += poisson(name, per_s / 2 / len(QUIET), seed=seed, until_s=until_s)
    return asked


def overloaded(run: Run) -> Seen:
    world = World(FRONTS[run.front](), arrivals(run.times, run.seed, run.seconds), until_s=run.seconds, profiles=[H200])
    seen = world.of(SETTLES_S)
    refused = [one for one in seen.asked if one.refused is not None]
    return Seen(
        seen.goodput,
        sum(one.answer for one in seen.asked) / seen.seconds,
        seen.good_per_s,
        seen.ttft_s(0.99),
        seen.refused,
        fmean(one.refused_s - one.arrived_s < 0.01 for one in refused) if refused else 1.0,
        seen.jain,
    )


def mean(seen: Iterable[Seen]) -> Seen:
    rows = list(seen)
    return Seen(*(fmean(getattr(row, name) for row in rows) for name in Seen.__slots__))


def recorded(rate: str) -> list[Asked]:
    return [Asked("all", *row) for row in json.loads(RECORDED.read_text())[rate]]


def good_per_s(front: Callable[[], Front], asked: list[Asked], since_s: float, until_s: float) -> float:
    world = World(front(), asked, until_s=until_s + 1.0, profiles=[H200])
    return sum(one.is_good() for one in world.asked if since_s <= one.arrived_s < until_s) / (until_s - since_s)


def as_measured(rate: str) -> float:
    """Without a gateway: the recorded arrivals, or five draws of as many."""
    if rate not in OFFERED_MEASURED:
        return good_per_s(Open, recorded(rate), 5.0, 25.0)
    draws = [poisson("all", OFFERED_MEASURED[rate], seed=seed, until_s=26.0) for seed in range(5)]
    return fmean(good_per_s(Open, draw, 5.0, 25.0) for draw in draws)


def capped(point: tuple[float, int]) -> float:
    """Five draws behind a fixed cap."""
    offered, cap = point
    draws = [poisson("all", offered, seed=seed, until_s=21.0) for seed in range(5)]
    return fmean(good_per_s(partial(Static, cap), draw, 5.0, 20.0) for draw in draws)


def show_measured(pool: multiprocessing.pool.Pool) -> None:
    print("An H200 with an 8B model and no gateway, good requests/s: measured, and simulated here")
    print(f"{'offered/s':>12}{'measured':>16}{'simulated':>12}{'deviation':>12}")
    for rate, simulated in zip(MEASURED, pool.map(as_measured, MEASURED), strict=True):
        measured, text = MEASURED[rate]
        print(f"{rate:>12}{text:>16}{simulated:>12.1f}{_deviation(simulated, measured):>12}")
    print("\nThe same engine behind a fixed cap and a first-come queue of 400 ms (simulated: the mean of 5 draws)")
    print(f"{'offered/s':>12}{'cap':>8}{'measured':>10}{'simulated':>12}{'deviation':>12}")
    points = [(offered, cap) for offered, caps in MEASURED_CAPS.items() for cap in caps]
    for (offered, cap), simulated in zip(points, pool.map(capped, points), strict=True):
        measured = MEASURED_CAPS[offered][cap]
        print(f"{offered:>12}{cap:>8}{measured:>10}{simulated:>12.1f}{_deviation(simulated, measured):>12}")


def _deviation(simulated: float, measured: float) -> str:
    return f"{100 * (simulated / measured - 1):+.0f} %" if measured else f"{simulated - measured:+.1f}/s"


def show_overload(pool: multiprocessing.pool.Pool, seeds: int, seconds: float) -> None:
    runs = [Run(front, times, seed, seconds) for times in TIMES for front in FRONTS for seed in range(seeds)]
    done = zip(runs, pool.map(overloaded, runs, chunksize=1), strict=True)
    table = {
        key: mean(seen for _, seen in group)
        for key, group in groupby(done, key=lambda row: (row[0].times, row[0].front))
    }
    print(
        f"\nOffered 1 to 10 times {CAPACITY_PER_S:g} requests/s of {PROMPT} tokens in and {ANSWER} out, half of it one "
        f"tenant's, the rest nine others'.\nGood: TTFT at most 600 ms and mean ITL at most 80 ms. "
        f"Seconds {SETTLES_S:g} to {seconds:g}, the mean of {seeds} seeds; static: the best of {len(CAPS)} caps."
    )
    print(
        f"{'offered':>8}  {'admission':<16}{'goodput tok/s':>14}{'good/s':>8}{'p99 TTFT s':>12}{'refused':>9}"
        f"{'at once':>9}{'Jain':>7}"
    )
    for times in TIMES:
        best = max((f"static {cap}" for cap in CAPS), key=lambda front: table[times, front].goodput)
        for front in ("none", best, "GIE's defaults", "AIMD on ITL", "Mtok"):
            seen = table[times, front]
            print(
                f"{times:>7}x  {front:<16}{seen.goodput:>14.0f}{seen.good_per_s:>8.1f}{seen.ttft_p99_s:>12.2f}"
                f"{seen.refused:>9.1%}{seen.at_once:>9.1%}{seen.jain:>7.3f}"
            )
    peak = max(table[times, "Mtok"].goodput for times in TIMES)
    rows = [table[times, "Mtok"] for times in TIMES]
    kept = " ".join(f"{row.goodput / min(peak, row.offered):.1%}" for row in rows)
    print(f"Mtok's goodput as part of its peak, or of what was offered where that is less: {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of virtual time for each run")
    given = parser.parse_args()
    with multiprocessing.Pool(min(4, os.cpu_count() or 1)) as pool:
        show_measured(pool)
        sys.stdout.flush()
        show_overload(pool, given.seeds, given.seconds)


if __name__ == "__main__":
    main()
