"""Routers for real: Mtok, vllm-router and sglang-router (`cache_aware`) on sockets, before the same simulated replicas.

    make bench-routing-peers              # or: python -m loadtest.routing.peers [--sessions N] [--per-s RATE]

Every router gets replicas just started, the same conversations and the same arrivals: people who come whatever happens
and send their next turn a while after the answer. What was cached is the engines' own count. On two cores that all of
this shares, times say little beyond their order; cached shares do not depend on them. The peers are those of
`loadtest/bench.py`, started as there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gateway.tenants import new_key
from loadtest.bench import bench_directory, gateway, install_peers, peer, relaying
from loadtest.processes import free_port, mtok, running

from .texts import dice
from .world import percentile

REPLICAS, KINDS = 4, 12
KV_BLOCKS = 1600
"""25,600 tokens a replica: all openings fit in the fleet and not in one of them."""
TURNS, GAP_S, ANSWER = 4, 1.0, 24
ROUTERS = ("Mtok, round robin", "sglang-router", "vllm-router", "Mtok")
WORDS = (Path(__file__).parent / "texts.py").read_text().split()


@dataclass(slots=True)
class Result:
    """Of one router: seconds to the first token, answers that were none, and the engines' counters."""

    ttfts_s: list[float] = field(default_factory=list)
    failed: int = 0
    hits: float = 0.0
    queries: float = 0.0
    prompts: list[float] = field(default_factory=list)


def words(seed: str, count: int) -> str:
    """Text that is like no other."""
    source = dice(seed)
    return " ".join(source.choice(WORDS) + str(source.randrange(100)) for _ in range(count))


async def converse(client: httpx.AsyncClient, url: str, key: str, number: int, result: Result) -> None:
    """One person's turns."""
    messages = [{"role": "system", "content": words(f"kind {dice(f'who {number}').randrange(KINDS)}", 350)}]
    for turn in range(TURNS):
        messages.append({"role": "user", "content": words(f"{number}/{turn}", 25)})
        body = {"model": "m", "messages": messages, "stream": True, "max_tokens": ANSWER, "ignore_eos": True}
        began, answer, first_s = time.perf_counter(), "", 0.0
        with contextlib.suppress(httpx.HTTPError):  # what has no first token then has failed
            async with client.stream(
                "POST", f"{url}/v1/chat/completions", json=body, headers={"authorization": key}
            ) as told:
                async for line in told.aiter_lines():
                    if line.startswith("data: {") and (choices := json.loads(line[6:]).get("choices")):
                        text = choices[0]["delta"].get("content") or ""
                        if text and not first_s:
                            first_s = time.perf_counter() - began
                        answer += text
        if not first_s:
            result.failed += 1
            return
        result.ttfts_s.append(first_s)
        messages.append({"role": "assistant", "content": answer})
        await asyncio.sleep(GAP_S)


async def load(url: str, key: str, sessions: int, per_s: float, result: Result) -> None:
    """All of them, in their time."""
    source = dice("arrivals")
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120.0, trust_env=False, limits=limits) as client, asyncio.TaskGroup() as group:
        for number in range(sessions):
            group.create_task(converse(client, url, f"Bearer {key}", number, result))
            await asyncio.sleep(source.expovariate(per_s))


def count(urls: list[str], result: Result) -> None:
    """What the engines counted."""
    for url in urls:
        of = {"hits": 0.0, "queries": 0.0}
        for line in httpx.get(f"{url}/metrics", trust_env=False).text.splitlines():
            for name in of:
                if line.startswith(f"vllm:prefix_cache_{name}_total{{"):
                    of[name] += float(line.rsplit(" ", 1)[1])
        result.hits += of["hits"]
        result.queries += of["queries"]
        result.prompts.append(of["queries"])


@contextlib.contextmanager
def replicas(logs: Path) -> Iterator[list[str]]:
    """Just started."""
    with ExitStack() as stack:
        urls = []
        for number in range(REPLICAS):
            port = free_port()
            command = mtok("simulate", "--port", str(port), "--model", "m", "--kv-blocks", str(KV_BLOCKS))
            urls.append(f"http://127.0.0.1:{port}")
            log = logs / f"replica-{number}.log"
            stack.enter_context(running(command, log=log, ready_url=f"{urls[-1]}/health", timeout_s=90))
        yield urls


def play(router: str, bench: Path, directory: Path, sessions: int, per_s: float) -> Result:
    """One router's turn."""
    directory.mkdir()
    result, key = Result(), new_key("acme-bench")
    with ExitStack() as stack:
        urls = stack.enter_context(replicas(directory))
        if router.startswith("Mtok"):
            listed = ", ".join(f'{{url: "{url}"}}' for url in urls)
            two = f'{{url: "{urls[0]}"}}, {{url: "{urls[1]}"}}'
            document = relaying(urls, key).replace(two, listed)
            if router != "Mtok":
                document = document.replace("    gpu:", "    routing: {strategy: round_robin}\n    gpu:")
            subject = stack.enter_context(gateway(directory / "mtok", document))
        else:
            subject = stack.enter_context(peer(router, bench, urls, directory))
        asyncio.run(load(f"http://127.0.0.1:{subject.port}", key, sessions, per_s, result))
        count(urls, result)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--per-s", type=float, default=2.0, help="sessions that come in a second")
    parser.add_argument("routers", nargs="*", default=ROUTERS)
    given = parser.parse_args()
    bench = bench_directory()
    if why := install_peers(bench):
        print(why)
        return 1
    print("| router | cached (engines' count) | TTFT p50 ms | p99 | max/mean prompt tokens | answers failed |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for number, router in enumerate(given.routers):
            result = play(router, bench, Path(directory) / str(number), given.sessions, given.per_s)
            ordered = sorted(result.ttfts_s)
            print(
                f"| {router} | {result.hits / result.queries:.1%} | {1000 * percentile(ordered, 0.5):.0f} | "
                f"{1000 * percentile(ordered, 0.99):.0f} | "
                f"{max(result.prompts) * REPLICAS / sum(result.prompts):.2f} | {result.failed} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
