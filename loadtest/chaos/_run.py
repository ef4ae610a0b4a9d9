"""One run: load, strikes, settling, audit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..processes import DidNotStart
from ._audit import Books, differences, read_books, read_journals
from ._clients import Question, Seen, ask, draw
from ._schedule import schedule
from ._world import TENANTS, World

log = logging.getLogger(__name__)

BACK_OFF_S = 0.3
LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. `settle_s` is how long the books may take to agree once the load has ended."""

    seed: int
    requests: int = 20_000
    kills: int = 34
    clients: int = 40
    pause_s: float = 60.0
    restore_s: float = 15.0
    settle_s: float = 180.0


SHORT = Options(seed=0, requests=600, kills=10, clients=24, pause_s=3.0, restore_s=2.0, settle_s=60.0)
"""What the tests run."""


@dataclass
class Verdict:
    """How it ended. `differences` is empty when everything agrees."""

    options: Options
    struck: Counter[str]
    seen: list[Seen]
    books: dict[str, Books]
    differences: list[str]
    elapsed_s: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """What was asked, what was struck, what was booked."""
        outcomes = Counter(one.outcome for one in self.seen)
        codes = Counter(f"{one.status} {one.code}" for one in self.seen if one.outcome == "refused")
        booked = Counter(event.status for books in self.books.values() for event in books.events)
        lines = [f"seed {self.options.seed}", ""]
        lines.append("struck     " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.struck.items())))
        lines.append("seen       " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common()))
        slowest_s = {name: max(one.took_s for one in self.seen if one.outcome == name) for name in outcomes}
        lines.append("slowest    " + ", ".join(f"{name} {took_s:.1f} s" for name, took_s in slowest_s.items()))
        lines.append("refusals   " + ", ".join(f"{name}: {count}" for name, count in codes.most_common()))
        lines.append("events     " + ", ".join(f"{name} {count}" for name, count in booked.most_common()))
        lines.append("seconds    " + ", ".join(f"{name} {took_s:.0f}" for name, took_s in self.elapsed_s.items()))
        lines += [
            "",
            f"{'tenant':<10}{'requests':>10}{'whole':>10}{'events':>10}{'input':>12}{'output':>12}{'nano-dollars':>16}",
        ]
        for tenant, books in self.books.items():
            of_tenant = [one for one in self.seen if one.question.tenant == tenant]
            whole = sum(one.outcome == "complete" for one in of_tenant)
            input_tokens = sum(event.usage.input_tokens for event in books.events)
            output_tokens = sum(event.usage.output_tokens for event in books.events)
            lines.append(
                f"{tenant:<10}{len(of_tenant):>10}{whole:>10}{len(books.events):>10}{input_tokens:>12}"
                f"{output_tokens:>12}{books.spent:>16}"
            )
        return "\n".join(lines)


async def run(options: Options, directory: Path) -> Verdict:
    """Runs it all in `directory`. Raises `DidNotStart` when a process does not come (back) up."""
    elapsed_s: dict[str, float] = {}
    clock_s = time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock_s
        now_s = time.monotonic()
        elapsed_s[name], clock_s = now_s - clock_s, now_s

    async with World(directory, options.seed) as world:
        lap("start")
        load = _Load(options, world)
        try:
            async with asyncio.TaskGroup() as restarts:
                strikes = restarts.create_task(_strike(options, world, load, restarts))
                await load.run()
                await strikes
        except* DidNotStart as failed:
            raise failed.exceptions[0] from failed
        lap("load")
        left = world.dead() or await _settle(options, world, load)
        lap("settle")
        if not left:
            # Stopping changes nothing that was told.
            stopped = await asyncio.gather(*(gateway.stop() for gateway in world.gateways))
            left = [f"gateway-{n} stopped with status {status}" for n, status in enumerate(stopped) if status]
            left += await _audit(world, load)
        return Verdict(options, world.struck, load.seen, await _books(world), left, elapsed_s)


class _Load:
    """The clients of a run: each with one request after the other, all of them drawing from one list."""

    def __init__(self, options: Options, world: World) -> None:
        self.seen: list[Seen] = []
        self.begun = 0
        self.progress = asyncio.Condition()
        self._options = options
        self._world = world
        self._questions = self._drawn()
        self._touches = 0

    async def run(self) -> None:
        """All requests, to their ends."""
        await asyncio.gather(*(self._client(number) for number in range(self._options.clients)))

    async def touch(self) -> None:
        """A small request of each tenant: whatever hangs on somebody's next call is done now."""
        self._touches += 1
        for tenant in TENANTS:
            small = draw(self._options.seed, -self._touches, {tenant: 1})
            self.seen.append(
                await self._ask(Question(f"touch{self._touches}.{tenant}", tenant, small.body, small.output_most), 0)
            )

    def _drawn(self) -> Iterator[Question]:
        weights = {tenant: weight for tenant, (weight, _) in TENANTS.items()}
        for number in range(self._options.requests):
            yield draw(self._options.seed, number, weights)

    async def _client(self, number: int) -> None:
        for question in self._questions:
            self.begun += 1
            async with self.progress:
                self.progress.notify_all()
            seen = await self._ask(question, (number + self.begun) % 2)
            self.seen.append(seen)
            if seen.outcome in ("unsent", "cut") or seen.status == 503:
                await asyncio.sleep(BACK_OFF_S)

    async def _ask(self, question: Question, gateway: int) -> Seen:
        return await ask(question, self._world.gateways[gateway].port, self._world.keys[question.tenant])


async def _strike(options: Options, world: World, load: _Load, restarts: asyncio.TaskGroup) -> None:
    """Every strike at its time; those of a burst fall while the one before still has its consequences."""
    pending: list[asyncio.Task[None]] = []

    async def one(delay_s: float, index: int) -> None:
        await asyncio.sleep(delay_s)
        await world.strike(planned[index], restarts)
        log.info("%5d requests: %s %d", load.begun, planned[index].kind, planned[index].target)

    planned = schedule(
        options.seed,
        requests=options.requests,
        kills=options.kills,
        pause_s=options.pause_s,
        restore_s=options.restore_s,
    )
    for index, strike in enumerate(planned):
        async with load.progress:
            await load.progress.wait_for(lambda due=strike.at_request: load.begun >= due)
        pending.append(asyncio.create_task(one(strike.delay_ms / 1000, index)))
    await asyncio.gather(*pending)


async def _settle(options: Options, world: World, load: _Load) -> list[str]:
    """Looks again and again until the books agree, or the time is up. Returns what differs."""
    until_s = time.monotonic() + options.settle_s
    while True:
        await load.touch()
        await asyncio.sleep(LOOK_S)
        left = await _audit(world, load)
        if not left or time.monotonic() > until_s:
            return left


async def _audit(world: World, load: _Load) -> list[str]:
    journals = await asyncio.to_thread(read_journals, world.data_dirs)
    return differences(load.seen, await _books(world), journals)


async def _books(world: World) -> dict[str, Books]:
    async with world.redis() as redis:
        return {tenant: await read_books(redis, tenant) for tenant in TENANTS}
