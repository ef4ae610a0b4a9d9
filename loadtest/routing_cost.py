#!/usr/bin/env python3
"""What a placement costs: the chain of a prompt of 2,000 tokens, looked up in all replicas and placed; and what a
million known blocks weigh.

    make bench                # or: python loadtest/routing_cost.py

Nine in ten prompts go on with a conversation that one of the replicas has had, one in ten is new. Each is timed apart;
of the rounds the one with the lowest median counts, the one least disturbed.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.routing import PrefixIndex, Query, Router, prefix_chain

GOAL_US, GOAL_REPLICAS = 30, 64
GOAL_MB, GOAL_LOOKUP_US = 150, 15
PROMPT_BYTES = 8000
KNOWN_BYTES = 7000
ROUNDS, PROMPTS = 7, 1000
BLOCKS = 1_000_000


@dataclass(frozen=True, slots=True)
class Replica:
    """As the router is told of it."""

    name: str


def dice(seed: str) -> random.Random:
    """Draws that can be repeated."""
    return random.Random(seed)  # noqa: S311 - nothing here is secret


def placed(count: int) -> tuple[float, float, float]:
    """Microseconds of the chain, of placing with the look-up, and of the release, with so many replicas."""
    source, router = dice(f"{count} replicas"), Router()
    replicas = [Replica(f"10.0.{number >> 8}.{number & 255}:8000") for number in range(count)]
    conversations = [source.randbytes(KNOWN_BYTES) for _ in range(4 * count)]
    for number, text in enumerate(conversations):
        router.note_elsewhere(prefix_chain(text).blocks, replicas[number % count].name)
    best = (float("inf"), 0.0, 0.0)
    for _ in range(ROUNDS):
        texts = [
            (source.choice(conversations) if source.random() < 0.9 else source.randbytes(KNOWN_BYTES))
            + source.randbytes(PROMPT_BYTES - KNOWN_BYTES)
            for _ in range(PROMPTS)
        ]
        chains, places, releases = [], [], []
        open_ones = []
        gc.disable()
        for number, text in enumerate(texts):
            began = time.perf_counter_ns()
            chain = prefix_chain(text)
            has_chain = time.perf_counter_ns()
            booking = router.choose(Query(chain=chain, prompt_tokens=2000), replicas, number)
            ended = time.perf_counter_ns()
            chains.append(has_chain - began)
            places.append(ended - has_chain)
            open_ones.append(booking)
            if len(open_ones) > count:
                old = open_ones.pop(0)
                began = time.perf_counter_ns()
                router.first_token(old, number)
                router.answered(old, input_tokens=2000, cached_tokens=1700, output_tokens=200)
                router.ended(old)
                releases.append(time.perf_counter_ns() - began)
        gc.enable()
        for old in open_ones:
            router.ended(old)
        medians = [statistics.median(times) / 1000 for times in (chains, places, releases)]
        if medians[0] + medians[1] < best[0] + best[1]:
            best = (medians[0], medians[1], medians[2])
    return best


def weighed() -> tuple[float, float]:
    """Megabytes of an index of a million blocks over 64 replicas, and microseconds of a look-up in it."""
    source, index = dice("a million blocks"), PrefixIndex()
    for number in range(64):
        index.resize(f"10.0.0.{number}:8000", BLOCKS)
    gc.collect()
    before_kb = _resident_kb()
    per_prompt = 32
    chains = []
    for number in range(BLOCKS // per_prompt):
        blocks = [source.getrandbits(64) for _ in range(per_prompt)]
        index.note(blocks, f"10.0.0.{number % 64}:8000")
        if number % 100 == 0:
            chains.append(list(blocks))
    megabytes = (_resident_kb() - before_kb) / 1024
    times = []
    for chain in chains:
        began = time.perf_counter_ns()
        index.steps(chain)
        times.append(time.perf_counter_ns() - began)
    return megabytes, statistics.median(times) / 1000


def _resident_kb() -> int:
    with Path("/proc/self/statm").open() as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


def main() -> int:
    if sys.argv[1:] == ["--weigh"]:
        print(*weighed())
        return 0
    print("A prompt of 2,000 tokens, median µs of the best of seven rounds")
    print("| replicas | chain | look-up and placing | both | release |")
    print("|---|---|---|---|---|")
    costs = {}
    for count in (8, 64, 512):
        chain, place, release = placed(count)
        costs[count] = chain + place
        print(f"| {count} | {chain:.1f} | {place:.1f} | {chain + place:.1f} | {release:.1f} |")
    told = subprocess.run([sys.executable, __file__, "--weigh"], capture_output=True, text=True, check=True)  # noqa: S603
    megabytes, lookup_us = map(float, told.stdout.split())
    print(f"1,000,000 blocks: {megabytes:.0f} MB; a look-up in them {lookup_us:.1f} µs")
    kept = [
        (f"both ≤ {GOAL_US} µs with {GOAL_REPLICAS} replicas", costs[GOAL_REPLICAS] <= GOAL_US),
        ("grows less than linearly from 8 to 512", costs[512] < 64 * costs[8]),
        (f"1 million blocks < {GOAL_MB} MB", megabytes < GOAL_MB),
        (f"a look-up < {GOAL_LOOKUP_US} µs", lookup_us < GOAL_LOOKUP_US),
    ]
    for goal, is_kept in kept:
        print(f"{'kept' if is_kept else 'NOT KEPT'}: {goal}")
    return 0 if all(is_kept for _, is_kept in kept) else 1


if __name__ == "__main__":
    sys.exit(main())
