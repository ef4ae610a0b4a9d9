"""The audit at the end: what clients saw, the event stream, the sums, the budgets and the journals against each other.

Everything is added up here once more from the events, by nothing that the gateway adds with.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from redis.asyncio import Redis

from gateway.metering import UsageEvent, dimensions, split_field
from gateway.store import BUCKET_SECONDS, BucketSize, TenantKeys

from ._clients import Seen, Tokens

UNBOOKED_CODES: Final = frozenset({"shutting_down"})
"""Refused by a gateway that takes nothing any more: no request, and no event."""

CHECKPOINT_S: Final = 1.5
"""A stream that had been flowing for so long has been written down, once a second, before its gateway died."""

_SIZES: Final[tuple[BucketSize, ...]] = ("1m", "1h", "1d")
_PAGE: Final = 2000
_line: Final = msgspec.json.Decoder(tuple[UsageEvent, msgspec.Raw])

Place = tuple[BucketSize, int, str]
"""A bucket's size, its start and one metric of everything in it."""


@dataclass
class Books:
    """What Redis holds of one tenant. `sums` are of whole buckets; `spent` and `reserved` of all periods together."""

    events: list[UsageEvent] = field(default_factory=list)
    sums: Counter[Place] = field(default_factory=Counter)
    spent: int = 0
    reserved: int = 0
    leases: int = 0


async def read_books(redis: Redis, tenant: str) -> Books:
    """Everything Redis has of a tenant."""
    books, keys = Books(), TenantKeys(tenant)
    after = "-"
    while page := await redis.xrange(keys.events, min=after, count=_PAGE):
        books.events += [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in page]
        after = "(" + page[-1][0].decode()
    async for name in redis.scan_iter(match=keys.budget("*"), count=1000):
        spent, reserved = await redis.hmget(name, "spent", "reserved")
        books.spent += int(spent or 0)
        books.reserved += int(reserved or 0)
    for size in _SIZES:
        prefix = keys.usage(size, 0)[:-1]
        async for name in redis.scan_iter(match=prefix + "*", count=1000):
            start_s = int(name[len(prefix) :])
            for packed, value in (await redis.hgetall(name)).items():
                books.sums[size, start_s, _place(split_field(packed.decode()))] += int(value)
    books.leases = int(await redis.zcard(keys.leases))
    return books


def read_journals(data_dirs: Iterable[Path]) -> dict[str, list[UsageEvent]]:
    """The events of all journals, by tenant. Read from beside their gateways, which may be running."""
    journals: dict[str, list[UsageEvent]] = {}
    for path in sorted(path for data_dir in data_dirs for path in data_dir.glob("journal/*.journal")):
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            for tenant, body in database.execute("SELECT tenant, body FROM records ORDER BY tenant, last"):
                journals.setdefault(tenant, []).extend(_line.decode(line)[0] for line in body.split(b"\n"))
    return journals


def differences(
    seen: Iterable[Seen], books: Mapping[str, Books], journals: Mapping[str, list[UsageEvent]]
) -> list[str]:
    """Every difference there is, in words."""
    found = []
    asked = {one.question.id: one for one in seen}
    events: dict[str, list[UsageEvent]] = {}
    for tenant, of_tenant in books.items():
        for event in of_tenant.events:
            events.setdefault(event.id, []).append(event)
            if event.tenant != tenant:
                found.append(f"{event.id}: of {event.tenant}, in the stream of {tenant}")
            elif event.id not in asked:
                found.append(f"{event.id} of {tenant}: nobody asked this")
    for one in asked.values():
        found += _of_request(one, events.get(one.question.id, []))
    for tenant, of_tenant in books.items():
        found += _of_tenant(tenant, of_tenant)
        found += _of_journals(tenant, of_tenant.events, journals.get(tenant, []))
    return found


