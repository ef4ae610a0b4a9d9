"""Buckets of usage sums, read in bounded steps and added up by groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.metering import Dimensions, split_field
from gateway.store import StoreUnavailable

TRIP_COUNTS: Final = 1_500
TRIP_BUCKETS: Final = 200
TRIP_FIELDS: Final = 5_000
"""What one round trip reads at most. Redis' client reads a trip's answers without letting the event loop do anything
else, and Redis serves nobody else meanwhile: 5,000 fields are about 3 ms of either, measured."""

ANSWER_FIELDS: Final = 50_000
"""Fields of one answer: the next bucket is for the next page, so that no read takes long, however finely it is
split."""

Group = tuple[str, ...]
Sums = dict[str, int]
Fields = Mapping[bytes, bytes]


class Grouping:
    """Adds up buckets' fields by group. `group_of` says which group an event with these dimensions belongs to, or None
    for one that was not asked for."""

    def __init__(self, group_of: Callable[[Dimensions], Group | None]) -> None:
        self._group_of = group_of
        self._groups: dict[Dimensions, Group | None] = {}
        self._places: dict[bytes, tuple[Group, str] | None] = {}

    def add(self, fields: Fields, groups: dict[Group, Sums]) -> None:
        """Adds one bucket's fields to `groups`."""
        places = self._places
        for name, value in fields.items():
            try:
                place = places[name]
            except KeyError:
                place = places[name] = self._place(name)
            if place is None:
                continue
            group, metric = place
            sums = groups.get(group)
            if sums is None:
                sums = groups[group] = {}
            sums[metric] = sums.get(metric, 0) + int(value)

    def _place(self, name: bytes) -> tuple[Group, str] | None:
        dimensions, metric = split_field(name.decode())
        if dimensions not in self._groups:
            self._groups[dimensions] = self._group_of(dimensions)
        group = self._groups[dimensions]
        return None if group is None else (group, metric)


async def field_counts(redis: Redis, names: Sequence[str]) -> list[int]:
    """How many fields each bucket has; most of a sparse tenant's have none, and need no reading.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    counts: list[int] = []
    pipeline = redis.pipeline(transaction=False)
    try:
        for at in range(0, len(names), TRIP_COUNTS):
            for name in names[at : at + TRIP_COUNTS]:
                pipeline.hlen(name)
            counts += cast(list[int], await pipeline.execute())
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return counts


def first_that_fit(counts: Sequence[int], most: int) -> int:
    """How many buckets, from the first on, have at most `most` fields together; at least one."""
    total = 0
    for position, count in enumerate(counts):
        total += count
        if total > most and position:
            return position
    return len(counts)


async def read_fields(redis: Redis, names: Sequence[str], counts: Sequence[int]) -> AsyncIterator[tuple[int, Fields]]:
    """Buckets' fields by position in `names`, in order and often in several parts; empty buckets are left out.

    A part that is read while an event is booked may hold some of its sums and not others: only the bucket of now.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    waiting: list[int] = []
    fields = 0
    try:
        for position, count in enumerate(counts):
            if not count:
                continue
            if waiting and (fields + count > TRIP_FIELDS or len(waiting) == TRIP_BUCKETS):
                for read in await _trip(redis, names, waiting):
                    yield read
                waiting, fields = [], 0
            if count > TRIP_FIELDS:
                async for part in _scan(redis, names[position]):
                    yield position, part
            else:
                waiting.append(position)
                fields += count
        if waiting:
            for read in await _trip(redis, names, waiting):
                yield read
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error


async def _trip(redis: Redis, names: Sequence[str], positions: Sequence[int]) -> list[tuple[int, Fields]]:
    pipeline = redis.pipeline(transaction=False)
    for position in positions:
        pipeline.hgetall(names[position])
    return list(zip(positions, cast(list[Fields], await pipeline.execute()), strict=True))


async def _scan(redis: Redis, name: str) -> AsyncIterator[Fields]:
    """A hash in parts. While Redis grows it a field may come twice, and counts once."""
    seen: set[bytes] = set()
    cursor = 0
    while True:
        cursor, part = cast(tuple[int, dict[bytes, bytes]], await redis.hscan(name, cursor, count=TRIP_FIELDS // 2))
        yield {field: value for field, value in part.items() if field not in seen}
        seen.update(part)
        if not cursor:
            return
