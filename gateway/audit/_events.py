"""Tenants' events read in pieces, however many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.store import TENANTS, StoreUnavailable, TenantKeys

CHUNK: Final = 200
"""Events of one trip: a gateway that audits beside its traffic is held up for a millisecond each."""

_Event = TypeVar("_Event")


async def tenants(redis: Redis) -> list[str]:
    """Every tenant there has been. Raises `StoreUnavailable`."""
    try:
        return sorted(name.decode() for name in cast(set[bytes], await redis.smembers(TENANTS)))
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error


async def remember_tenants(redis: Redis, names: Sequence[str]) -> None:
    """Has `tenants` name these too. Raises `RedisError` and `OSError`."""
    if names:
        await redis.sadd(TENANTS, *names)


async def events(
    redis: Redis, tenant: str, kind: type[_Event], *, booked_from_ms: int = 0, booked_to_ms: int | None = None
) -> AsyncIterator[tuple[int, list[_Event]]]:
    """The tenant's events by when they were booked, which is after they ended: pieces of at most `CHUNK`, each with
    the moment at which its last one was booked. Each event is read as `kind`, `UsageEvent` or a part of it.

    Raises `StoreUnavailable`.
    """
    decode = msgspec.json.Decoder(kind).decode
    stream = TenantKeys(tenant).events
    start = str(max(0, booked_from_ms))
    end = "+" if booked_to_ms is None else str(booked_to_ms)
    while True:
        try:
            entries = cast(
                list[tuple[bytes, dict[bytes, bytes]]], await redis.xrange(stream, min=start, max=end, count=CHUNK)
            )
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        if entries:
            yield int(entries[-1][0].partition(b"-")[0]), [decode(fields[b"event"]) for _, fields in entries]
        if len(entries) < CHUNK:
            return
        start = f"({entries[-1][0].decode()}"
