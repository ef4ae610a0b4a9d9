"""An engine's own counters, read off its Prometheus page, and what they have added since they were last read. Pure.
What an engine calls them is its dialect's.

vLLM's page is 50 to 65 kB of histograms, of which a dozen lines are needed: finding those takes 0.4 ms,
prometheus_client's parser 33 ms for the whole page (measured beside other work).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from gateway.engines import Meaning, MetricsPage
from gateway.wire import Endpoint

_SUMMED: Final = frozenset({"prompt", "cached", "generation"})
_HANDLER = re.compile(rb'handler="([^"]*)"')
_KV_BLOCKS = re.compile(rb'num_gpu_blocks="(\d+)"')
_BLOCK_SIZE = re.compile(rb'(?:^|,)block_size="(\d+)"')
_REASON = re.compile(rb'finished_reason="([a-z_]+)"')
_HANDLERS: Final = frozenset(endpoint.path.encode() for endpoint in Endpoint if endpoint.computes)
_PHASES: Final[Mapping[Meaning, str]] = {"prefill_s": "prefill_ms", "decode_s": "decode_ms"}
_REQUESTS: Final = "requests"
_FINISHED_PREFIX: Final = "finished:"


class NoCounters(Exception):
    """The page is not an engine's: it has no token counters, or something else where a number belongs."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The counters once. They were read somewhere between `asked_ms` and `answered_ms` (Unix); `started_ms` is when the
    engine's process began, None where it does not say.

    `counters`: `prompt`, `cached` and `generation` tokens, `requests` (HTTP requests for GPU time that have ended,
    aborted and refused ones included), `finished:<reason>` (sequences), `prefill_ms` and `decode_ms` (of all requests
    together), as far as the engine tells them. `running`
    sequences had not ended, of which `waiting` were not in the engine's batch. `kv_usage` is the used part of its KV
    cache, `kv_tokens` how many tokens that holds (0 where it does not say), `preemptions` how often it has put a
    sequence off since it started. Of several engines behind one server (data-parallel ranks) the sums, and the fullest
    one's `kv_usage`.
    """

    asked_ms: int
    answered_ms: int
    started_ms: int | None
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_tokens: int = 0
    preemptions: int = 0
    counters: dict[str, int]


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading adds. `epoch` names the engine's process (by when it began, Unix ms); `opened` and `closed` are
    the earliest and the latest moment at which the increments begin and end. `is_first`: the epoch begins here, and
    what its predecessor did between the last reading and its end nobody knows.
    """

    epoch: int
    opened: tuple[int, int]
    closed: tuple[int, int]
    increments: dict[str, int]
    is_first: bool = False


def read_counters(page: bytes, metrics: MetricsPage, *, asked_ms: int, answered_ms: int) -> Reading:
    """Reads a page as its engine's dialect means it. Raises `NoCounters`."""
    counters: dict[str, int] = {}
    gauges: dict[Meaning, float] = {}
    started_ms = None
    kv_tokens = 0
    found = False
    try:
        for meaning, labels, value in _samples(page, metrics):
            found = True
            if meaning in _SUMMED:
                counters[meaning] = counters.get(meaning, 0) + int(float(value))
            elif metric := _PHASES.get(meaning):
                counters[metric] = counters.get(metric, 0) + round(float(value) * 1000)
            elif meaning == "started_s":
                started_ms = round(float(value) * 1000)
            elif meaning == "kv_info":
                kv_tokens += _kv_tokens(labels)
            elif meaning in ("requests", "finished"):
                if metric := _request_metric(meaning, labels):
                    counters[metric] = counters.get(metric, 0) + int(float(value))
            elif meaning in ("kv_usage", "kv_block_tokens"):
                gauges[meaning] = max(gauges.get(meaning, 0.0), float(value))
            else:
                gauges[meaning] = gauges.get(meaning, 0.0) + float(value)
        waiting = int(gauges.get("waiting", 0.0))
        running = int(gauges.get("running", 0.0)) + waiting
        preemptions = int(gauges.get("preemptions", 0.0))
        told = gauges.get("kv_tokens", 0.0) or gauges.get("kv_blocks", 0.0) * gauges.get("kv_block_tokens", 0.0)
        kv_tokens = kv_tokens or int(told)
    except (ValueError, OverflowError) as error:
        raise NoCounters(f"a counter is not a number: {error}") from error
    if not found or (metrics.counts_tokens and not ("prompt" in counters and "generation" in counters)):
        raise NoCounters(f"there are no {' and '.join(_expected(metrics))}")
    return Reading(
        asked_ms=asked_ms,
        answered_ms=answered_ms,
        started_ms=started_ms,
        running=running,
        waiting=waiting,
        kv_usage=min(1.0, gauges.get("kv_usage", 0.0)),
        kv_tokens=kv_tokens,
        preemptions=preemptions,
        counters=counters,
    )


