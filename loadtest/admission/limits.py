"""Limits under concurrency: what four tenants take of two budgets, of requests/min and of concurrent requests.

A thousand clients ask at once; in the second phase a gateway is killed and Valkey restarts meanwhile. Counted at the
replicas and in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.metering import UsageEvent
from gateway.store import TenantKeys

from ._fleet import Fleet, Policy
from .clients import Story, Visit, play

BUDGET_USD: Final = 0.01
NANOUSD: Final = 1_000_000_000
LOOK_S: Final = 0.02
MOST_PATIENT_S: Final = 5.0
"""Who is told to wait for longer, as until the budget's period ends, leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One round of all clients, with tenants of its own.

    `kill_at_s` and `restart_at_s`: when, seconds into it, the last gateway is killed, and Valkey is killed and started.
    `settle_s`: how long the ledger may take to agree with the events afterwards; None: nobody waits for that, since
    what a dead worker held is free only after 10 s.
    """

    name: str
    kill_at_s: float | None = None
    restart_at_s: float | None = None
    settle_s: float | None = 40.0


CALM: Final = Phase(name="calm")
STRUCK: Final = Phase(name="struck", kill_at_s=2.0, restart_at_s=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`workers` of each gateway; `clients` of each tenant with a budget.

    Those of one ask for `most_tokens`, about what they use, and the most is reserved. Those of the other are agents,
    who ask for `agents_tokens` and use some 60; theirs is reserved in slices.
    """

    workers: Sequence[int] = (3, 3, 2)
    clients: int = 1000
    price_usd_per_mtok: float = 0.35
    most_tokens: int = 100
    attempts: int = 8
    agents_tokens: int = 32_000
    requests_per_minute: int = 240
    concurrent_requests: int = 24
    phases: Sequence[Phase] = (CALM, STRUCK)


SHORT: Final = Options(
    workers=(1, 1, 1),
    clients=200,
    price_usd_per_mtok=2.5,
    most_tokens=50,
    agents_tokens=8000,
    attempts=4,
    requests_per_minute=60,
    concurrent_requests=16,
    phases=(CALM, Phase(name="struck", kill_at_s=0.15, restart_at_s=1.15, settle_s=None)),
)
"""What the tests run: the same budget is spent on a seventh of the tokens. Who is refused for want of budget or of a
place comes back after a second, so both strikes are in the middle of a wave."""


BUDGET: Final = int(BUDGET_USD * NANOUSD)


