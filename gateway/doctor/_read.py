"""What the engine's answers say. Anything that is not understood is None, never an exception."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from ._facts import Answer


class ModelCard(msgspec.Struct):
    """A model that the engine serves, and its context in tokens."""

    id: str = ""
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[ModelCard] = []


class Details(msgspec.Struct):
    """Of the prompt's tokens, those that came from the cache."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What a request used so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class _Piece(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: Usage | None = None


class Scheduler(msgspec.Struct):
    """vLLM's scheduler as `/server_info` tells it, which only an engine in developer mode does."""

    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    enable_chunked_prefill: bool | None = None
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    policy: str = ""


class _Config(msgspec.Struct):
    scheduler_config: Scheduler | None = None


class _Info(msgspec.Struct):
    vllm_config: _Config | None = None


class _Version(msgspec.Struct):
    version: str = ""


class _Count(msgspec.Struct):
    count: int | None = None


_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def cards_of(answer: Answer) -> list[ModelCard] | None:
    """The models of `/v1/models`."""
    try:
        return msgspec.json.decode(answer.body, type=_Cards).data if answer.status == 200 else None
    except msgspec.DecodeError:
        return None


def usage_of(answer: Answer) -> Usage | None:
    """The usage of an answer that came whole."""
    try:
        return msgspec.json.decode(answer.body, type=_Piece).usage
    except msgspec.DecodeError:
        return None


def stream_usage_of(answer: Answer) -> tuple[bool, Usage | None]:
    """Whether every piece with text tells the usage so far, and what the last piece of the stream tells."""
    running: list[bool] = []
    last = None
    for line in answer.body.splitlines():
        if not line.startswith(b"data: {"):
            continue
        try:
            piece = msgspec.json.decode(line[6:], type=_Piece)
        except msgspec.DecodeError:
            continue
        if piece.choices:
            running.append(piece.usage is not None)
        elif piece.usage is not None:
            last = piece.usage
    return bool(running) and all(running), last


def count_of(answer: Answer) -> int | None:
    """How many tokens `/tokenize` counted."""
    try:
        return msgspec.json.decode(answer.body, type=_Count).count if answer.status == 200 else None
    except msgspec.DecodeError:
        return None


def scheduler_of(answer: Answer | None) -> Scheduler | None:
    """What `/server_info` tells; None without developer mode."""
    if answer is None or answer.status != 200:
        return None
    try:
        config = msgspec.json.decode(answer.body, type=_Info).vllm_config
    except msgspec.DecodeError:
        return None
    return None if config is None else config.scheduler_config


def version_of(answer: Answer | None) -> tuple[str, tuple[int, int]] | None:
    """The engine's version as it says it, and its first two numbers."""
    if answer is None or answer.status != 200:
        return None
    try:
        told = msgspec.json.decode(answer.body, type=_Version).version
    except msgspec.DecodeError:
        return None
    match = _NUMBERS.match(told)
    return None if match is None else (told, (int(match[1]), int(match[2])))


class Histogram(msgspec.Struct):
    """Counts up to each bound, with those below it in them."""

    counts: dict[float, float] = {}

    @property
    def total(self) -> float:
        """All of them."""
        return self.counts.get(inf, 0.0)

    def part_above(self, bound: float) -> tuple[float, float]:
        """The part that is surely above, and the bucket's bound from which on that is."""
        at = min((edge for edge in self.counts if edge >= bound), default=inf)
        return ((self.total - self.counts.get(at, 0.0)) / self.total if self.total else 0.0), at

    def largest(self) -> float | None:
        """The bound of the highest bucket that holds any; None when that is not bounded, or there are none."""
        found = None
        below = 0.0
        for edge in sorted(self.counts):
            if self.counts[edge] > below:
                found = edge
            below = max(below, self.counts[edge])
        return None if found is None or found == inf else found


class Page(msgspec.Struct):
    """A `/metrics` page: sums over an engine's ranks, histograms, and the labels of `vllm:cache_config_info`."""

    sums: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    cache: Mapping[str, str] | None = None
    asleep: bool = False


_HISTOGRAMS = ("vllm:inter_token_latency_seconds", "vllm:iteration_tokens_total")


def page_of(answer: Answer) -> Page | None:
    """Reads a page; None when it is none."""
    page = Page()
    if answer.status != 200:
        return None
    try:
        for family in text_string_to_metric_families(answer.body.decode()):
            for sample in family.samples:
                name, labels, value = sample.name, sample.labels, sample.value
                if name == "vllm:cache_config_info":
                    page.cache = labels
                elif name == "vllm:engine_sleep_state" and labels.get("sleep_state") == "awake":
                    page.asleep = page.asleep or not value
                elif name.endswith("_bucket") and (of := name.removesuffix("_bucket")) in _HISTOGRAMS:
                    counts = page.histograms.setdefault(of, Histogram()).counts
                    counts[float(labels["le"])] = counts.get(float(labels["le"]), 0.0) + value
                else:
                    page.sums[name] = page.sums.get(name, 0.0) + value
    except (ValueError, KeyError):  # what the parser raises for other text
        return None
    return page
