"""A tenant's event stream, read in pieces from one entry to another."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.metering import UsageEvent
from gateway.store import StoreUnavailable, TenantKeys

BEGINNING: Final = "0-0"
"""Before every entry."""

ENDS_AT_ONCE: Final = 100
"""Streams asked about in one round trip."""

READ_EVENTS: Final = 1000
"""Events of one round trip: about half a megabyte, and the most of the stream that is in memory at once."""

_ENTRY = re.compile(r"\d{1,20}-\d{1,20}").fullmatch
_STREAM_KEY = re.compile(r"mtok:\{([^{}]+)\}:events").fullmatch
_decode = msgspec.json.Decoder(UsageEvent).decode
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class StoredEvent(NamedTuple):
    """An event where it is kept: `entry` is its id in the tenant's stream, such as `1790000000000-0`. `origin` is the
    journal it came from and its number there, which stay when it has to be sent to Redis again."""

    tenant: str
    entry: str
    event: UsageEvent
    origin: str = ""


class StreamEnd(NamedTuple):
    """How far a stream goes now: its last entry's id, how many it was ever given, how many it has `kept`."""

    entry: str
    entries: int
    kept: int


def is_entry(text: str) -> bool:
    """Whether `text` is written like an entry's id."""
    return _ENTRY(text) is not None


def entry_order(entry: str) -> tuple[int, int]:
    """Sorts ids of entries by time."""
    ms, _, number = entry.partition("-")
    return int(ms), int(number)


def entry_ms(entry: str) -> int:
    """When the entry was written, by Redis' clock, in Unix milliseconds."""
    return entry_order(entry)[0]


async def tenants_with_events(redis: Redis) -> list[str]:
    """Every tenant whose stream is there, in order of names; those the policies no longer know included.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    found = set()
    try:
        async for key in redis.scan_iter(match="mtok:{*}:events", count=1000, _type="stream"):
            if named := _STREAM_KEY(key.decode()):
                found.add(named[1])
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return sorted(found)


async def stream_ends(redis: Redis, tenants: Sequence[str]) -> dict[str, StreamEnd]:
    """Where each tenant's stream ends, of those that have one.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    ends = {}
    for first in range(0, len(tenants), ENDS_AT_ONCE):
        some = tenants[first : first + ENDS_AT_ONCE]
        pipeline = redis.pipeline(transaction=False)
        for tenant in some:
            pipeline.xinfo_stream(TenantKeys(tenant).events)
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        for tenant, info in zip(some, answers, strict=True):
            if isinstance(info, dict):
                ends[tenant] = StreamEnd(info["last-generated-id"].decode(), info["entries-added"], info["length"])
            elif "no such key" not in str(info):
                raise StoreUnavailable(f"Redis did not answer: {info}")
    return ends


async def read_events(redis: Redis, tenant: str, *, after: str, until: str) -> AsyncIterator[list[StoredEvent]]:
    """The tenant's events after the entry `after` up to and with `until`, oldest first, `READ_EVENTS` at a time.

    Raises:
        StoreUnavailable: Redis did not answer.
        ValueError: an entry is not a usage event; the message names it.
    """
    key = TenantKeys(tenant).events
    while True:
        try:
            answer = await redis.xrange(key, min=f"({after}", max=until, count=READ_EVENTS)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        events = [stored_event(tenant, entry, fields) for entry, fields in cast(_Entries, answer)]
        if not events:
            return
        yield events
        after = events[-1].entry


def stored_event(tenant: str, entry: bytes, fields: dict[bytes, bytes]) -> StoredEvent:
    """An entry as Redis gives it.

    Raises:
        ValueError: it is not a usage event.
    """
    try:
        return StoredEvent(tenant, entry.decode(), _decode(fields[b"event"]), fields.get(b"from", b"").decode())
    except (KeyError, msgspec.DecodeError) as error:
        raise ValueError(f"entry {entry.decode()} of {tenant}'s events cannot be read: {error}") from error
