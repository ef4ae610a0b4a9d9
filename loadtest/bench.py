#!/usr/bin/env python3
"""What one proxied request costs in CPU, Mtok's worker beside its peers in the same run; and what open streams weigh.

    make bench                          # or: python loadtest/bench.py [--rounds N] [--seconds S] [--embedded]

Mtok runs one worker with authentication, limits and metering on; its peers relay only. The process under test has core
0; two mock engines, wrk and Valkey share core 1. All are started at once and measured in turns, round after round, so
that what disturbs the machine disturbs all of them; the best round is the one least disturbed, and the goals are judged
by it. The yardstick (`mock_engine.py`, `cpu_per_request.sh`, `peers.sh`) is found by MTOK_BENCH_DIR, by default
`../shared/bench` beside this repository.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.store import embedded
from gateway.tenants import hash_key, new_key
from loadtest.processes import DidNotStart, free_port, mtok, running

REPOSITORY = Path(__file__).parents[1]
PEERS_DIR = Path.home() / ".cache" / "mtok-peers"
PEERS = ("sglang-router", "vllm-router", "envoy")
MODES = ("json", "sse")
CHUNKS = 64
CONNECTIONS = 32
INSTALL_TIMEOUT_S = 600
OPENING_AT_ONCE = 100
SLOW_CHUNK_S = 1.0
"""Time between the chunks of a stream that is only to stay open: 64 of them outlast the opening of thousands."""

OURS_CORE, OTHERS_CORE = 0, 1
KIB = 1024

_POLICIES = """\
models:
  m:
    replicas: [{{url: "{first}"}}, {{url: "{second}"}}]
    gpu: {{sku: H100, count: 1}}
    price: {{output_usd_per_mtok: 0.35, input_ratio: 0.28, cached_ratio: 0.1}}
tenants:
  acme:
    keys: [{{id: acme-bench, sha256: "{sha256}"}}]
    models: ["*"]
    class: interactive
    limits: {{requests_per_minute: 100000000, tokens_per_minute: 1000000000000, concurrent_requests: 100000,
             budget_usd: 1000000, budget_period: month, max_input_tokens: 100000, max_output_tokens: 1000}}
classes:
  interactive: {{priority: 10, weight: 1, max_wait_s: 2, slo: {{ttft_p99_ms: 600, itl_p99_ms: 80}}}}
