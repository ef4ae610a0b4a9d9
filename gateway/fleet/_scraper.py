"""Reads the engines' counters from time to time and adds what they grew by to Redis, replica by replica and minute by
minute; beside it, how many requests this gateway has sent. What audits hold against the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import httpx
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.engines import Dialect, MetricsPage
from gateway.store import BUCKET_SECONDS, REPLICAS, ReplicaKeys, load_script

from ._counters import Advance, NoCounters, Reading, advance, read_counters
from ._http import http_client

log = logging.getLogger(__name__)

SCRAPE_INTERVAL_S = 10.0
"""A reading costs vLLM's API server 11 to 186 ms, so one gateway worker alone reads a replica, and not more often."""
SCRAPE_TIMEOUT_S = 5.0
TELL_INTERVAL_S = 2.0
LEASE_TTL_S = 25.0
DAY_S = 86_400
SILENT_MS = 60_000
"""How often a worker writes its counts though nothing has changed, and how old they are before it is taken for dead."""


class Sending(Protocol):
    """A replica as the scraper needs it; `Replica` is one. `reading` is the last one of any worker."""

    url: str
    name: str
    requests_sent: int
    reading: Reading | None
    dialect: Dialect
    control_headers: dict[str, str]

    def oldest_exchange_s(self) -> float | None:
        """Age of the oldest exchange that runs, in seconds."""


class _Last(msgspec.Struct, frozen=True):
    """What Redis keeps of the last reading."""

    epoch: int
    reading: Reading


class Scraper:
    """One worker's share of reading the engines. `async with` runs it; all workers together read each replica once.

    `kept_s` is how long a minute is kept, as the ledger's minute buckets are. `now_ms` is Unix time.
    """

    def __init__(
        self,
        replicas: Sequence[Sending],
        redis: Redis,
        *,
        now_ms: Callable[[], int],
        kept_s: int = 7 * DAY_S,
        interval_s: float = SCRAPE_INTERVAL_S,
    ) -> None:
        self._replicas = replicas
        self._redis = redis
        self._now_ms = now_ms
        self._kept_s = kept_s
        self._interval_s = interval_s
        self._me = secrets.token_hex(6)
        self._book = redis.register_script(load_script("engine").text)
        self._http = http_client(SCRAPE_TIMEOUT_S)
        self._tasks: list[asyncio.Task[None]] = []
        self._sent_before: defaultdict[str, int] = defaultdict(int)
        self._told: dict[str, tuple[str, int]] = {}
        self._away = self._closing = False
        self._unread: set[str] = set()

    async def __aenter__(self) -> Scraper:
        self._tasks = [
            asyncio.create_task(self._every(self._interval_s, self.scrape), name="scrape"),
            asyncio.create_task(self._every(TELL_INTERVAL_S, self.tell_sent), name="tell-sent"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self.tell_sent()
            await self.tell_sent()
            await self._let_go()
        await self._http.aclose()

    async def scrape(self) -> None:
        """Reads every replica that is this worker's to read. Raises `RedisError` or `OSError` when Redis is away."""
        if self._replicas:
            await asyncio.gather(*(self._scrape(replica) for replica in self._replicas))

    async def tell_sent(self) -> None:
        """Writes how many requests this worker had sent when it was last called, and since when the oldest runs.

        One call late, so that a request is in the journal before it is counted here: of a worker that is killed no
        request counts as sent without an event. Absolute numbers, so that a repeated write changes nothing.
        """
        now_ms = self._now_ms()
        pipeline = self._redis.pipeline(transaction=False)
        told: dict[str, tuple[str, int]] = {}
        for replica in self._replicas:
            oldest_s = replica.oldest_exchange_s()
            oldest_ms = 0 if oldest_s is None else now_ms - int(oldest_s * 1000)
            sent = f"{self._sent_before[replica.name]} {oldest_ms}"
            before, at_ms = self._told.get(replica.name, ("0 0", now_ms - SILENT_MS // 2 + 1))
            if sent != before or now_ms - at_ms >= SILENT_MS // 2:
                pipeline.hset(
                    ReplicaKeys(replica.name).sent, self._me, f"{self._sent_before[replica.name]} {now_ms} {oldest_ms}"
                )
                told[replica.name] = (sent, now_ms)
            self._sent_before[replica.name] = replica.requests_sent
        if told:
            await pipeline.execute()
            self._told |= told

    async def _every(self, interval_s: float, do: Callable[[], object]) -> None:
        while True:
            try:
                await cast("asyncio.Future[None]", do())
                self._away = False
            except (RedisError, OSError) as error:
                if not self._away:
                    log.warning("the engines' counters wait for Redis: %s", error)
                self._away = True
            if self._closing:  # Redis' client may swallow a cancellation
                return
            await asyncio.sleep(interval_s)

    async def _scrape(self, replica: Sending) -> None:
        metrics = replica.dialect.metrics
        if metrics is None:
            return
        keys = ReplicaKeys(replica.name)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(keys.lease, self._me, nx=True, px=int(LEASE_TTL_S * 1000))
        pipeline.get(keys.lease)
        pipeline.hmget(keys.last, "reading", "at")
        pipeline.sadd(REPLICAS, replica.name)
        _, holder, (packed, at), _ = cast(
            tuple[object, bytes | None, tuple[bytes | None, bytes | None], object], await pipeline.execute()
        )
        last = None if packed is None else msgspec.json.decode(packed, type=_Last)
        if holder != self._me.encode():
            replica.reading = None if last is None else last.reading
            return
        reading = await self._read(replica, metrics)
        if reading is None:
            return
        replica.reading = reading
        if not metrics.counts_tokens:
            return
        if last is not None and reading.asked_ms <= last.reading.answered_ms:
            return  # this clock is behind the last reader's: later
        added = advance(None if last is None else (last.epoch, last.reading), reading)
        await self._add(keys, added, reading, at or b"")

    async def _read(self, replica: Sending, metrics: MetricsPage) -> Reading | None:
        asked_ms = self._now_ms()
        try:
            answer = await self._http.get(metrics.url(replica.url), headers=replica.control_headers)
            answer.raise_for_status()
            reading = read_counters(answer.content, metrics, asked_ms=asked_ms, answered_ms=self._now_ms())
        except (httpx.HTTPError, NoCounters) as error:
            if replica.name not in self._unread:
                log.warning(
                    "the counters of replica %s cannot be read: %s", replica.name, error or type(error).__name__
                )
            self._unread.add(replica.name)
            return None
        self._unread.discard(replica.name)
        return reading

    async def _add(self, keys: ReplicaKeys, added: Advance, reading: Reading, at: bytes) -> None:
        seconds = BUCKET_SECONDS["1m"]
        minute_s = reading.answered_ms // 1000 // seconds * seconds
        increments = [value for metric, n in added.increments.items() for value in (metric, n)]
        await self._book(
            keys=[keys.lease, keys.last, keys.engine(minute_s), keys.sent],
            args=[
                *(self._me, int(LEASE_TTL_S * 1000), at, reading.answered_ms),
                msgspec.json.encode(_Last(added.epoch, reading)),
                *(added.epoch, self._kept_s, int(added.is_first), *added.opened, *added.closed, reading.running),
                *increments,
            ],
        )

    async def _let_go(self) -> None:
        """Gives the leases back, so that another worker reads on at once."""
        for replica in self._replicas:
            key = ReplicaKeys(replica.name).lease
            if await self._redis.get(key) == self._me.encode():
                await self._redis.delete(key)
