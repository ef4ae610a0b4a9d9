"""Corrections: a new event that refers to an old one and holds the difference. Nothing is edited, nothing deleted."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import usd
from gateway.metering import UsageEvent
from gateway.store import StoreUnavailable, TenantKeys
from gateway.wire import Usage

from ._stream import BEGINNING, StoredEvent, read_events, stream_ends

GUARD_MS: Final = 60_000
"""For how long one correction of a request keeps others of the same request away."""


class CannotCorrect(Exception):
    """The correction would be wrong; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What is to be corrected. `cost_nanousd` is added to the bill, so a credit is negative; None voids the request:
    what is left of its cost and tokens is taken back. `entry` says which event where a client used the id again."""

    request: str
    reason: str
    cost_nanousd: int | None
    entry: str | None = None


def correction_event(events: Sequence[StoredEvent], wanted: Correction, *, now_ms: int) -> UsageEvent:
    """The event to book. `events` are all the stream has of that request, its corrections included. `corrects` is the
    request's id, of the first event that has it; a later one is `<id>@<entry>`.

    Raises:
        CannotCorrect: there is no such request, more than one that could be meant, or it would end below nothing.
    """
    originals = [stored for stored in events if stored.event.id == wanted.request]
    if not originals:
        raise CannotCorrect(f"there is no event of the request {wanted.request}, or it is kept no more")
    chosen = [stored for stored in originals if wanted.entry in (None, stored.entry)]
    if len(chosen) != 1:
        entries = ", ".join(stored.entry for stored in originals)
        raise CannotCorrect(
            f"the id {wanted.request} is of {len(originals)} events; say which: --entry one of {entries}"
        )
    tenant, entry, event, _ = chosen[0]
    if event.status == "correction":
        raise CannotCorrect(f"{wanted.request} is a correction itself; correct the request it corrects")
    corrects = event.id if entry == originals[0].entry else f"{event.id}@{entry}"
    earlier = [stored.event for stored in events if stored.event.corrects == corrects]
    left_nanousd = event.cost_nanousd + sum(one.cost_nanousd for one in earlier)
    if wanted.cost_nanousd is None:
        cost_nanousd = -left_nanousd
        usage = _negative(_total([event.usage, *(one.usage for one in earlier)]))
        if cost_nanousd == 0 and usage == Usage():
            raise CannotCorrect(f"nothing is left of {wanted.request} to take back")
    else:
        cost_nanousd, usage = wanted.cost_nanousd, Usage()
        if cost_nanousd == 0:
            raise CannotCorrect("a correction by nothing changes nothing")
        if left_nanousd + cost_nanousd < 0:
            raise CannotCorrect(
                f"{wanted.request} stands at {usd(left_nanousd)} USD after {len(earlier)} corrections;"
                f" {usd(cost_nanousd)} would make it negative"
            )
    return UsageEvent(
        id=f"correction-{secrets.token_hex(8)}",
        tenant=tenant,
        key=event.key,
        model=event.model,
        endpoint=event.endpoint,
        status="correction",
        replica=event.replica,
        usage=usage,
        cost_nanousd=cost_nanousd,
        price_epoch=event.price_epoch,
        arrived_ms=now_ms,
        ended_ms=now_ms,
        user=event.user,
        tags=event.tags,
        corrects=corrects,
        reason=wanted.reason,
    )


async def correct(
    redis: Redis,
    tenant: str,
    wanted: Correction,
    *,
    book: Callable[[UsageEvent, str], Awaitable[None]],
    now_ms: int,
) -> UsageEvent:
    """Books a correction through `book`, which gets it with the tenant's budget period, and returns it. It counts in
    the present minute, hour and day and in the budget last asked, so that what was closed stays as it was.

    Raises:
        CannotCorrect: there is nothing to correct so, or the request is being corrected just now.
        StoreUnavailable: Redis did not answer; whether it is booked, the tenant's events tell.
    """
    guard = f"{TenantKeys(tenant).events}:correcting:{wanted.request}"
    try:
        if not await redis.set(guard, now_ms, nx=True, px=GUARD_MS):
            raise CannotCorrect(f"{wanted.request} is being corrected just now; try again in a minute")
        period = cast(bytes, await redis.hget(TenantKeys(tenant).limits, "period") or b"").decode()
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    events = await _events_of(redis, tenant, wanted.request)
    try:
        event = correction_event(events, wanted, now_ms=now_ms)
    except CannotCorrect:
        await redis.delete(guard)
        raise
    await book(event, period)
    # The guard stays until the booking can be seen, or runs out.
    if any(stored.event.id == event.id for stored in await _events_of(redis, tenant, wanted.request)):
        await redis.delete(guard)
        return event
    raise StoreUnavailable("the correction is not booked yet")


async def _events_of(redis: Redis, tenant: str, request: str) -> list[StoredEvent]:
    """All of the request that the stream has, oldest first."""
    end = (await stream_ends(redis, [tenant])).get(tenant)
    found: list[StoredEvent] = []
    if end is not None:
        async for events in read_events(redis, tenant, after=BEGINNING, until=end.entry):
            found += [
                stored for stored in events if request in (stored.event.id, stored.event.corrects.partition("@")[0])
            ]
    return found


def _total(usages: Sequence[Usage]) -> Usage:
    names = Usage.__struct_fields__
    return Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in names})


def _negative(usage: Usage) -> Usage:
    return Usage(**{name: -getattr(usage, name) for name in Usage.__struct_fields__})
