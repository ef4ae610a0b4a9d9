#!/usr/bin/env python3
"""What a refusal costs a worker: CPU, how soon it is answered, and how far it keeps the event loop from others.

    make bench                          # or: python loadtest/refusal_cost.py [--seconds S]

One tenant is over its requests/min and keeps asking over 32 connections; another asks for a small answer ten times a
second meanwhile. The worker has core 0, load, Valkey and a mock engine share core 1. CPU is the worker's, its journal's
thread included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.tenants import hash_key, new_key
from loadtest.bench import Subject, bench_directory, check_machine, engines, gateway, measure

GOAL_CPU_US = 60
PAUSE_S = 0.1

_POLICIES = """\
models:
  m:
    replicas: [{{url: "{url}"}}]
    price: {{output_usd_per_mtok: 0.35}}
tenants:
  flood: {{keys: [{{id: flood, sha256: "{flood}"}}], limits: {{requests_per_minute: 1, tokens_per_minute: 100000000}}}}
  other: {{keys: [{{id: other, sha256: "{other}"}}]}}
"""


async def ask(port: int, key: str, waits_ms: list[float], until_s: float) -> None:
    """The other tenant's answers, one every `PAUSE_S`: how long each took."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8})
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        while time.monotonic() < until_s:
            began_s = time.monotonic()
            answer = await http.post(f"http://127.0.0.1:{port}/v1/chat/completions", content=body)
            answer.raise_for_status()
            waits_ms.append((time.monotonic() - began_s) * 1000)
            await asyncio.sleep(PAUSE_S)


async def run(bench: Path, worker: Subject, flood: str, other: str, seconds: int) -> str:
    """The table."""
    quiet_ms: list[float] = []
    flooded_ms: list[float] = []
    await ask(worker.port, other, quiet_ms, time.monotonic() + 2)
    flooding = asyncio.to_thread(measure, bench, worker, "json", seconds, flood)
    (cpu_us, rate, p50, p99, _), _ = await asyncio.gather(
        flooding, ask(worker.port, other, flooded_ms, time.monotonic() + seconds + 1)
    )
    verdict = "met" if cpu_us <= GOAL_CPU_US else "MISSED"
    lines = [
        f"refusals                    {rate:>9.0f} /s over 32 connections, p50 {p50}, p99 {p99}",
        f"CPU of a refusal            {cpu_us:>9} µs   (goal {GOAL_CPU_US}: {verdict})",
        f"another's answer, alone     {_p(quiet_ms, 0.5):>9.1f} ms   p99 {_p(quiet_ms, 0.99):.1f} ms",
        f"another's answer, flooded   {_p(flooded_ms, 0.5):>9.1f} ms   p99 {_p(flooded_ms, 0.99):.1f} ms",
    ]
    return "\n".join(lines)


def _p(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=6)
    seconds = parser.parse_args().seconds
    check_machine()
    bench = bench_directory()
    flood, other = new_key("flood"), new_key("other")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        directory = Path(place)
        urls = stack.enter_context(engines(bench, directory))
        document = _POLICIES.format(url=urls[0], flood=hash_key(flood), other=hash_key(other))
        worker = stack.enter_context(gateway(directory / "mtok", document))
        print(asyncio.run(run(bench, worker, flood, other, seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