def _expected(metrics: MetricsPage) -> list[str]:
    """The names that a page must have."""
    needed = [one for one in metrics.series if {"prompt", "generation"}.intersection(one.meanings)]
    return [one.name.decode() for one in needed or metrics.series[:1]]


def advance(last: tuple[int, Reading] | None, now: Reading) -> Advance:
    """What `now` adds to the epoch and reading before it.

    The first reading of all adds nothing: what the engine did before is not ours to explain. Counters of a process that
    began since, or that fell, count from 0; its epoch begins when the process did, or now where that is not known.
    """
    read = (now.asked_ms, now.answered_ms)
    if last is None:
        epoch = now.answered_ms if now.started_ms is None else now.started_ms
        return Advance(epoch=epoch, opened=read, closed=read, increments={}, is_first=True)
    epoch, before = last
    if not is_restart(before, now):
        increments = {metric: count - before.counters.get(metric, 0) for metric, count in now.counters.items()}
        opened = (before.asked_ms, before.answered_ms)
        return Advance(epoch=epoch, opened=opened, closed=read, increments=increments)
    if now.started_ms is None or now.started_ms == before.started_ms:
        return Advance(epoch=now.answered_ms, opened=read, closed=read, increments={}, is_first=True)
    began_ms = min(max(now.started_ms, before.answered_ms), now.answered_ms)
    return Advance(
        epoch=now.started_ms, opened=(began_ms, began_ms), closed=read, increments=dict(now.counters), is_first=True
    )


def is_restart(before: Reading, now: Reading) -> bool:
    """Whether the later reading is of another process: it began at another time, or its counters fell."""
    fell = any(now.counters.get(metric, 0) < count for metric, count in before.counters.items())
    return fell or now.started_ms != before.started_ms


def _samples(page: bytes, metrics: MetricsPage) -> Iterator[tuple[Meaning, bytes, bytes]]:
    """Meaning, labels and value of the lines needed."""
    page = b"\n" + page
    for series in metrics.series:
        start = page.find(b"\n" + series.name)
        while start >= 0:
            line = page[start + 1 : page.find(b"\n", start + 1) % (len(page) + 1)]
            sample, _, value = line.rstrip().rpartition(b" ")
            found, _, labels = sample.partition(b"{")
            if found == series.name and series.label in labels:
                for meaning in series.meanings:
                    yield meaning, labels, value
            start = page.find(b"\n" + series.name, start + 1)


def _kv_tokens(labels: bytes) -> int:
    """Of a cache's description: its blocks, of which vLLM keeps one for itself, times their size. 0 if it has none."""
    blocks, size = _KV_BLOCKS.search(labels), _BLOCK_SIZE.search(labels)
    return 0 if blocks is None or size is None else max(0, int(blocks[1]) - 1) * int(size[1])


def _request_metric(meaning: Meaning, labels: bytes) -> str | None:
    if meaning == "requests":
        handler = _HANDLER.search(labels)
        return _REQUESTS if handler is None or handler[1] in _HANDLERS else None
    reason = _REASON.search(labels)
    return _FINISHED_PREFIX + reason[1].decode() if reason is not None else None