def _of_request(seen: Seen, events: list[UsageEvent]) -> list[str]:
    question = seen.question
    where = f"{question.id} of {question.tenant} ({seen.outcome} {seen.status}{' ' * bool(seen.code)}{seen.code})"
    is_untaken = seen.outcome == "unsent" or seen.code in UNBOOKED_CODES
    if len(events) > 1 or (events and is_untaken):
        return [f"{where}: {len(events)} events: {', '.join(event.status for event in events)}"]
    if not events:
        is_told = seen.outcome in ("complete", "failed", "refused")
        is_due = not is_untaken and (is_told or seen.streamed_s > CHECKPOINT_S)
        return [f"{where}: no event"] if is_due else []
    event = events[0]
    usage = event.usage
    billed = Tokens(usage.input_tokens, usage.input_cached_tokens, usage.output_tokens)
    agrees = {
        "complete": event.status == "ok" and billed == seen.tokens,
        "refused": event.code == seen.code and event.cost_nanousd == 0,
        "failed": event.status in ("upstream_lost", "engine_error"),
    }.get(seen.outcome, True)
    if agrees and billed.output <= question.output_most:
        return []
    return [
        f"{where}: the client saw {seen.tokens} of at most {question.output_most}, the event says {event.status} "
        f"{event.code}, {billed}, {event.cost_nanousd} nano-dollars"
    ]


def _of_tenant(tenant: str, books: Books) -> list[str]:
    found = []
    due = _sums(books.events)
    for place in sorted({*due, *books.sums}):
        if due[place] != books.sums[place]:
            size, start_s, metric = place
            found.append(f"{tenant}: {metric} in {size} at {start_s}: events {due[place]}, bucket {books.sums[place]}")
    cost = sum(event.cost_nanousd for event in books.events)
    if cost != books.spent:
        found.append(f"{tenant}: events cost {cost} nano-dollars, the budget has spent {books.spent}")
    if books.reserved:
        found.append(f"{tenant}: {books.reserved} nano-dollars are still reserved")
    if books.leases:
        found.append(f"{tenant}: {books.leases} leases are still held")
    return found


def _of_journals(tenant: str, events: list[UsageEvent], journal: list[UsageEvent]) -> list[str]:
    shipped = {event.id: event for event in events}
    written = {event.id: event for event in journal}
    found = [f"{event_id} of {tenant}: twice in the journals" for event_id in _repeated(journal)]
    for event_id in sorted({*shipped, *written}):
        if event_id not in shipped:
            found.append(f"{event_id} of {tenant}: in a journal, not in the stream")
        elif event_id not in written:
            found.append(f"{event_id} of {tenant}: in the stream, in no journal")
        elif shipped[event_id] != written[event_id]:
            found.append(
                f"{event_id} of {tenant}: the journal says {written[event_id]}, the stream {shipped[event_id]}"
            )
    return found


def _repeated(events: list[UsageEvent]) -> list[str]:
    return [event_id for event_id, count in Counter(event.id for event in events).items() if count > 1]


def _sums(events: list[UsageEvent]) -> Counter[Place]:
    """What the buckets have to hold of these events."""
    sums: Counter[Place] = Counter()
    for event in events:
        group = dimensions(event)
        if event.status == "refused":
            metrics = {f"refused:{event.code}": event.count}
        else:
            metrics = {
                "requests": 1,
                "input": event.usage.input_tokens,
                "cached": event.usage.input_cached_tokens,
                "output": event.usage.output_tokens,
                "cost_nanousd": event.cost_nanousd,
                "engine_input": event.usage.input_tokens * (event.samples - 1),
                "undelivered_input_max": event.undelivered_input_max,
                "undelivered_output_max": event.undelivered_output_max,
                "estimated": int(event.estimated),
            }
        for size in _SIZES:
            start_s = event.ended_ms // 1000 // BUCKET_SECONDS[size] * BUCKET_SECONDS[size]
            for metric, n in metrics.items():
                if n:
                    sums[size, start_s, _place((group, metric))] += n
    return sums


def _place(field_parts: tuple[tuple[str, ...], str]) -> str:
    group, metric = field_parts
    return " ".join((metric, *(part for part in group if part)))
