"""Journals, shippers, the account script and budgets in virtual time, over a Redis that loses, repeats, delays and
rolls back, and workers that are killed.

The real parts are `TenantAccount` and `Outbox` with everything they call; the script is its model in Python, which
tests/integration/store/test_account_script.py holds against the real one. Time, network, disk and death are a seeded
schedule: `World(seed).run()` is the same every time.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

import msgspec

from gateway.admission import Ask, Denial, Grant
from gateway.metering import LedgerSettings, UsageEvent
from gateway.metering._account import TenantAccount
from gateway.metering._outbox import Outbox
from gateway.metering._record import Record
from gateway.policy import LimitsSpec
from gateway.store import Call, StoreUnavailable
from tests.integration.store.model import Amounts, Lease, Model

TENANT = "acme"
PERIOD = "hour:2026-09-21T14"
START_MS = 1_790_000_000_000
TTL_MS = 10_000
BUDGET_NANOUSD = 10_000_000
LIMITS = LimitsSpec(
    requests_per_minute=10_000, concurrent_requests=500, budget_usd=Decimal("0.01"), budget_period="hour"
)
TIMEOUT_MS = 1000
PEACE_MS = 75_000
"""Longer than the longest outage, a lease's term after it, and the look of an idle worker."""


class Redis:
    """One tenant's account: what account.lua does to it, in Python."""

    def __init__(self) -> None:
        self.model = Model(
            limits={"requests": 10_000, "tokens": None, "concurrent": 500},
            budget=BUDGET_NANOUSD,
            period=PERIOD,
            ttl_ms=TTL_MS,
        )
        self.last: dict[str, int] = {}
        self.events: list[tuple[str, UsageEvent]] = []

    def copy(self) -> Redis:
        """As it is now, for a rollback later."""
        older = Redis()
        model = self.model
        older.model = dataclasses.replace(
            model,
            buckets={name: dataclasses.replace(bucket) for name, bucket in model.buckets.items()},
            leases={member: dataclasses.replace(lease) for member, lease in model.leases.items()},
            spent=dict(model.spent),
        )
        older.last = dict(self.last)
        older.events = list(self.events)
        return older

    def call(self, call: Call) -> bytes:
        """The call's reply."""
        (now, _, _, _, _, _, period, _, _, away_ms, renewals, releases, asks, booking, *_) = msgspec.msgpack.decode(
            call.arguments[0]
        )
        model, producer = self.model, call.keys[3].rpartition(":")[2]
        model.period = period
        model.pass_time(now)
        for member in renewals:
            _, _, nanousd, of = member.split("|")
            model.renew(member, Lease(0, int(nanousd), of))
        for i in range(0, len(releases), 5):
            if (held := model.leases.get(releases[i])) is not None:
                model.settle(releases[i], held, Amounts(releases[i + 1], 0), (0, 0), releases[i + 2], 0, True)
        last = self.last.get(producer, 0)
        if booking:
            first, skips, _, _, _, settlements, _ = booking
            is_next = first == last + 1 or (skips and first > last)
            for i in range(0, len(settlements), 13):
                number, member, of, _, tokens, reserved_ms, used, cost, never_ran = settlements[i : i + 9]
                lease, amounts = Lease(0, 0, of), Amounts(tokens, 0)
                if is_next:
                    model.settle(member, lease, amounts, (0, used), reserved_ms, cost, bool(never_ran))
                elif number <= last:
                    model.leases.pop(member, None)
            if is_next:
                for number, packed in enumerate(call.arguments[1:], first):
                    self.events.append((f"{producer}:{number}", msgspec.json.decode(packed, type=UsageEvent)))
                last = self.last[producer] = first + len(call.arguments) - 2
        if away_ms:
            for lease in model.leases.values():
                if lease.expiry <= model.at:
                    lease.expiry = model.at + TTL_MS
        model.forget_expired()
        verdicts = []
        for i in range(0, len(asks), 7):
            dimension, wait_ms, _ = model.reserve(asks[i], Amounts(*asks[i + 1 : i + 6]))
            verdicts.append((dimension, 0, 0, -1, -1, 0, 0, wait_ms, 0, 0))
        return msgspec.msgpack.encode((model.at, last, verdicts))


@dataclass
class Journal:
    """A file: what was committed stays, whatever happens to its worker."""

    producer: str
    records: list[Record] = field(default_factory=list)
    owner: Worker | None = None


class _Decided:
    """A future without a loop."""

    def __init__(self, then: Callable[[_Decided], None]) -> None:
        self._then = then
        self._result: Grant | Denial | None = None
        self._error: BaseException | None = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Grant | Denial) -> None:
        self._result, self._done = result, True
        self._then(self)

    def set_exception(self, error: BaseException) -> None:
        self._error, self._done = error, True
        self._then(self)


