"""Usage sums: what the minute, hour and day buckets hold, by model, key and metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.store import BUCKET_SECONDS, BucketSize, UsageSums

from ._event import UsageEvent

BUCKET_KEPT_S: Final[dict[BucketSize, int]] = {"1m": 7 * 86_400, "1h": 120 * 86_400, "1d": 0}
"""How long a bucket is kept after it was first written, in seconds; 0 is for ever."""

REQUESTS: Final = "requests"
INPUT: Final = "input"
CACHED: Final = "cached"
OUTPUT: Final = "output"
COST: Final = "cost_nanousd"
ESTIMATED: Final = "estimated"
REFUSED_PREFIX: Final = "refused:"


def sum_field(model: str, key: str, metric: str) -> str:
    """A bucket's field. Read it back from the right: a model's name may hold anything."""
    return f"{model}|{key}|{metric}"


def split_field(field: str) -> tuple[str, str, str]:
    """Model, key and metric of a bucket's field."""
    model, key, metric = field.rsplit("|", 2)
    return model, key, metric


def usage_sums(events: Iterable[UsageEvent]) -> list[UsageSums]:
    """What `events` add to the buckets they ended in. Increments commute, so a batch is summed before it is sent."""
    by_minute: dict[int, dict[str, int]] = {}
    for event in events:
        minute_s = event.ended_ms // 60_000 * 60
        sums = by_minute.get(minute_s)
        if sums is None:
            sums = by_minute[minute_s] = {}
        prefix = f"{event.model}|{event.key}|"
        if event.status == "refused":
            _add(sums, f"{prefix}{REFUSED_PREFIX}{event.code}", 1)
            continue
        usage = event.usage
        _add(sums, prefix + REQUESTS, 1)
        if usage.input_tokens:
            _add(sums, prefix + INPUT, usage.input_tokens)
        if usage.input_cached_tokens:
            _add(sums, prefix + CACHED, usage.input_cached_tokens)
        if usage.output_tokens:
            _add(sums, prefix + OUTPUT, usage.output_tokens)
        if event.cost_nanousd:
            _add(sums, prefix + COST, event.cost_nanousd)
        if event.estimated:
            _add(sums, prefix + ESTIMATED, 1)
    return [*_at_size("1m", by_minute), *_at_size("1h", by_minute), *_at_size("1d", by_minute)]


def _add(sums: dict[str, int], field: str, n: int) -> None:
    sums[field] = sums.get(field, 0) + n


def _at_size(size: BucketSize, by_minute: dict[int, dict[str, int]]) -> list[UsageSums]:
    seconds = BUCKET_SECONDS[size]
    buckets: dict[int, dict[str, int]] = {}
    for minute_s, sums in by_minute.items():
        start_s = minute_s - minute_s % seconds
        if start_s in buckets:
            merged = buckets[start_s] = dict(buckets[start_s])
            for field, n in sums.items():
                _add(merged, field, n)
        else:
            buckets[start_s] = sums
    return [(size, start_s, BUCKET_KEPT_S[size], sums) for start_s, sums in buckets.items()]
