"""What this worker's routers share with those of other workers and gateways over the same replicas, through Redis.

Which prompts went where goes into one stream, a few times a second and only as far as it is news; what is in flight at
each replica into another. Nothing waits for it: a request is placed by what has been heard so far, and while
Redis is away each gateway places by what it knows itself. Whoever starts reads what the stream has kept before it is
ready. Without requests nothing is told, and reading waits in Redis for something to be told.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.typing import KeyT, StreamIdT

from gateway.routing import (
    Beside,
    Elsewhere,
    Held,
    LoadNews,
    Placed,
    PlacementNews,
    pack_held,
    pack_placed,
    read_held,
    read_placed,
)
from gateway.store import HELD, PLACED, end_tasks

log = logging.getLogger(__name__)

TELL_INTERVAL_S = 0.1
HEAR_INTERVAL_S = 0.1
"""With the interval before it: what is known of another gateway is a fifth of a second old."""
PLACED_EVERY = 3
"""Of so many tellings one tells of placements too: a conversation's next turn takes seconds to come."""
ALONE_INTERVAL_S = 1.0
ALONE_AFTER_MS = 5_000
"""While no other gateway has said anything for so long, this one speaks less often: for those that will start."""
BLOCK_MS = 2_000
DECAY_MS = 250
"""Reading waits so long for something to be told; for less where what was told before loses its value."""
AWAY_S = 1.0
"""Redis is asked again so often while it is away."""
START_TIMEOUT_S = 3.0
"""A gateway that starts waits no longer for what the others have told: without it its first placements are colder."""
KEPT_ENTRIES = 16_384
"""Of at most 8 KiB: with eight gateways under load the last ten minutes, some 5 MB; at the worst 128 MB."""
KEPT_LOADS = 512
READ_ENTRIES = 1_000

Entry = tuple[bytes, dict[bytes, bytes]]


class Routers(Protocol):
    """The routers of all models, as far as they share what they know."""

    def note_elsewhere(self, model: str, replica: str, blocks: Sequence[int]) -> None:
        """Another gateway has sent a prompt of these blocks there."""

    def beside(self, replica: str, load: Beside) -> None:
        """All other gateways together have this in flight there."""

    def running(self, replica: str) -> int:
        """How many requests from here have not ended there."""

    def held(self) -> list[Held]:
        """What is in flight from here; replicas that have nothing are left out."""

    def epoch(self, replica: str) -> int:
        """When the replica's process began, in Unix milliseconds; 0 where that is not known."""

    def forget(self, replica: str) -> None:
        """What has been noted of it was of a process that is no more."""