"""

_LINE = re.compile(r"rps=(\S+) p50=(\S+) p99=(\S+) cpu_us_per_request=(\d+)(.*)")


class CannotMeasure(Exception):
    """Something the benchmark needs is missing; the message says what."""


@dataclass
class Measured:
    """One process and mode over all rounds."""

    cpu_us: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    p50: str = ""
    p99: str = ""
    bad: str = ""

    @property
    def best(self) -> int:
        return min(self.cpu_us)

    @property
    def median(self) -> float:
        return statistics.median(self.cpu_us)


@dataclass(frozen=True)
class Subject:
    """A process under test."""

    name: str
    port: int
    pid: int


@dataclass(frozen=True)
class Memory:
    """Resident memory of one worker, in MB of 10^6 bytes."""

    streams: int
    idle_mb: float
    open_mb: float


def bench_directory() -> Path:
    """Where the yardstick is."""
    given = os.environ.get("MTOK_BENCH_DIR")
    directory = Path(given) if given else REPOSITORY.parent / "shared" / "bench"
    if not (directory / "cpu_per_request.sh").is_file():
        raise CannotMeasure(f"{directory} holds no cpu_per_request.sh; set MTOK_BENCH_DIR")
    return directory


def check_machine() -> None:
    """Raises `CannotMeasure` unless this machine has two cores and the tools."""
    missing = [tool for tool in ("wrk", "taskset", "pgrep", "awk") if shutil.which(tool) is None]
    if missing:
        raise CannotMeasure(f"not installed: {', '.join(missing)}")
    if not {OURS_CORE, OTHERS_CORE} <= os.sched_getaffinity(0):
        raise CannotMeasure("two cores are needed: one for the process under test, one for its load")


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """`command`, kept on one core."""
    return ["taskset", "-c", str(core), *command]


@contextlib.contextmanager
def engines(bench: Path, logs: Path, delay_s: float = 0.0) -> Iterator[list[str]]:
    """Two mock engines; their URLs."""
    with ExitStack() as stack:
        urls = []
        for number in range(2):
            port = free_port()
            command = [sys.executable, str(bench / "mock_engine.py"), str(port), str(CHUNKS), str(delay_s)]
            urls.append(f"http://127.0.0.1:{port}")
            log = logs / f"engine-{delay_s}-{number}.log"
            stack.enter_context(running(on_core(OTHERS_CORE, command), log=log, ready_url=f"{urls[-1]}/health"))
        yield urls


def relaying(urls: Sequence[str], key: str) -> str:
    """Policies with one tenant, far from its limits."""
    return _POLICIES.format(first=urls[0], second=urls[1], sha256=hash_key(key))


@contextlib.contextmanager
def gateway(directory: Path, document: str, *, own_valkey: bool = False) -> Iterator[Subject]:
    """One worker of Mtok on core 0 under these policies, its Valkey on core 1 or, with `own_valkey`, its own child."""
    policies = directory / "policies"
    policies.mkdir(parents=True)
    (policies / "bench.yaml").write_text(document)
    port = free_port()
    with ExitStack() as stack:
        valkey_url = "" if own_valkey else stack.enter_context(embedded(directory / "valkey"))
        process = stack.enter_context(
            running(
                on_core(OURS_CORE, mtok("serve", "--policies", str(policies), "--port", str(port))),
                log=directory / "mtok.log",
                ready_url=f"http://127.0.0.1:{port}/readyz",
                environment={
                    "MTOK_REDIS_URL": valkey_url,
                    "MTOK_DATA_DIR": str(directory / "data"),
                    "MTOK_LOG": "warning",
                },
            )
        )
        yield Subject("mtok", port, process.pid)


@contextlib.contextmanager
def peer(name: str, bench: Path, urls: Sequence[str], logs: Path) -> Iterator[Subject]:
    """A peer on core 0."""
    port = free_port()
    command = [str(bench / "peers.sh"), "start", name, str(port), *urls, "--", str(PEERS_DIR)]
    ready_url = f"http://127.0.0.1:{port}/health"
    with running(command, log=logs / f"{name}.log", ready_url=ready_url, timeout_s=60) as process:
        yield Subject(name, port, process.pid)


def install_peers(bench: Path) -> str:
    """Installs the peers unless they are there. Why they could not be, else nothing."""
    if (PEERS_DIR / "bin" / "vllm-router").exists():
        return ""
    print("installing the peers ...", flush=True)
    try:
        command = [str(bench / "peers.sh"), "install", str(PEERS_DIR)]
        subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)  # noqa: S603 - the yardstick's own
    except (subprocess.SubprocessError, OSError) as error:
        return f"the peers could not be installed: {error}"
    return ""


def measure(bench: Path, subject: Subject, mode: str, seconds: int, key: str) -> tuple[int, float, str, str, str]:
    """CPU µs per request, requests per second, p50, p99, and what went wrong."""
    command = [str(bench / "cpu_per_request.sh"), subject.name, str(subject.port), str(subject.pid), mode]
    run = subprocess.run(  # noqa: S603 - the yardstick's own
        [*command, str(CONNECTIONS), str(seconds)],
        env={**os.environ, "KEY": key, "MODEL": "m"},
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
    )
    found = _LINE.search(run.stdout)
    if found is None:
        raise CannotMeasure(f"{subject.name} {mode}: {run.stdout}{run.stderr}")
    rate, p50, p99, cpu_us, bad = found.groups()
    return int(cpu_us), float(rate), p50, p99, bad.strip()


def rounds(
    bench: Path, subjects: Sequence[Subject], count: int, seconds: int, key: str
) -> dict[tuple[str, str], Measured]:
    """All subjects in turns, `count` times; who goes first rotates."""
    results = {(subject.name, mode): Measured() for subject in subjects for mode in MODES}
    for number in range(count):
        turn = number % len(subjects)
        for mode in MODES:
            for subject in [*subjects[turn:], *subjects[:turn]]:
                cpu_us, rate, p50, p99, bad = measure(bench, subject, mode, seconds, key)
                print(
                    f"  round {number + 1} {mode:<5} {subject.name:<14} {cpu_us:>6} µs  {rate:>9.0f}/s {bad}",
                    flush=True,
                )
                result = results[subject.name, mode]
                if not result.cpu_us or cpu_us < result.best:
                    result.p50, result.p99 = p50, p99
                result.cpu_us.append(cpu_us)
                result.rates.append(rate)
                result.bad = result.bad or bad
    return results


def resident_mb(pid: int) -> float:
    """VmRSS of one process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * KIB / 1e6


async def open_streams(subject: Subject, key: str, count: int) -> Memory:
    """Opens `count` streams, waits until each has its first event, and weighs the worker."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello " * 300}], "stream": True})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    gate = asyncio.Semaphore(OPENING_AT_ONCE)

    async def one() -> asyncio.StreamWriter:
        async with gate:
            source, sink = await asyncio.open_connection("127.0.0.1", subject.port)
            sink.write(request)
            await source.readuntil(b"\n\n")
            return sink

    idle_mb = resident_mb(subject.pid)
    sinks = await asyncio.gather(*(one() for _ in range(count)))
    open_mb = resident_mb(subject.pid)
    still_open = sum(not sink.is_closing() for sink in sinks)
    for sink in sinks:
        sink.transport.abort()
    return Memory(still_open, idle_mb, open_mb)


def weigh(bench: Path, directory: Path, key: str, count: int) -> Memory:
    """The memory of a fresh worker with `count` streams open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        engines(bench, directory, SLOW_CHUNK_S) as urls,
        gateway(directory / "weighed", relaying(urls, key)) as worker,
    ):
        return asyncio.run(open_streams(worker, key, count))


