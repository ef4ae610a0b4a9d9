"""The push sink: every usage event over HTTP to a metering or billing system, at least once, in order per tenant.

One worker of the fleet pushes, the holder of a lease; the others wait to take over. How far a tenant's events have been
pushed is kept in Redis and moves only after the sink has answered 2xx, so whoever takes over goes on from there: what
was on its way when its pusher died comes again, with the same event id. A push begins only if the lease outlives its
time-out, so no two pushers are on the way at once.

What the sink refuses (400, 409, 413, 422) is halved until the refused event is alone; that one is parked: counted,
logged by its place, and named in a stream of its own. Every other failure is tried again, more and more slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Final, NamedTuple, cast

import httpx
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from gateway.clock import Clock
from gateway.policy import SinkFormat, SinkSpec
from gateway.store import SINK_LEASE, SINK_PARKED, StoreUnavailable, TenantKeys, end_tasks, load_script
from gateway.telemetry import Metrics

from ._cloudevents import cloud_event, lago_event
from ._cursor import Position
from ._stream import BEGINNING, StoredEvent, entry_ms, stored_event, stream_ends, tenants_with_events

log = logging.getLogger(__name__)

REFUSED: Final = frozenset({400, 409, 413, 422})
"""Statuses that blame the events. Others blame the address, the token or the moment, and no event is given up."""

PARKED_MAX: Final = 100_000
TENANTS_AT_ONCE: Final = 50
"""Tenants of one round trip to Redis; with `batch_max` it bounds what is in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSettings:
    """Seconds. `idle_s` is between two looks for new events, `retry_min_s` and `retry_max_s` bound the pause after a
    failure, `look_s` is between two looks at the lag, `scan_s` between two searches for tenants not in the policies."""

    push_timeout_s: float = 10.0
    lease_ttl_s: float = 30.0
    idle_s: float = 2.0
    retry_min_s: float = 0.5
    retry_max_s: float = 60.0
    look_s: float = 10.0
    scan_s: float = 3600.0

    def __post_init__(self) -> None:
        assert self.lease_ttl_s >= 2 * self.push_timeout_s, "a push has to fit into a lease"


_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class LeaseLost(Exception):
    """Somebody else pushes now."""


class _Item(NamedTuple):
    """An event ready to be sent; without a body it is none that can be read."""

    tenant: str
    entry: str
    body: bytes | None


class _Answer(NamedTuple):
    """What the sink said: `taken`, `refused` (the events are to blame), or neither; then `reason` says what it was."""

    taken: bool
    refused: bool
    reason: str
    retry_after_s: float = 0.0


