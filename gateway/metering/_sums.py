"""Usage sums: what the minute, hour and day buckets hold, by everything usage can be split by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from gateway.store import BUCKET_SECONDS, BucketSize, UsageSums

from ._event import UsageEvent

REQUESTS: Final = "requests"
INPUT: Final = "input"
CACHED: Final = "cached"
OUTPUT: Final = "output"
COST: Final = "cost_nanousd"
ESTIMATED: Final = "estimated"
REFUSED_PREFIX: Final = "refused:"
ENGINE_INPUT: Final = "engine_input"
"""Input tokens the engine counted beyond `input`: it counts a prompt once per sample."""
UNDELIVERED_INPUT_MAX: Final = "undelivered_input_max"
UNDELIVERED_OUTPUT_MAX: Final = "undelivered_output_max"
PARTS: Final = {
    "cache_write": "input_cache_write_tokens",
    "input_audio": "input_audio_tokens",
    "input_image": "input_image_tokens",
    "reasoning": "output_reasoning_tokens",
    "output_audio": "output_audio_tokens",
}
"""Metrics of parts that few engines tell apart, and their names in `Usage`."""

_NOTHING: Final = dict.fromkeys(
    (REQUESTS, INPUT, CACHED, OUTPUT, COST, ESTIMATED, ENGINE_INPUT, UNDELIVERED_INPUT_MAX, UNDELIVERED_OUTPUT_MAX), 0
)
_SEPARATOR: Final = "\x1f"


class Dimensions(NamedTuple):
    """What usage can be split by. `tags` is a query string, its names in order, such as `app=chat&team=search`."""

    model: str
    key: str
    endpoint: str = ""
    status: str = ""
    replica: str = ""
    user: str = ""
    tags: str = ""

    def tag(self, name: str) -> str:
        """One tag's value; empty when the request did not carry it."""
        return dict(parse_qsl(self.tags)).get(name, "")


def dimensions(event: UsageEvent) -> Dimensions:
    """Where an event's sums go."""
    tags = urlencode(sorted(event.tags.items())) if event.tags else ""
    return Dimensions(event.model, event.key, event.endpoint, event.status, event.replica, event.user, tags)


def sum_field(group: Dimensions, metric: str) -> str:
    """A bucket's field. Names hold no control characters, so one separates them."""
    return metric + _SEPARATOR + _SEPARATOR.join(group)


def split_field(field: str) -> tuple[Dimensions, str]:
    """Dimensions and metric of a bucket's field."""
    metric, *group = field.split(_SEPARATOR)
    return Dimensions(*group), metric


def usage_sums(events: Iterable[UsageEvent]) -> list[UsageSums]:
    """What `events` add to the buckets they ended in. Increments commute, so a batch is summed before it is sent."""
    by_minute: dict[int, dict[str, int]] = {}
    for (minute_s, group), totals in _totals(events).items():
        sums = by_minute.setdefault(minute_s, {})
        for metric, n in totals.items():
            if n:
                sums[sum_field(group, metric)] = n
    return [*_at_size("1m", by_minute), *_at_size("1h", by_minute), *_at_size("1d", by_minute)]


def _totals(events: Iterable[UsageEvent]) -> dict[tuple[int, Dimensions], dict[str, int]]:
    """Sums by minute (its start in Unix seconds) and dimensions; most events of a batch share theirs."""
    totals: dict[tuple[int, Dimensions], dict[str, int]] = {}
    for event in events:
        place = (event.ended_ms // 60_000 * 60, dimensions(event))
        sums = totals.get(place)
        if sums is None:
            sums = totals[place] = {}
        if event.status == "refused":
            refused = f"{REFUSED_PREFIX}{event.code}"
            sums[refused] = sums.get(refused, 0) + event.count
            continue
        usage = event.usage
        if not sums:
            sums.update(_NOTHING)
        sums[REQUESTS] += event.status != "correction"
        sums[INPUT] += usage.input_tokens
        sums[CACHED] += usage.input_cached_tokens
        sums[OUTPUT] += usage.output_tokens
        sums[COST] += event.cost_nanousd
        sums[ESTIMATED] += event.estimated
        sums[ENGINE_INPUT] += usage.input_tokens * (event.samples - 1)
        sums[UNDELIVERED_INPUT_MAX] += event.undelivered_input_max
        sums[UNDELIVERED_OUTPUT_MAX] += event.undelivered_output_max
        if usage.has_parts:
            for metric, name in PARTS.items():
                if part := getattr(usage, name):
                    sums[metric] = sums.get(metric, 0) + part
    return totals


def _at_size(size: BucketSize, by_minute: dict[int, dict[str, int]]) -> list[UsageSums]:
    seconds = BUCKET_SECONDS[size]
    buckets: dict[int, dict[str, int]] = {}
    for minute_s, sums in by_minute.items():
        start_s = minute_s - minute_s % seconds
        if start_s in buckets:
            merged = buckets[start_s] = dict(buckets[start_s])
            for field, n in sums.items():
                merged[field] = merged.get(field, 0) + n
        else:
            buckets[start_s] = sums
    return [(size, start_s, sums) for start_s, sums in buckets.items()]