@dataclass(slots=True, kw_only=True)
class Money:
    """The ledger of a tenant with a budget, in nano-dollars: what it says now, and the most it ever said. `billed` is
    what its events cost; `settled` whether they agree with it in the end, and nothing is reserved any more."""

    tenant: str
    spent: int = 0
    reserved: int = 0
    most_spent: int = 0
    most_held: int = 0
    looks: int = 0
    billed: int = 0
    settled: bool = False

    @property
    def share(self) -> float:
        """Of the budget that was used."""
        return self.spent / BUDGET

    @property
    def broken(self) -> list[str]:
        """How the budget was exceeded, in words."""
        found = []
        most = max(self.most_spent, self.billed)
        if most > BUDGET:
            found.append(f"{self.tenant}: ${most / NANOUSD:.9f} were spent of a budget of ${BUDGET_USD}")
        if self.most_held > BUDGET:
            found.append(f"{self.tenant}: ${self.most_held / NANOUSD:.9f} were spent and reserved of ${BUDGET_USD}")
        if not self.settled:
            found.append(
                f"{self.tenant}: events cost {self.billed} nano-dollars, the ledger has {self.spent} + {self.reserved}"
            )
        return found

    def line(self) -> str:
        """The table's."""
        return (
            f"budget ${BUDGET_USD}, {self.tenant:<13} spent ${self.spent / NANOUSD:.9f} ({self.share:.1%}), with "
            f"reservations at most ${self.most_held / NANOUSD:.9f} ({self.looks} looks); "
            f"overrun ${max(0, self.most_spent - BUDGET) / NANOUSD:.9f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a phase went. Money is nano-dollars."""

    options: Options
    phase: Phase
    money: Money
    agents: Money
    minute_over: int
    """The most by which the replicas had got more than requests/min allows; never above 0."""
    minute_seen: int
    minute_allowed: int
    at_once: int
    stories: list[Story]
    elapsed_s: float

    @property
    def broken(self) -> list[str]:
        """Limits that were exceeded, in words."""
        found = [*self.money.broken, *self.agents.broken]
        if self.minute_over > 0:
            found.append(f"{self.minute_over} requests more than {self.options.requests_per_minute}/min allow")
        if self.at_once > self.options.concurrent_requests:
            found.append(f"{self.at_once} at once where {self.options.concurrent_requests} may run")
        return found

    def lines(self) -> list[str]:
        """The table's."""
        options = self.options
        served = sum(story.served for story in self.stories)
        attempts = sum(len(story.answers) for story in self.stories)
        cut = sum(story.last.finish_reason == "length" for story in self.stories if story.served)
        return [
            f"{self.phase.name}: {len(options.workers)} gateways, {sum(options.workers)} workers, "
            f"{len(self.stories)} clients at once, {attempts} requests, {served} served ({cut} to their length), "
            f"{self.elapsed_s:.1f} s",
            self.money.line(),
            self.agents.line(),
            f"requests/min {options.requests_per_minute}: {self.minute_seen} reached a replica of "
            f"{self.minute_allowed} allowed; most above: {max(0, self.minute_over)}",
            f"concurrent requests {options.concurrent_requests}: most at once {self.at_once}",
        ]


async def run(options: Options, directory: Path) -> list[Verdict]:
    """One verdict for each phase. Raises `DidNotStart`."""
    tenants: dict[str, Policy] = {}
    for phase in options.phases:
        budget = {"budget_usd": BUDGET_USD, "budget_period": "month"}
        tenants[f"{phase.name}-money"] = {"limits": budget}
        tenants[f"{phase.name}-agents"] = {"limits": {**budget, "reserve": "sliced"}}
        tenants[f"{phase.name}-minute"] = {"limits": {"requests_per_minute": options.requests_per_minute}}
        tenants[f"{phase.name}-narrow"] = {"limits": {"concurrent_requests": options.concurrent_requests}}
    price = {"output_usd_per_mtok": options.price_usd_per_mtok, "input_ratio": 0.28, "cached_ratio": 0.1}
    async with Fleet(
        directory, workers=options.workers, replicas=2, profile="quick", tenants=tenants, price=price
    ) as fleet:
        return [await _run(fleet, options, phase) for phase in options.phases]


async def _run(fleet: Fleet, options: Options, phase: Phase) -> Verdict:
    money, agents = (Money(tenant=f"{phase.name}-{kind}") for kind in ("money", "agents"))
    async with asyncio.TaskGroup() as tasks:
        began, began_s = time.perf_counter(), time.time()
        looks = [tasks.create_task(look(fleet, one)) for one in (money, agents)]
        striking = tasks.create_task(_strike(fleet, phase))
        stories = await play(_visits(fleet, options, phase))
        elapsed_s = time.perf_counter() - began
        await striking
        await asyncio.gather(*(_settle(fleet, one, phase.settle_s) for one in (money, agents)))
        for one in looks:
            one.cancel()
    seen = await fleet.seen()
    minute = sorted(at_s for who, at_s, _ in seen if who == f"{phase.name}-minute")
    per_minute = options.requests_per_minute
    allowed = [per_minute + int((at_s - began_s) * per_minute / 60) for at_s in minute]
    return Verdict(
        options=options,
        phase=phase,
        money=money,
        agents=agents,
        minute_over=max(count - most for count, most in enumerate(allowed, 1)),
        minute_seen=len(minute),
        minute_allowed=per_minute + int(elapsed_s * per_minute / 60),
        at_once=most_at_once([(began_s, ended_s) for who, began_s, ended_s in seen if who == f"{phase.name}-narrow"]),
        stories=stories,
        elapsed_s=elapsed_s,
    )


def most_at_once(spans: Sequence[tuple[float, float | None]]) -> int:
    """The most that ran at one time; what ends at the very time at which another begins is not beside it."""
    turns = [(began_s, 1) for began_s, _ in spans]
    turns += [(ended_s, -1) for _, ended_s in spans if ended_s is not None]
    running = most = 0
    for _, turn in sorted(turns):
        running += turn
        most = max(most, running)
    return most


def _visits(fleet: Fleet, options: Options, phase: Phase) -> list[Visit]:
    """All come at once: every other one asks for a stream, of agents seven of eight; every gateway is the first of a
    third. Agents come more often: a whole answer of theirs holds all that is left while it runs. Those of the other
    limits are more than these allow, and come again and again."""
    visits: list[Visit] = []

    def come(kind: str, count: int, **how: Any) -> None:
        tenant = f"{phase.name}-{kind}"
        for number in range(count):
            first = number % len(fleet.ports)
            ports = fleet.ports[first:] + fleet.ports[:first]
            streams = number % 8 > 0 if kind == "agents" else number % 2 == 0
            told = {"seed": len(visits), "stream": streams, "attempts": options.attempts, **how}
            visits.append(Visit(at_s=0.0, who=tenant, key=fleet.keys[tenant], ports=ports, **told))

    come("money", options.clients, max_tokens=options.most_tokens, patience_s=MOST_PATIENT_S)
    come(
        "agents",
        options.clients,
        max_tokens=options.agents_tokens,
        attempts=3 * options.attempts,
        patience_s=MOST_PATIENT_S,
    )
    come(
        "minute",
        2 * options.requests_per_minute,
        max_tokens=5,
        attempts=2 * options.attempts,
        obeys=False,
        patience_s=3600.0,
    )
    come("narrow", 4 * options.concurrent_requests, max_tokens=20, exact=True, patience_s=MOST_PATIENT_S)
    return visits


async def _strike(fleet: Fleet, phase: Phase) -> None:
    """Kills the last gateway and restarts Valkey at their times; the gateway comes back where books are to agree."""
    began_s = time.perf_counter()
    if phase.kill_at_s is not None:
        await asyncio.sleep(began_s + phase.kill_at_s - time.perf_counter())
        await fleet.gateways[-1].kill()
    if phase.restart_at_s is not None:
        await asyncio.sleep(began_s + phase.restart_at_s - time.perf_counter())
        await fleet.valkey.kill()
        await fleet.valkey.start()
    if phase.kill_at_s is not None and phase.settle_s is not None:
        await fleet.gateways[-1].start()


async def look(fleet: Fleet, money: Money) -> None:
    """Reads the ledger all the time."""
    keys = TenantKeys(money.tenant)
    async with fleet.redis() as redis:
        while True:
            with contextlib.suppress(RedisError, OSError):
                money.spent, money.reserved = await _read(redis, keys)
                money.most_spent = max(money.most_spent, money.spent)
                money.most_held = max(money.most_held, money.spent + money.reserved)
                money.looks += 1
            await asyncio.sleep(LOOK_S)


async def _read(redis: Redis, keys: TenantKeys) -> tuple[int, int]:
    spent = reserved = 0
    for name in [name async for name in redis.scan_iter(match=keys.budget("*"), count=1000)]:
        fields = await redis.hmget(name, "spent", "reserved")
        spent += int(fields[0] or 0)
        reserved += int(fields[1] or 0)
    return spent, reserved


async def _settle(fleet: Fleet, money: Money, within_s: float | None) -> None:
    """Waits for so long until nothing is reserved and the ledger agrees with the events; None: does not wait for it."""
    keys = TenantKeys(money.tenant)
    deadline_s = time.perf_counter() + (within_s or 0.0)
    money.settled = within_s is None
    async with fleet.redis() as redis:
        while True:
            entries = await redis.xrange(keys.events)
            events = [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
            money.billed = sum(event.cost_nanousd for event in events)
            spent, reserved = await _read(redis, keys)
            if not reserved and not await redis.zcard(keys.leases) and money.billed == spent == money.spent:
                money.settled = True
                return
            if time.perf_counter() > deadline_s:
                return
            await asyncio.sleep(LOOK_S)