class Worker:
    """A gateway's worker with its own journal, its connection, and the requests it runs."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.journal = Journal(f"j{name}", owner=self)
        world.journals.append(self.journal)
        self.account = TenantAccount(
            TENANT,
            worker=name,
            settings=LedgerSettings(),
            limits=LIMITS,
            wake=self._wake,
            load=self._load,
            create_future=lambda: _Decided(lambda _: None),  # type: ignore[arg-type,return-value]
        )
        self.outboxes: dict[str, Outbox] = {}
        self._adopt(self.journal)
        self.connection = 0
        self._answered_ms = world.now
        self._leaving = self._busy = False
        self._uncommitted: list[Record] = []
        self._committing = False
        world.after(3000, self._renew, self)

    def _adopt(self, journal: Journal) -> None:
        journal.owner = self
        outbox = Outbox(TENANT, journal.producer, appended=len(journal.records), shipped=0)
        self.outboxes[journal.producer] = outbox
        self.account.outboxes.append(outbox)

    def adopt(self, journal: Journal) -> None:
        """Takes over what a dead worker left."""
        self._adopt(journal)
        self.account.reconnected(0)

    def request(self, nanousd: int, runs_ms: int) -> None:
        """A request arrives; if it may, it runs and is settled for no more than it reserved."""

        def decided(future: _Decided) -> None:
            if isinstance(future._result, Grant):
                lease = future._result.lease
                cost = self.world.dice.randrange(nanousd + 1)
                self.world.after(runs_ms, lambda: self._append(Record(self._event(cost), lease)), self)

        future = self.account.ask(LIMITS, Ask("r", 0, nanousd))
        future._then = decided  # type: ignore[attr-defined]

    def _event(self, cost: int) -> UsageEvent:
        return UsageEvent(
            id=f"e{next(self.world.numbers)}", tenant=TENANT, key="k", model="m", endpoint="chat", status="ok",
            cost_nanousd=cost, arrived_ms=self.world.now, ended_ms=self.world.now,
        )  # fmt: skip

    def _append(self, record: Record) -> None:
        self._uncommitted.append(record)
        if not self._committing:
            self._committing = True
            self.world.after(self.world.dice.randrange(1, 8), self._commit, self)

    def _commit(self) -> None:
        self._committing = False
        records, self._uncommitted = self._uncommitted, []
        first = len(self.journal.records) + 1
        self.journal.records += records
        if self.world.dice.random() < self.world.faults.kill_in_commit:
            self.world.kill(self)  # on disk, and nobody has heard of it
            return
        self.world.answered += [record.event.id for record in records]
        self.outboxes[self.journal.producer].committed(first, records)
        self.account.booking_waits()

    def _load(self, outbox: Outbox) -> None:
        missing = outbox.missing

        def loaded() -> None:
            if missing is not None and outbox.missing == missing:
                records = next(j for j in self.world.journals if j.producer == outbox.producer).records
                outbox.loaded(missing, records[missing - 1 : missing + 63])
                self.account.booking_waits()

        self.world.after(2, loaded, self)

    def _renew(self) -> None:
        self.account.renew()
        self.world.after(3000, self._renew, self)

    def _wake(self, _: object, *, within_s: float = 0.0) -> None:
        if not self._leaving and not self._busy:
            self._leaving = True
            self.world.after(int(within_s * 1000), self._depart, self)

    def _depart(self) -> None:
        self._leaving = False
        self._busy = True
        world, connection = self.world, self.connection
        if self._answered_ms < 0:  # a new connection
            self.account.reconnected(world.now + self._answered_ms)
            self._answered_ms = world.now
        call = self.account.take(world.now)
        if call is None:
            self._busy = False
            return
        dice, faults = world.dice, world.faults
        self.connection = connection
        out_ms, back_ms = dice.randrange(1, 5), dice.randrange(1, 5)
        if dice.random() < faults.delay:
            out_ms += dice.randrange(3 * TIMEOUT_MS)
        is_lost, is_deaf = dice.random() < faults.lose, dice.random() < faults.deaf
        repeats = 1 + (dice.random() < faults.repeat)
        heard = [False]

        def arrive() -> None:
            if world.redis_away:
                return
            for _ in range(repeats):
                reply = world.redis.call(call)
            if not is_deaf:
                world.after(back_ms, lambda: answer(reply), self)

        def answer(reply: bytes) -> None:
            if self.connection != connection or heard[0]:
                return
            heard[0] = True
            self._answered_ms = world.now
            self._busy = False
            if self.account.finish(reply):
                self._wake(self.account)

        def time_out() -> None:
            if self.connection != connection or heard[0]:
                return
            self.connection += 1
            self._answered_ms = -self._answered_ms
            self._busy = False
            if self.account.fail(StoreUnavailable("no answer")):
                world.after(dice.randrange(50, 500), lambda: self._wake(self.account), self)

        if not is_lost:
            world.after(out_ms, arrive, None)  # what was sent arrives, though its sender may be dead by then
        world.after(TIMEOUT_MS, time_out, self)


@dataclass
class Faults:
    """Chances of a fault, of each call or each 100 ms."""

    lose: float = 0.0
    deaf: float = 0.0
    delay: float = 0.0
    repeat: float = 0.0
    kill: float = 0.0
    kill_in_commit: float = 0.0
    outage: float = 0.0
    rollback: float = 0.0

    @classmethod
    def drawn(cls, dice: random.Random) -> Faults:
        def chance(most: float) -> float:
            return dice.random() * most if dice.random() < 0.6 else 0.0

        return cls(
            lose=chance(0.1),
            deaf=chance(0.1),
            delay=chance(0.1),
            repeat=chance(0.2),
            kill=chance(0.05),
            kill_in_commit=chance(0.05),
            outage=chance(0.02),
            rollback=chance(0.02),
        )


class World:
    """One schedule. After `run` its attributes tell what happened; `violations` says what should not have."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.faults = Faults.drawn(self.dice)
        self.now = START_MS
        self.numbers = itertools.count(1)
        self.redis = Redis()
        self.redis_away = False
        self.rollbacks = self.kills = 0
        self.journals: list[Journal] = []
        self.answered: list[str] = []
        self.most_spent = 0
        self._older: list[Redis] = []
        self._queue: list[tuple[int, int, Callable[[], None], Worker | None]] = []
        self._tie = itertools.count()
        self._names = itertools.count(1)
        self.workers = [self._worker() for _ in range(self.dice.randrange(1, 4))]

    def _worker(self) -> Worker:
        return Worker(self, f"w{next(self._names)}")

    def after(self, delay_ms: int, act: Callable[[], None], of: Worker | None) -> None:
        """`act` happens then, unless `of` is dead by then."""
        heapq.heappush(self._queue, (self.now + delay_ms, next(self._tie), act, of))

    def kill(self, worker: Worker) -> None:
        """Between two instructions. Another one starts, or a living one adopts its journals."""
        if not worker.alive:
            return
        worker.alive = False
        self.kills += 1
        self.workers.remove(worker)
        for journal in self.journals:
            if journal.owner is worker:
                journal.owner = None
        if not self.workers or self.dice.random() < 0.7:
            self.after(self.dice.randrange(100, 2000), self._restart, None)
        self.after(2500, self._look_for_journals, None)

    def _restart(self) -> None:
        self.workers.append(self._worker())
        self._look_for_journals()

    def _look_for_journals(self) -> None:
        for journal in self.journals:
            if journal.owner is None and self.workers:
                self.dice.choice(self.workers).adopt(journal)

    def _disturb(self) -> None:
        dice, faults = self.dice, self.faults
        if dice.random() < faults.kill and self.workers:
            self.kill(dice.choice(self.workers))
        if dice.random() < faults.outage and not self.redis_away:
            self.redis_away = True
            self.after(dice.randrange(100, 30_000), self._come_back, None)
        if dice.random() < faults.rollback and self._older:
            self.rollbacks += 1
            self.redis = dice.choice(self._older[-10:]).copy() if dice.random() < 0.8 else Redis()
            for worker in self.workers:  # a fail-over or a restart ends every connection
                if dice.random() < 0.9:
                    worker.connection += 1
                    worker.account.fail(StoreUnavailable("closed"))
                    worker._busy = False
                    worker._answered_ms = -abs(worker._answered_ms)
                    worker._wake(worker.account)
        if faults.rollback:
            self._older.append(self.redis.copy())

    def _come_back(self) -> None:
        self.redis_away = False

    def run(self) -> World:
        """Requests and faults for some seconds, then peace until nothing moves any more."""
        busy_until = self.now + self.dice.randrange(1000, 20_000)
        requests = self.dice.randrange(1, 60)
        for _ in range(requests):
            self.after(self.dice.randrange(busy_until - self.now), self._request, None)
        next_fault = self.now
        peace = False
        while self._queue:
            at, _, act, of = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            while next_fault <= self.now < busy_until:
                self._disturb()
                next_fault += 100
            if of is None or of.alive:
                act()
                if not self.rollbacks:
                    self.most_spent = max(self.most_spent, self.redis.model.spent.get(PERIOD, 0))
            if self.now > busy_until and not peace:
                peace = True
                self.faults = Faults()
            if self.now > busy_until + PEACE_MS:
                break
        return self

    def _request(self) -> None:
        if self.workers:
            worst = self.dice.choice([1, 1000, BUDGET_NANOUSD // 20, BUDGET_NANOUSD // 3])
            self.dice.choice(self.workers).request(worst, self.dice.randrange(1, 4000))

    def violations(self) -> list[str]:
        """What finance would call an error."""
        found = []
        booked = [event.id for _, event in self.redis.events]
        on_disk = [record.event.id for journal in self.journals for record in journal.records]
        if len(set(booked)) != len(booked):
            found.append("an event is booked twice")
        if set(booked) != set(on_disk):
            found.append(f"{len(set(on_disk) - set(booked))} events on disk are not booked")
        if not set(self.answered) <= set(booked):
            found.append("an answer was given whose event is not booked")
        spent = sum(event.cost_nanousd for _, event in self.redis.events)
        if self.redis.model.spent.get(PERIOD, 0) != spent:
            found.append(f"spent is {self.redis.model.spent.get(PERIOD, 0)}, the events cost {spent}")
        if self.redis.model.leases or self.redis.model.reserved(PERIOD):
            found.append("something stays reserved")
        if self.most_spent > BUDGET_NANOUSD:
            found.append(f"the budget was overrun: {self.most_spent}")
        return found
