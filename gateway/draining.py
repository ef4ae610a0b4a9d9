"""Replicas that an operator wants empty: nothing new goes there, what runs may finish, and it is said when all has.

The marks are in Redis, so that every gateway worker obeys within two seconds. Each tells there how much it has left at
a replica that drains. A mark holds until it is undone, until another process listens at the replica's address, or for a
day: an address that is used again must not stay empty for ever.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import parse_qsl

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.errors import Refusal
from gateway.fleet import Fleet, Replica
from gateway.store import DRAINING, ReplicaKeys, StoreUnavailable, end_tasks

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
HEARD_MS = 3000
"""By then every worker has seen a mark, and has told what it has left."""
SILENT_MS = 10_000
"""A worker that has told nothing for so long is gone, and its requests with it."""
MARK_TTL_MS = 86_400_000
LEFT_TTL_S = 3600


class Mark(msgspec.Struct, frozen=True):
    """A replica drains since then, in Unix ms; what runs there at `cut_ms` is cut, 0: never."""

    since_ms: int
    cut_ms: int = 0


class DrainState(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. `in_flight` requests of all gateways are there yet; `drained`: none, and none will come."""

    replica: str
    since_ms: int
    cut_ms: int
    in_flight: int
    drained: bool


class DrainQuery(msgspec.Struct, frozen=True):
    """A replica by its URL or host and port, and after how many seconds what runs there is cut; None: never."""

    replica: str = ""
    cut_after_s: float | None = None


def parse_drain_query(query_string: bytes) -> DrainQuery | Refusal:
    """Reads `replica=` and `cut_after_s=`."""
    try:
        given = dict(parse_qsl(query_string.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query_string)))
        return msgspec.convert(given, DrainQuery, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        return Refusal(status=400, code="invalid_request", message=f"Give replica and cut_after_s (seconds): {error}")


class Draining:
    """One worker's part. `async with` runs it. `now_ms` is Unix time."""

    def __init__(self, fleet: Fleet, redis: Redis, *, now_ms: Callable[[], int]) -> None:
        self._fleet = fleet
        self._redis = redis
        self._now_ms = now_ms
        self._me = secrets.token_hex(6)
        self._marks: Mapping[str, Mark] = {}
        self._cut: set[tuple[str, int]] = set()
        self._away = False
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Draining:
        self._running = asyncio.create_task(self._run(), name="draining")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running is not None:
            await end_tasks([self._running])

    async def start(self, replica: Replica, *, cut_after_s: float | None) -> None:
        """From now on nothing new goes there, from any gateway. Raises `StoreUnavailable`."""
        now_ms = self._now_ms()
        mark = Mark(now_ms, 0 if cut_after_s is None else now_ms + int(cut_after_s * 1000))
        try:
            await self._redis.delete(ReplicaKeys(replica.name).left)
            await self._redis.hset(DRAINING, replica.name, msgspec.json.encode(mark).decode())
            await self.poll()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error

    async def undo(self, replica: str) -> None:
        """Requests may go there again. Raises `StoreUnavailable`."""
        try:
            await self._redis.hdel(DRAINING, replica)
            await self.poll()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error

    async def states(self, only: str | None = None) -> list[DrainState]:
        """Of all replicas that drain, or of one. Raises `StoreUnavailable`."""
        try:
            await self.poll()
            pipeline = self._redis.pipeline(transaction=False)
            marks = [(name, mark) for name, mark in self._marks.items() if only in (None, name)]
            for name, _ in marks:
                pipeline.hgetall(ReplicaKeys(name).left)
            told = cast(list[dict[bytes, bytes]], await pipeline.execute())
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        return [self._state(name, mark, left) for (name, mark), left in zip(marks, told, strict=True)]

    async def poll(self) -> None:
        """Obeys the marks there are, and tells what is left. Raises `RedisError` or `OSError`."""
        found = cast(dict[bytes, bytes], await self._redis.hgetall(DRAINING))
        now_ms, loop_s = self._now_ms(), asyncio.get_running_loop().time()
        marks = {name.decode(): _read(packed) for name, packed in found.items()}
        old = [name for name, mark in marks.items() if now_ms - mark.since_ms > MARK_TTL_MS]
        self._marks = {name: mark for name, mark in marks.items() if name not in old}
        if old:
            await self._redis.hdel(DRAINING, *old)
        for replica in self._fleet.replicas:
            replica.health.drain(loop_s, on=replica.name in self._marks)
        for name, mark in self._marks.items():
            if (one := self._fleet.find(name)) is not None:
                self._cut_if_due(one, mark, now_ms)
                await self._redis.hset(ReplicaKeys(name).left, self._me, f"{one.in_flight} {now_ms}")
                await self._redis.expire(ReplicaKeys(name).left, LEFT_TTL_S)

    async def replaced(self, replica: Replica) -> None:
        """Another process listens there now: whoever wanted the old one empty is done."""
        if replica.name not in self._marks:
            return
        log.info("replica %s is another process now and drains no longer", replica.name)
        try:
            await self._redis.hdel(DRAINING, replica.name)
            await self.poll()
        except (RedisError, OSError) as error:
            log.warning("the mark that replica %s drains cannot be taken away: %s", replica.name, error)

    def _cut_if_due(self, replica: Replica, mark: Mark, now_ms: int) -> None:
        """Once for each mark: what is sent again finds another replica."""
        if not mark.cut_ms or now_ms < mark.cut_ms or (replica.name, mark.since_ms) in self._cut:
            return
        self._cut.add((replica.name, mark.since_ms))
        if count := replica.cut(f"{replica.name} was to be empty by now"):
            log.warning("replica %s was to be empty by now: cut %d requests there", replica.name, count)

    def _state(self, name: str, mark: Mark, left: Mapping[bytes, bytes]) -> DrainState:
        now_ms = self._now_ms()
        told = [tuple(map(int, one.split())) for one in left.values()]
        in_flight = sum(count for count, at_ms in told if now_ms - at_ms < SILENT_MS)
        is_heard = bool(told) and now_ms - mark.since_ms >= HEARD_MS
        return DrainState(
            replica=name,
            since_ms=mark.since_ms,
            cut_ms=mark.cut_ms,
            in_flight=in_flight,
            drained=is_heard and not in_flight,
        )

    async def _run(self) -> None:
        while True:
            try:
                await self.poll()
                self._away = False
            except (RedisError, OSError) as error:
                if not self._away:
                    log.warning("which replicas drain is not known while Redis is away: %s", error)
                self._away = True
            await asyncio.sleep(POLL_INTERVAL_S)


def _read(packed: bytes) -> Mark:
    """One that cannot be read, of another version, is as old as can be, and is taken away."""
    try:
        return msgspec.json.decode(packed, type=Mark)
    except msgspec.DecodeError:
        return Mark(0)