def metered(port: int, key: str) -> str:
    """What the gateway wrote down meanwhile: that it did the work that it was measured at."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/usage?bucket=1d", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own address
        totals = json.load(answer)["totals"]
    return (
        f"Mtok metered {totals['requests']} requests, {totals['input_tokens']} input and {totals['output_tokens']} "
        f"output tokens, {totals['cost_usd']} USD; refused: {totals['refused'] or 'none'}"
    )


def table(results: dict[tuple[str, str], Measured], names: Sequence[str]) -> str:
    """CPU µs per request, best and median, and each best as a share of the routers'."""
    base = {(peer, mode): results[peer, mode].best for peer in PEERS for mode in MODES if peer in names}
    lines = [
        f"{'':<15}|{'JSON: CPU µs/request':^45}|{f'{CHUNKS}-chunk stream: CPU µs/request':^45}",
        f"{'':<15}|" + "|".join([f"{'best':>7}{'median':>8}{'×sglang':>9}{'×vllm':>8}{'p50':>6}{'p99':>7}"] * 2),
    ]
    for name in names:
        cells = []
        for mode in MODES:
            result = results[name, mode]
            ratios = "".join(
                f"{result.best / base[peer, mode]:>{width}.2f}" if (peer, mode) in base else f"{'-':>{width}}"
                for peer, width in (("sglang-router", 9), ("vllm-router", 8))
            )
            cells.append(f"{result.best:>7}{result.median:>8.0f}{ratios} {result.p50:>6}{result.p99:>7}")
        bad = "".join(f"  {mode}: {results[name, mode].bad}" for mode in MODES if results[name, mode].bad)
        lines.append(f"{name:<15}|{'|'.join(cells)}{bad}")
    return "\n".join(lines)


def goals(results: dict[tuple[str, str], Measured], names: Sequence[str], memory: Memory | None) -> str:
    """Each goal with its numbers, met or missed."""
    wanted = [
        ("JSON at most sglang-router's", "json", "sglang-router", 1.0),
        ("stream at most 1.15 × sglang-router's", "sse", "sglang-router", 1.15),
        ("JSON below vllm-router's", "json", "vllm-router", 1.0),
        ("stream below vllm-router's", "sse", "vllm-router", 1.0),
        ("next: JSON at most Envoy's", "json", "envoy", 1.0),
        ("next: stream at most Envoy's", "sse", "envoy", 1.0),
    ]
    lines = []
    for what, mode, peer, bound in wanted:
        if peer not in names or results["mtok", mode].bad or results[peer, mode].bad:
            lines.append(f"{what:<40} not measured")
            continue
        ratio = results["mtok", mode].best / results[peer, mode].best
        median = results["mtok", mode].median / results[peer, mode].median
        verdict = "met" if ratio <= bound else f"MISSED by {ratio / bound - 1:.0%}"
        lines.append(f"{what:<40} {ratio:.2f} (medians {median:.2f})   {verdict}")
    if memory is not None:
        verdict = "met" if memory.open_mb < 300 else f"MISSED by {memory.open_mb / 300 - 1:.0%}"
        per_stream = (memory.open_mb - memory.idle_mb) * 1000 / max(memory.streams, 1)
        lines.append(
            f"{f'{memory.streams} open streams below 300 MB':<40} {memory.open_mb:.0f} MB "
            f"(idle {memory.idle_mb:.0f}, {per_stream:.0f} kB a stream)   {verdict}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each process and mode (5)")
    parser.add_argument("--seconds", type=int, default=4, help="length of each (4)")
    parser.add_argument("--streams", type=int, default=2000, help="open streams to weigh; 0: none (2000)")
    parser.add_argument("--embedded", action="store_true", help="Valkey as the worker's own child, its CPU counted")
    parser.add_argument("--no-peers", action="store_true", help="Mtok alone")
    return parser.parse_args()


def main() -> int:
    options = parse()
    started_s = time.monotonic()
    try:
        check_machine()
        bench = bench_directory()
        os.sched_setaffinity(0, {OTHERS_CORE})
        key = new_key("acme-bench")
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtok-bench-")))
            trouble = [] if options.no_peers else [install_peers(bench)]
            urls = stack.enter_context(engines(bench, directory))
            subjects = [
                stack.enter_context(gateway(directory / "mtok", relaying(urls, key), own_valkey=options.embedded))
            ]
            for name in () if options.no_peers or any(trouble) else PEERS:
                try:
                    subjects.append(stack.enter_context(peer(name, bench, urls, directory)))
                except DidNotStart as error:
                    trouble.append(f"{name} is left out: {error}")
            results = rounds(bench, subjects, options.rounds, options.seconds, key)
            told = metered(subjects[0].port, key)
        memory = None
        if options.streams:
            with tempfile.TemporaryDirectory(prefix="mtok-bench-") as name:
                memory = weigh(bench, Path(name), key, options.streams)
    except (CannotMeasure, DidNotStart) as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 2
    names = [subject.name for subject in subjects]
    print()
    print(table(results, names))
    print(told)
    print()
    print(goals(results, names, memory))
    for line in filter(None, trouble):
        print(line)
    store = "counted with Mtok's worker" if options.embedded else "on the other core, not counted"
    print(
        f"{options.rounds} rounds of {options.seconds} s, {time.monotonic() - started_s:.0f} s in all; Valkey {store}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
