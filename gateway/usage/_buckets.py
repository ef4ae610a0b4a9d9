"""Buckets of usage sums, read in bounded steps and added up by groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.metering import Dimensions, split_field
from gateway.store import StoreUnavailable, load_script

TRIP_COUNTS: Final = 1_500
TRIP_FIELDS: Final = 4_000
"""What one round trip reads at most. Redis' client reads a trip's answers without letting the event loop do anything
else, and Redis serves nobody else meanwhile: 4,000 fields are about 3 ms of either, measured."""

ANSWER_FIELDS: Final = 20_000
"""Fields of one answer: the next bucket is for the next page, so that no read takes long, however finely it is split.
They cost 20 to 30 ms of CPU (loadtest/usage_read.py)."""

_MANY: Final = load_script("many").text.decode()

Group = tuple[str, ...]
Sums = dict[str, int]
Fields = Iterable[tuple[bytes, bytes]]


class Grouping:
    """Adds up buckets' fields by group. `group_of` says which group an event with these dimensions belongs to, or None
    for one that was not asked for."""

    def __init__(self, group_of: Callable[[Dimensions], Group | None]) -> None:
        self._group_of = group_of
        self._groups: dict[Dimensions, Group | None] = {}
        self._slots: dict[tuple[Group, str] | None, int] = {None: 0}
        self._slot_of: dict[bytes, int] = {}

    def add(self, fields: Fields, sums: dict[int, int]) -> None:
        """Adds a bucket's fields to its `sums`, each in the slot of its group and metric."""
        slot_of = self._slot_of
        for name, value in fields:
            slot = slot_of.get(name)
            if slot is None:
                slot = slot_of[name] = self._slot(name)
            sums[slot] = sums.get(slot, 0) + int(value)

    def groups(self, sums: Mapping[int, int], into: dict[Group, Sums]) -> None:
        """Adds the sums of slots to those of their groups."""
        places = list(self._slots)
        for slot, n in sums.items():
            place = places[slot]
            if place is not None:
                group, metric = place
                metrics = into.setdefault(group, {})
                metrics[metric] = metrics.get(metric, 0) + n

    def _slot(self, name: bytes) -> int:
        dimensions, metric = split_field(name.decode())
        if dimensions not in self._groups:
            self._groups[dimensions] = self._group_of(dimensions)
        group = self._groups[dimensions]
        place = None if group is None else (group, metric)
        return self._slots.setdefault(place, len(self._slots))


async def field_counts(redis: Redis, names: Sequence[str]) -> list[int]:
    """How many fields each bucket has; most of a sparse tenant's have none, and need no reading.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    counts: list[int] = []
    try:
        for at in range(0, len(names), TRIP_COUNTS):
            counts += cast(list[int], await _many(redis, "HLEN", names[at : at + TRIP_COUNTS]))
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
    """Buckets' fields by position in `names`, those of one tenant side by side; long ones in parts, empty ones not.

    A part that is read while an event is booked may hold some of its sums and not others: only the bucket of now.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    waiting: list[int] = []
    fields = 0
    try:
        for position, count in enumerate(counts):
            if count > TRIP_FIELDS:
                async for part in _scan(redis, names[position]):
                    yield position, part
                continue
            if waiting and fields + count > TRIP_FIELDS:
                for read in await _trip(redis, names, waiting):
                    yield read
                waiting, fields = [], 0
            if count:
                waiting.append(position)
                fields += count
        if waiting:
            for read in await _trip(redis, names, waiting):
                yield read
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error


async def _trip(redis: Redis, names: Sequence[str], positions: Sequence[int]) -> list[tuple[int, Fields]]:
    answers = cast(list[list[bytes]], await _many(redis, "HGETALL", [names[position] for position in positions]))
    return [(position, zip(*[iter(flat)] * 2, strict=True)) for position, flat in zip(positions, answers, strict=True)]


async def _many(redis: Redis, command: str, names: Sequence[str]) -> list[object]:
    """The command's answers for all of them: one reply per tenant, since a tenant is one slot of a cluster."""
    pipeline = redis.pipeline(transaction=False)
    for _, group in groupby(names, key=lambda name: name.partition("}")[0]):
        keys = list(group)
        pipeline.eval(_MANY, len(keys), *keys, command)
    return [answer for answers in await pipeline.execute() for answer in answers]


async def _scan(redis: Redis, name: str) -> AsyncIterator[Fields]:
    """A hash in parts. While Redis grows it a field may come twice, and counts once."""
    seen: set[bytes] = set()
    cursor = 0
    while True:
        cursor, part = cast(tuple[int, dict[bytes, bytes]], await redis.hscan(name, cursor, count=TRIP_FIELDS // 2))
        yield [pair for pair in part.items() if pair[0] not in seen]
        seen.update(part)
        if not cursor:
            return