class Sink:
    """One worker's part in the pushing, which `async with` does meanwhile.

    `tenants` are the policies'; those that are gone from them and left events behind are found too. `random` in [0, 1)
    spreads retries.
    """

    def __init__(
        self,
        redis: Redis,
        spec: SinkSpec,
        *,
        token: str | None,
        metrics: Metrics,
        tenants: Sequence[str],
        clock: Clock,
        random: Callable[[], float],
        settings: SinkSettings | None = None,
    ) -> None:
        self._redis = redis
        self._spec = spec
        self._token = token
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._settings = settings or SinkSettings()
        self._owner = secrets.token_hex(8)
        self._lease = redis.register_script(load_script("lease").text.decode())
        self._cursor = redis.register_script(load_script("sink").text.decode())
        self._fence = 0
        self._held_until_s = 0.0
        self._looked_s = float("-inf")
        self._tenants = list(tenants)
        self._scanned_s = float("-inf")
        self._positions: dict[str, Position] = {}
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sink:
        self._running = asyncio.create_task(self._run(), name="sink")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            await end_tasks([self._running])

    async def _run(self) -> None:
        """Pushes while this worker holds the lease, and waits for it while not."""
        headers = {"content-type": _CONTENT_TYPES[self._spec.format]}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            async with httpx.AsyncClient(headers=headers, timeout=self._settings.push_timeout_s) as http:
                while True:
                    await self._while_held(http)
                    self._show_lag(0, 0.0)
                    await asyncio.sleep(self._settings.lease_ttl_s / 3)
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._let_go()

    async def _while_held(self, http: httpx.AsyncClient) -> None:
        try:
            self._fence = 0
            if not await self._take_lease():
                return
            self._positions, self._looked_s, self._scanned_s = {}, float("-inf"), float("-inf")
            while True:
                await self._hold()
                if not await self._round(http):
                    await self._pause(self._settings.idle_s)
        except LeaseLost:
            log.info("another worker pushes usage events now")
        except (StoreUnavailable, RedisError, OSError) as error:
            log.warning("usage events cannot be pushed while Redis does not answer: %s", error)
        except Exception:
            log.exception("pushing usage events failed unexpectedly; it is tried again")

    async def _round(self, http: httpx.AsyncClient) -> int:
        """One look at every tenant; the number of events pushed."""
        pushed = 0
        for first in range(0, len(self._tenants), TENANTS_AT_ONCE):
            items = await self._read(self._tenants[first : first + TENANTS_AT_ONCE])
            for at in range(0, len(items), self._spec.batch_max):
                await self._deliver(http, items[at : at + self._spec.batch_max])
            pushed += len(items)
        return pushed

    async def _read(self, tenants: Sequence[str]) -> list[_Item]:
        """At most `batch_max` events of each, in order."""
        pipeline = self._redis.pipeline(transaction=False)
        for tenant in tenants:
            after = (await self._position(tenant)).entry
            pipeline.xrange(TenantKeys(tenant).events, min=f"({after}", count=self._spec.batch_max)
        answers = cast(list[_Entries], await pipeline.execute())
        return [
            self._item(tenant, entry, fields)
            for tenant, entries in zip(tenants, answers, strict=True)
            for entry, fields in entries
        ]

    def _item(self, tenant: str, entry: bytes, fields: dict[bytes, bytes]) -> _Item:
        try:
            body = _BODIES[self._spec.format](stored_event(tenant, entry, fields))
        except ValueError:
            body = None
        return _Item(tenant, entry.decode(), body)

    async def _deliver(self, http: httpx.AsyncClient, items: Sequence[_Item]) -> None:
        """Returns when the sink has these events, or has refused them one by one."""
        for readable, group in groupby(items, lambda item: item.body is not None):
            run = list(group)
            if readable:
                await self._push(http, run)
            else:
                for item in run:
                    await self._park(item, "unreadable")

    async def _push(self, http: httpx.AsyncClient, items: Sequence[_Item]) -> None:
        failures = 0
        while True:
            await self._hold()
            answer = await self._post(http, items)
            if answer.taken:
                self._metrics.sink_events.labels("delivered").inc(len(items))
                await self._advance(items)
                return
            if answer.refused:
                break
            failures += 1
            self._metrics.sink_failures.labels(answer.reason).inc()
            log.warning("the sink did not take %d usage events: %s", len(items), answer.reason)
            await self._pause(max(answer.retry_after_s, self._backoff_s(failures)))
        if len(items) == 1:
            await self._park(items[0], answer.reason)
            return
        half = len(items) // 2
        await self._push(http, items[:half])
        await self._push(http, items[half:])

    async def _post(self, http: httpx.AsyncClient, items: Sequence[_Item]) -> _Answer:
        before, after = _AROUND[self._spec.format]
        body = b"%b[%b]%b" % (before, b",".join(item.body for item in items if item.body is not None), after)
        try:
            async with asyncio.timeout(self._settings.push_timeout_s):
                response = await http.post(self._spec.url, content=body)
        except (TimeoutError, httpx.TimeoutException):
            return _Answer(False, False, "timeout")
        except httpx.HTTPError:
            return _Answer(False, False, "connection")
        known = self._spec.format == "lago" and len(items) == 1 and _LAGO_HAS_IT in response.content
        return _Answer(
            taken=response.is_success or known,
            refused=response.status_code in REFUSED,
            reason=str(response.status_code),
            retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
        )

    async def _park(self, item: _Item, reason: str) -> None:
        log.error(
            "the sink refuses a usage event, which is parked",
            extra={"data": {"tenant": item.tenant, "entry": item.entry, "reason": reason}},
        )
        self._metrics.sink_events.labels("parked").inc()
        place: dict[FieldT, EncodableT] = {"tenant": item.tenant, "entry": item.entry, "reason": reason}
        await self._redis.xadd(SINK_PARKED, place, maxlen=PARKED_MAX)
        await self._advance([item])

    async def _advance(self, items: Sequence[_Item]) -> None:
        """The sink has these, or never will."""
        for tenant, of_tenant in groupby(items, lambda item: item.tenant):
            arrived = list(of_tenant)
            entries = self._positions[tenant].entries + len(arrived)
            await self._written(tenant, arrived[-1].entry, str(entries))
            self._positions[tenant] = Position(entry=arrived[-1].entry, entries=entries)

    async def _position(self, tenant: str) -> Position:
        """How far this tenant is, claimed for this lease. A new sink begins with the oldest event there is."""
        if tenant not in self._positions:
            entry, entries = await self._written(tenant)
            if not entry:
                end = (await stream_ends(self._redis, [tenant])).get(tenant)
                entry, entries = BEGINNING.encode(), b"%d" % (end.entries - end.kept if end else 0)
            self._positions[tenant] = Position(entry=entry.decode(), entries=int(entries))
        return self._positions[tenant]

    async def _written(self, tenant: str, *position: str) -> tuple[bytes, bytes]:
        answer = await self._cursor(keys=[TenantKeys(tenant).sink], args=[str(self._fence), *position])
        if answer[0] == 0:
            raise LeaseLost
        return answer[1], answer[2]

    async def _take_lease(self) -> bool:
        asked_s = self._clock.monotonic_s()
        ttl_s = self._settings.lease_ttl_s
        fence = int(await self._lease(keys=[SINK_LEASE], args=[self._owner, str(int(ttl_s * 1000))]))
        if fence:
            self._held_until_s = asked_s + ttl_s
        taken, self._fence = fence and self._fence in (0, fence), fence
        return bool(taken)

    async def _hold(self) -> None:
        """Makes sure that the lease outlives a push; looks at the lag from time to time."""
        now_s = self._clock.monotonic_s()
        if self._held_until_s - now_s < self._settings.lease_ttl_s * 2 / 3 and not await self._take_lease():
            raise LeaseLost
        if now_s - self._looked_s >= self._settings.look_s:
            self._looked_s = now_s
            await self._look()

    async def _let_go(self) -> None:
        if self._fence:
            await self._lease(keys=[SINK_LEASE], args=[self._owner, "0"])

    async def _look(self) -> None:
        """Finds tenants, and how far behind the sink is."""
        now_s = self._clock.monotonic_s()
        if now_s - self._scanned_s >= self._settings.scan_s:
            self._scanned_s = now_s
            self._tenants = sorted({*self._tenants, *await tenants_with_events(self._redis)})
        events, longest_ms = 0, 0
        for tenant, end in (await stream_ends(self._redis, self._tenants)).items():
            position = await self._position(tenant)
            behind = min(end.kept, end.entries - position.entries)
            if behind > 0:
                events += behind
                first = await self._redis.xrange(TenantKeys(tenant).events, min=f"({position.entry}", count=1)
                for entry, _ in cast(_Entries, first):
                    longest_ms = max(longest_ms, self._clock.now_ms() - entry_ms(entry.decode()))
        self._show_lag(events, longest_ms / 1000)

    def _show_lag(self, events: int, seconds: float) -> None:
        self._metrics.sink_lag_events.set(events)
        self._metrics.sink_lag_seconds.set(seconds)

    def _backoff_s(self, failures: int) -> float:
        """Doubles, and takes any part of that: workers and gateways do not come back together."""
        settings = self._settings
        longest = min(settings.retry_max_s, settings.retry_min_s * 2.0 ** min(failures, 20))
        return settings.retry_min_s + self._random() * (longest - settings.retry_min_s)

    async def _pause(self, seconds: float) -> None:
        until_s = self._clock.monotonic_s() + seconds
        while (left_s := until_s - self._clock.monotonic_s()) > 0:
            await self._hold()
            await asyncio.sleep(min(left_s, self._settings.lease_ttl_s / 6))


_CONTENT_TYPES: Final[dict[SinkFormat, str]] = {
    "cloudevents": "application/cloudevents-batch+json",
    "lago": "application/json",
}
_AROUND: Final[dict[SinkFormat, tuple[bytes, bytes]]] = {"cloudevents": (b"", b""), "lago": (b'{"events":', b"}")}
_LAGO_HAS_IT: Final = b"value_already_exist"
"""In Lago's 422 when it has this transaction_id already: of a push that timed out, or was repeated."""

_encode = msgspec.json.Encoder().encode
_BODIES: Final[dict[SinkFormat, Callable[[StoredEvent], bytes]]] = {
    "cloudevents": lambda stored: _encode(cloud_event(stored)),
    "lago": lambda stored: _encode(lago_event(stored)),
}

RETRY_AFTER_MAX_S: Final = 300.0


def _retry_after_s(text: str) -> float:
    """Seconds of a Retry-After header; its other form, a date, is not waited for."""
    return min(RETRY_AFTER_MAX_S, float(text)) if text.isascii() and text.isdigit() else 0.0