class Neighbours:
    """One worker's part in the exchange. `async with` runs it, and has read what is kept when it is entered. `now_ms`
    is a clock that does not go back."""

    def __init__(self, routers: Routers, redis: Redis, *, now_ms: Callable[[], int]) -> None:
        self._routers = routers
        self._redis = redis
        self._now_ms = now_ms
        self._worker = secrets.token_hex(6).encode()
        self._news = PlacementNews()
        self._loads = LoadNews()
        self._elsewhere = Elsewhere()
        self._applied: dict[str, Beside] = {}
        self._epochs: dict[str, int] = {}
        self._unsure: set[str] = set()
        self._after = {PLACED: "0-0", HELD: "0-0"}
        self._heard_ms: int | None = None
        self._asked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._away = self._closing = False
        self._behind = True

    async def __aenter__(self) -> Neighbours:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._catch_up()
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._lost(error)
        self._tasks = [
            asyncio.create_task(self._again(self._tell), name="tell-placements"),
            asyncio.create_task(self._again(self._hear), name="hear-placements"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        await end_tasks(self._tasks)

    @property
    def alone(self) -> bool:
        """Whether no other gateway has said anything lately."""
        return self._heard_ms is None or self._now_ms() - self._heard_ms > ALONE_AFTER_MS

    @property
    def dropped_blocks(self) -> int:
        """That were never told, since more were new than may be told."""
        return self._news.dropped_blocks

    def placed(self, model: str, replica: str, blocks: Sequence[int]) -> None:
        """This worker has sent a prompt of these blocks there."""
        self._news.placed(model, replica, blocks)
        self._asked.set()

    def restarted(self, replica: str) -> None:
        """Its engine has started anew, with an empty cache."""
        self._news.forget(replica)

    def engine_said(self, replica: str, waiting: int) -> None:
        """An engine has so many requests waiting."""
        self._elsewhere.engine_said(replica, waiting, self._routers.running(replica), self._now_ms())
        self._apply()

    async def _again(self, do: Callable[[], Coroutine[object, object, None]]) -> None:
        while True:
            try:
                await do()
                if self._away:
                    self._away = False
                    log.info("placements are shared again")
            except (RedisError, OSError) as error:
                self._lost(error)
                self._behind = True
                self._apply()
                await asyncio.sleep(AWAY_S)
            if self._closing:  # Redis' client may swallow a cancellation
                return

    def _lost(self, error: Exception) -> None:
        if not self._away:
            log.warning("placements are not shared while Redis is away: %s", error or type(error).__name__)
        self._away = True

    async def _tell(self) -> None:
        """Tells what is new, as often as it may, for as long as there is anything in flight or to tell."""
        for number in range(PLACED_EVERY):
            await self._asked.wait()
            await asyncio.sleep(ALONE_INTERVAL_S if self.alone else TELL_INTERVAL_S)
            self._asked.clear()
            await self._tell_once(placements=number == 0 or self.alone)

    async def _tell_once(self, *, placements: bool) -> None:
        now_ms = self._now_ms()
        held = self._routers.held()
        taken = self._news.take(self._routers.epoch, now_ms) if placements else []
        if held or self._news.has_news:
            self._asked.set()
        loads = self._loads.take(held, now_ms)
        pipeline = self._redis.pipeline(transaction=False)
        if taken:
            pipeline.xadd(
                PLACED, {b"by": self._worker, b"told": pack_placed(taken)}, maxlen=KEPT_ENTRIES, approximate=True
            )
        if loads is not None:
            pipeline.xadd(HELD, {b"by": self._worker, b"told": pack_held(loads)}, maxlen=KEPT_LOADS, approximate=True)
        if not pipeline.command_stack:
            return
        try:
            await pipeline.execute()
        except (RedisError, OSError):
            self._news.not_told(taken)
            self._loads.not_told()
            self._asked.set()
            raise

    async def _catch_up(self) -> None:
        """Reads what is kept, and where to read on."""
        newest = await self._newest(PLACED)
        if _number(newest) < _number(self._after[PLACED]):  # Redis has lost the stream, or its clock has gone back
            self._after[PLACED] = "0-0"
        kept: list[Placed] = []
        while entries := cast(
            list[Entry], await self._redis.xrange(PLACED, min=f"({self._after[PLACED]}", count=READ_ENTRIES)
        ):
            kept += self._placed_in(entries)
        self._after[HELD] = await self._newest(HELD)  # loads are worth nothing when they are old
        for placed in kept:
            self._is_past(placed)
        for replica in {placed.replica for placed in kept}:
            if not self._routers.epoch(replica):
                self._unsure.add(replica)
        self._note(kept)
        self._behind = False

    async def _newest(self, stream: str) -> str:
        newest = cast(list[Entry], await self._redis.xrevrange(stream, count=1))
        return newest[0][0].decode() if newest else "0-0"

    async def _hear(self) -> None:
        if self._behind:
            await self._catch_up()
        block_ms = DECAY_MS if self._applied else BLOCK_MS
        after = cast(dict[KeyT, StreamIdT], dict(self._after))
        answer = await self._redis.xread(after, count=READ_ENTRIES, block=block_ms)
        for stream, entries in cast(list[tuple[bytes, list[Entry]]], answer or []):
            if stream == PLACED.encode():
                self._note(self._placed_in(entries))
            else:
                self._hear_loads(entries)
        self._apply()
        if answer:
            await asyncio.sleep(HEAR_INTERVAL_S)

    def _placed_in(self, entries: Sequence[Entry]) -> list[Placed]:
        """What others have told of in them."""
        self._after[PLACED] = entries[-1][0].decode()
        placed: list[Placed] = []
        for gateway, told in self._of_others(entries):
            try:
                placed += read_placed(told)
            except msgspec.DecodeError:
                log.debug("what gateway %s told is of another version", gateway)
        return placed

    def _hear_loads(self, entries: Sequence[Entry]) -> None:
        self._after[HELD] = entries[-1][0].decode()
        for gateway, told in self._of_others(entries):
            try:
                self._elsewhere.heard(gateway, read_held(told), self._now_ms())
            except msgspec.DecodeError:
                log.debug("what gateway %s told is of another version", gateway)

    def _of_others(self, entries: Sequence[Entry]) -> list[tuple[str, bytes]]:
        told = [
            (fields[b"by"].decode(), fields[b"told"])
            for _, fields in entries
            if b"told" in fields and fields.get(b"by", self._worker) != self._worker
        ]
        if told:
            self._heard_ms = self._now_ms()
        return told

    def _note(self, told: Sequence[Placed]) -> None:
        now_ms = self._now_ms()
        for placed in told:
            if not self._is_past(placed):
                for blocks in self._news.heard(placed, now_ms):
                    self._routers.note_elsewhere(placed.model, placed.replica, blocks)

    def _is_past(self, placed: Placed) -> bool:
        """Whether that was told of a process that has been replaced since."""
        latest = max(self._epochs.get(placed.replica, 0), self._routers.epoch(placed.replica), placed.epoch)
        self._epochs[placed.replica] = latest
        return 0 < placed.epoch < latest

    def _apply(self) -> None:
        """Tells the routers what others have in flight, where that has changed, and what was read of a replica before
        anybody here knew when it began, and turns out to be of its predecessor."""
        for replica in [replica for replica in self._unsure if self._routers.epoch(replica)]:
            self._unsure.discard(replica)
            if self._routers.epoch(replica) > self._epochs[replica]:
                self.restarted(replica)
                self._routers.forget(replica)
        beside = self._elsewhere.beside(self._now_ms())
        for replica, load in beside.items():
            if self._applied.get(replica) != load:
                self._routers.beside(replica, load)
        for replica in self._applied.keys() - beside.keys():
            self._routers.beside(replica, Beside(0, 0))
        self._applied = beside


def _number(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)
