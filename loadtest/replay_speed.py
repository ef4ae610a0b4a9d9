"""How long `mtok policy diff --replay` takes for a day of a million requests, both policies together, on one core.

    python loadtest/replay_speed.py [--requests 1000000]

The day is drawn: 40 tenants of very different sizes, nights and peaks, chat lengths (1,200 in, half of them cached, 350
out, lognormal), on replicas of the H200 profile. OLD has two of them and wide limits; NEW has one and half of the
limits, so that at the peak requests wait and are refused. Reading the file is part of the time, drawing it is not.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import tempfile
import time
from math import pi, sin
from pathlib import Path

import msgspec
import yaml

from gateway.policy import Policies, load
from gateway.replay import Arrival, Outcome, prepared, read_lines, replay
from gateway.simulator import PROFILES

DAY = 1_000_000
"""Requests; with fewer the day is as busy, but shorter."""

DAY_S = 86_400
START_MS = 1_790_000_000_000
TENANTS = 40
SIGMA = 0.8326
"""Of lengths with a coefficient of variation of 1."""


def draw(requests: int, file: Path, seed: int) -> None:
    """A day's arrivals as an export has them."""
    dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
    names = [f"tenant-{number:02}" for number in range(TENANTS)]
    shares = [1 / (number + 1) for number in range(TENANTS)]
    encode = msgspec.json.Encoder().encode
    with open(file, "wb") as target:
        at_s, drawn, day_s = 0.0, 0, DAY_S * requests / DAY
        while drawn < requests:
            rate = DAY / DAY_S * (1 + 0.8 * sin(2 * pi * at_s / day_s - pi / 2))
            at_s += dice.expovariate(rate)
            (tenant,) = dice.choices(names, shares)
            prompt, answer = (max(2, int(mean * dice.lognormvariate(-(SIGMA**2) / 2, SIGMA))) for mean in (1200, 350))
            arrival = Arrival(
                arrived_ms=START_MS + int(at_s * 1000),
                tenant=tenant,
                model="llama",
                key="key",
                input_tokens=prompt,
                input_cached_tokens=prompt // 2,
                output_tokens=answer,
            )
            target.write(encode(arrival) + b"\n")
            drawn += 1


def policies(directory: Path, *, replicas: int, per_minute: int) -> Policies:
    """All tenants alike."""
    limits = {
        "requests_per_minute": per_minute,
        "tokens_per_minute": 2000 * per_minute,
        "concurrent_requests": 2 * per_minute,
        "usd_per_day": 1000,
        "max_output_tokens": 4096,
    }
    document = {
        "models": {
            "llama": {
                "replicas": [{"url": f"http://10.0.0.{number}:8000"} for number in range(1, replicas + 1)],
                "price": {"output_usd_per_mtok": 0.35},
            }
        },
        "tenants": {
            f"tenant-{number:02}": {"class": "chat", "limits": limits, "models": ["llama"]} for number in range(TENANTS)
        },
        "classes": {"chat": {"max_wait_s": 0.4, "slo": {"ttft_p99_ms": 600, "itl_p99_ms": 80}}},
    }
    directory.mkdir()
    (directory / "policy.yaml").write_text(yaml.safe_dump(document))
    return load(directory)


def shown(name: str, outcome: Outcome, seconds: float) -> str:
    total = outcome.total
    return (
        f"{name}: {seconds:.1f} s, {seconds / max(1, total.requests) * 1e6:.1f} µs a request; {total.served} served, "
        f"refused {total.refused}, TTFT p50 {total.ttft.p50_ms} p99 {total.ttft.p99_ms} ms, "
        f"wait p99 {total.wait.p99_ms} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=DAY)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    profile = PROFILES["h200-llama-8b"].override(long_prefill_token_threshold=1024)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        day = directory / "day.jsonl"
        draw(asked.requests, day, asked.seed)
        began = time.process_time()
        with open(day, "rb") as file:
            arrivals = prepared(read_lines(file)).arrivals
        read_s = total_s = time.process_time() - began
        print(f"{len(arrivals)} arrivals read and sorted in {read_s:.1f} s")
        for which, replicas, per_minute in (("OLD", 2, 600), ("NEW", 1, 300)):
            chosen = policies(directory / which, replicas=replicas, per_minute=per_minute)
            gc.freeze()
            gc.disable()  # as the command does
            began = time.process_time()
            outcome = replay(arrivals, chosen, lambda _: profile)
            seconds = time.process_time() - began
            gc.enable()
            total_s += seconds
            print(shown(which, outcome, seconds))
    most_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{total_s:.1f} s of one core in all, {most_mib} MiB at most")


if __name__ == "__main__":
    main()
