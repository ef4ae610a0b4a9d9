"""From Redis to verdicts: the minutes of every replica, and the events that touch them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.fleet import SILENT_MS
from gateway.metering import FailedAttempt
from gateway.store import BUCKET_SECONDS, REPLICAS, ReplicaKeys, StoreUnavailable
from gateway.wire import Usage

from ._events import events, tenants
from ._reconcile import LOSS, Interval, Reconciliation, Verdict, Work

TRIP_MINUTES: Final = 200
SHIPPING_MS: Final = 5000
"""What ended so long ago is on the ledger, unless Redis was away."""
LATE_MS: Final = 24 * 3_600_000
"""Events are looked for up to a day after a span: so long a gateway may have been without Redis."""
SKEW_MS: Final = 60_000

_METRICS: Final = {
    "opened_from": "opened_from",
    "opened_to": "opened_to",
    "closed_from": "closed_from",
    "closed_to": "closed_to",
    "running": "running",
    "prompt": "input",
    "cached": "cached",
    "generation": "output",
    "requests": "requests",
    "sent": "sent",
}


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts by replica. What happened after `settled_ms` was not looked at: requests of then still run, and their
    events are to come.
    """

    settled_ms: int
    replicas: dict[str, Verdict]

    @property
    def unexplained(self) -> bool:
        return any(verdict.unexplained for verdict in self.replicas.values())


class _Billed(msgspec.Struct, frozen=True, gc=False):
    """What an audit needs of an event."""

    status: str
    ended_ms: int
    arrived_ms: int
    replica: str = ""
    admitted_ms: int = 0
    usage: Usage = Usage()
    samples: int = 1
    estimated: bool = False
    cached_predicted: bool = False
    undelivered_input_max: int = 0
    undelivered_output_max: int = 0
    failed_attempts: tuple[FailedAttempt, ...] = ()
    replayed_input_tokens: int = 0


async def audit(redis: Redis, *, start_s: int, end_s: int, now_ms: int, replicas: Sequence[str] | None = None) -> Audit:
    """Holds the ledger against the counters of `replicas` (None: all that were ever read) from the minute of `start_s`
    to before `end_s`. A replica of which nothing is known has no rows.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    try:
        known = sorted(name.decode() for name in cast(set[bytes], await redis.smembers(REPLICAS)))
        settled_ms = min(now_ms - SHIPPING_MS, await _oldest_running_ms(redis, known, now_ms))
        found = {
            name: [one for one in await _intervals(redis, name, start_s, end_s) if one.closed_to <= settled_ms]
            for name in (known if replicas is None else replicas)
        }
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    reconciliations = {name: Reconciliation(intervals) for name, intervals in found.items()}
    edges = [edge for intervals in found.values() for one in intervals for edge in (one.opened_from, one.closed_to)]
    if edges:
        for tenant in await tenants(redis):
            read = events(
                redis,
                tenant,
                _Billed,
                booked_from_ms=min(edges) - SKEW_MS,
                booked_to_ms=max(edges) + LATE_MS,
            )
            async for _, piece in read:
                for replica, work in (part for event in piece for part in _works(event)):
                    if (reconciliation := reconciliations.get(replica)) is not None:
                        reconciliation.add(work)
    return Audit(
        settled_ms=settled_ms,
        replicas={name: reconciliation.verdict() for name, reconciliation in reconciliations.items()},
    )


def _works(event: _Billed) -> Iterator[tuple[str, Work]]:
    """An event's parts at the replicas it was sent to."""
    began_ms = event.admitted_ms or event.arrived_ms
    if event.status == "correction":
        return
    elsewhere_input = elsewhere_output = 0
    for attempt in event.failed_attempts:
        elsewhere_input += attempt.delivered_input_tokens
        elsewhere_output += attempt.delivered_output_tokens
        yield (
            attempt.replica,
            Work(
                LOSS,
                began_ms,
                event.ended_ms,
                attempt.delivered_input_tokens,
                0,
                attempt.delivered_output_tokens,
                attempt.input_tokens,
                attempt.output_tokens,
            ),
        )
    if event.replica:
        usage = event.usage
        # Where it went on by text, how much of that the client already had is known by two engines' counts.
        unsure = elsewhere_output
        certain = not (event.cached_predicted or event.estimated)
        yield (
            event.replica,
            Work(
                event.status,
                began_ms,
                event.ended_ms,
                usage.input_tokens * event.samples - elsewhere_input,
                usage.input_cached_tokens if certain else 0,
                max(0, usage.output_tokens - elsewhere_output),
                event.undelivered_input_max + event.replayed_input_tokens,
                event.undelivered_output_max + unsure,
                event.samples,
            ),
        )


async def _intervals(redis: Redis, replica: str, start_s: int, end_s: int) -> list[Interval]:
    keys = ReplicaKeys(replica)
    minute = BUCKET_SECONDS["1m"]
    minutes = range(start_s // minute * minute, end_s, minute)
    found: list[Interval] = []
    for first in range(0, len(minutes), TRIP_MINUTES):
        pipeline = redis.pipeline(transaction=False)
        for minute_s in minutes[first : first + TRIP_MINUTES]:
            pipeline.hgetall(keys.engine(minute_s))
        hashes = cast(list[dict[bytes, bytes]], await pipeline.execute())
        for minute_s, fields in zip(minutes[first:], hashes, strict=False):
            found += _of_minute(minute_s, fields)
    return found


def _of_minute(minute_s: int, fields: dict[bytes, bytes]) -> Iterable[Interval]:
    by_epoch: dict[str, dict[str, int]] = {}
    for field, value in fields.items():
        epoch, _, metric = field.decode().partition("|")
        if metric in _METRICS:
            by_epoch.setdefault(epoch, {})[_METRICS[metric]] = int(value)
    for epoch, counts in by_epoch.items():
        yield msgspec.convert({"minute_s": minute_s, "epoch": int(epoch), **counts}, Interval)


async def _oldest_running_ms(redis: Redis, replicas: Sequence[str], now_ms: int) -> int:
    """Since when the oldest request runs, of all workers that are alive: what ended before has its event."""
    pipeline = redis.pipeline(transaction=False)
    for replica in replicas:
        pipeline.hvals(ReplicaKeys(replica).sent)
    oldest_ms = now_ms
    for told in cast(list[list[bytes]], await pipeline.execute()) if replicas else []:
        for worker in told:
            _, updated_ms, running_since_ms = (int(part) for part in worker.split())
            if running_since_ms and now_ms - updated_ms < SILENT_MS:
                oldest_ms = min(oldest_ms, running_since_ms)
    return oldest_ms
