"""One run of `mtok usage export`: events from the tenants' streams to a file, and the cursor after them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from redis.asyncio import Redis

from gateway.metering import UsageEvent

from ._cursor import Gap, Position, Positions, gap, partial, position_at, publish, start_of
from ._formats import Format, writer
from ._stream import StoredEvent, StreamEnd, entry_order, read_events, stream_ends, tenants_with_events

LATE_MS = 3_600_000
"""How far a gateway's clock may be ahead of Redis': what ended at `start` is looked for from so long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which events: those that ended from `start_ms` to before `end_ms`, Unix milliseconds."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What a run did: the events it wrote, where each tenant's stream was read to, and what was missing there."""

    events: int
    positions: dict[str, Position]
    gaps: dict[str, Gap]


async def export(
    redis: Redis,
    file: IO[bytes],
    *,
    format_: Format,
    tenants: Sequence[str] | None,
    positions: Positions,
    span: Span | None = None,
) -> Exported:
    """Writes the events of `tenants` (None: of all) after `positions` to `file`: tenant by tenant, each as its stream
    has them, up to what is there at the beginning. Memory does not grow with their number.

    Raises:
        StoreUnavailable: Redis did not answer.
        FormatUnavailable: the format's library is not installed.
        ValueError: an entry is not a usage event.
    """
    names = await tenants_with_events(redis) if tenants is None else tenants
    ends = await stream_ends(redis, names)
    target = writer(format_, file)
    count = 0
    for tenant, end in ends.items():
        async for events in _events(redis, tenant, positions, end, span):
            target.write(events)
            count += len(events)
    target.end()
    gaps = {tenant: gap(positions[tenant], end) for tenant, end in ends.items() if tenant in positions}
    return Exported(
        events=count,
        positions={tenant: _furthest(positions.get(tenant), position_at(end)) for tenant, end in ends.items()},
        gaps={tenant: found for tenant, found in gaps.items() if any(found)},
    )


async def arrived(redis: Redis, span: Span) -> AsyncIterator[list[UsageEvent]]:
    """All tenants' events of requests that came within `span`, tenant by tenant, each in the order in which they ended.
    One that took longer than an hour is not looked for.

    Raises:
        StoreUnavailable: Redis did not answer.
        ValueError: an entry is not a usage event.
    """
    ends = await stream_ends(redis, await tenants_with_events(redis))
    after = f"{max(0, span.start_ms - LATE_MS)}-0"
    for tenant, end in ends.items():
        until = min(end.entry, f"{span.end_ms + LATE_MS}-0", key=entry_order)
        async for events in read_events(redis, tenant, after=after, until=until):
            yield [one.event for one in events if span.start_ms <= one.event.arrived_ms < span.end_ms]


@contextlib.contextmanager
def output_file(output: Path | None) -> Iterator[IO[bytes]]:
    """Where to write: standard output, or the partial file of `output`, which is synced at the end of the block and
    removed if that fails. `commit` and `publish` give it its name."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = partial(output)
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


async def _events(
    redis: Redis, tenant: str, positions: Positions, end: StreamEnd, span: Span | None
) -> AsyncIterator[list[StoredEvent]]:
    after = start_of(positions, tenant)
    if span is not None:
        after = max(after, f"{max(0, span.start_ms - LATE_MS)}-0", key=entry_order)
    async for events in read_events(redis, tenant, after=after, until=end.entry):
        if span is None:
            yield events
        elif within := [stored for stored in events if span.start_ms <= stored.event.ended_ms < span.end_ms]:
            yield within


def _furthest(old: Position | None, new: Position) -> Position:
    """A stream that Redis rewound does not take the cursor back: what was exported would come again."""
    if old is not None and entry_order(old.entry) > entry_order(new.entry):
        return Position(entry=old.entry)
    return new


__all__ = ["Exported", "Span", "arrived", "export", "output_file", "publish"]
