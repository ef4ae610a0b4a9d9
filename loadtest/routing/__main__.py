"""The tables: first the measured workload beside what was measured, then every workload under every policy."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from . import MEASURED, POLICIES, STICKY, WORKLOADS, Seen, World, measured

REUSES = ("chat", "agents", "rag", "llm-d", "one-group", "burst", "hot", "restart")
NOISE = 1.05
"""Means of three seeds this near to each other are alike."""


@dataclass(frozen=True, slots=True)
class Run:
    """One world; `gap_s` where it is the measured one."""

    workload: str
    policy: str
    seed: int
    gap_s: float = 0.0


def play(run: Run) -> Seen:
    workload = measured(run.seed, run.gap_s) if run.gap_s else WORKLOADS[run.workload](run.seed)
    seen = World(workload, {**POLICIES, **STICKY}[run.policy](workload)).run()
    seen.answer_p50_s = sorted(one.ended_s - one.arrived_s for one in seen.asked)[len(seen.asked) // 2]
    seen.asked.clear()
    return seen


def spread(seen: Sequence[Seen], of: Callable[[Seen], float], form: str) -> str:
    """The mean of the seeds, and their range."""
    values = [of(one) for one in seen]
    return f"{fmean(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def show_measured(pool: multiprocessing.pool.Pool, seeds: int) -> None:
    print("Two replicas of one H200, 40 sessions x 6 turns: measured once, and simulated (mean of the seeds, range)")
    print("| gap | policy | cached: measured | simulated | TTFT p50 ms | simulated | p99 ms | simulated |")
    print("|---|---|---|---|---|---|---|---|")
    points = [*MEASURED, *((gap_s, "Mtok") for gap_s in (5.0, 2.0))]
    for gap_s, policy in points:
        seen = pool.map(play, [Run("measured", policy, seed, gap_s) for seed in range(seeds)], chunksize=1)
        known = MEASURED.get((gap_s, policy))
        texts = ("–", "–", "–")
        if known is not None:
            texts = (f"{known.cached_share:.1%}", f"{known.ttft_p50_ms:.0f}", f"{known.ttft_p99_ms:.0f}")
        print(
            f"| {gap_s:g} s | {policy} | {texts[0]} | {spread(seen, lambda one: one.cached_share, '.1%')} | "
            f"{texts[1]} | {spread(seen, lambda one: 1000 * one.ttft_p50_s, '.0f')} | {texts[2]} | "
            f"{spread(seen, lambda one: 1000 * one.ttft_p99_s, '.0f')} |",
            flush=True,
        )


def show(pool: multiprocessing.pool.Pool, names: Sequence[str], seeds: int) -> list[str]:
    """All tables; what was promised and is not so."""
    broken = []
    for name in names:
        print(f"\n{WORKLOADS[name].__doc__}\n")
        print(
            "| policy | cached | prompt tokens read | TTFT p50 ms | p90 | p99 | good | output tok/s | max/mean load |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        of: dict[str, list[Seen]] = {}
        for policy in POLICIES:
            seen = of[policy] = pool.map(play, [Run(name, policy, seed) for seed in range(seeds)], chunksize=1)
            print(
                f"| {policy} | {spread(seen, lambda one: one.cached_share, '.1%')} | "
                f"{fmean(one.computed_tokens for one in seen) / 1000:.0f}k | "
                f"{spread(seen, lambda one: 1000 * one.ttft_p50_s, '.0f')} | "
                f"{fmean(1000 * one.ttft_p90_s for one in seen):.0f} | "
                f"{spread(seen, lambda one: 1000 * one.ttft_p99_s, '.0f')} | "
                f"{fmean(one.good_share for one in seen):.1%} | {fmean(one.output_per_s for one in seen):.0f} | "
                f"{fmean(one.imbalance for one in seen):.2f} |",
                flush=True,
            )
        broken += promised(name, of)
    return broken


def promised(name: str, of: dict[str, list[Seen]]) -> list[str]:
    """What is promised of a workload and did not come true."""

    def mean(policy: str, figure: str) -> float:
        return fmean(getattr(one, figure) for one in of[policy])

    broken = []
    others = [policy for policy in POLICIES if policy != "Mtok"]
    if name in REUSES:
        for figure in ("ttft_mean_s", "ttft_p99_s"):
            best = min(others, key=lambda policy: mean(policy, figure))
            if mean("Mtok", figure) > NOISE * mean(best, figure):
                broken.append(
                    f"{name}: {figure} {mean('Mtok', figure):.3f}, that of {best} is {mean(best, figure):.3f}"
                )
    if name == "unique" and mean("Mtok", "ttft_p99_s") > 1.02 * mean("least loaded", "ttft_p99_s"):
        broken.append(f"{name}: p99 TTFT is not within 2 % of least loaded")
    if name == "agents":
        if mean("Mtok", "ttft_p99_s") > mean("round robin", "ttft_p99_s") / 2:
            broken.append(f"{name}: p99 TTFT is more than half of round robin's")
        if mean("Mtok", "computed_tokens") > 0.2 * mean("round robin", "computed_tokens"):
            broken.append(f"{name}: less than 80 % of round robin's prefill is spared")
    if name == "hot" and mean("Mtok", "imbalance") > 1.25:
        broken.append(f"{name}: max/mean load is above 1.25")
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"some of: measured, {', '.join(WORKLOADS)}")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    names = given.workloads or ["measured", *WORKLOADS]
    with multiprocessing.Pool(min(4, os.cpu_count() or 1)) as pool:
        if "measured" in names:
            show_measured(pool, 2 * given.seeds)
        broken = show(pool, [name for name in names if name != "measured"], given.seeds)
    for what in broken:
        print(f"NOT KEPT: {what}")


if __name__ == "__main__":
    main()
