"""scripts/account.lua on a real Valkey, told everything in any order and more than once: money comes out right."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from dataclasses import dataclass, field

import redis as sync_redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import (
    AccountLimits,
    AccountReply,
    Booking,
    Release,
    Settlement,
    TenantKeys,
    account_call,
    account_reply,
    load_script,
)

from .ledgers import T0_MS

TTL_MS = 10_000
PERIODS = ("hour:0", "hour:1")


@dataclass(frozen=True)
class Granted:
    """A lease, as whoever asked for it knows it."""

    member: str
    period: str
    nanousd: int
    at_ms: int


@dataclass
class Producer:
    """One worker: requests that run, and its journal's records, of which Redis may be told any number of times."""

    name: str
    running: list[Granted] = field(default_factory=list)
    released: list[Release] = field(default_factory=list)
    records: list[tuple[Granted, int]] = field(default_factory=list)
    """Lease and cost of everything that has ended; the first is number 1."""


class Money:
    """One tenant's account and what is known of it from outside: what it may hold after each call."""

    def __init__(self, valkey: sync_redis.Redis, budget: int, dice: random.Random) -> None:
        self.valkey = valkey
        self.budget = budget
        self.dice = dice
        self.sha1 = valkey.script_load(load_script("account").text.decode())
        self.keys = TenantKeys("t-" + secrets.token_hex(8))
        self.now = T0_MS
        self.period = PERIODS[0]
        self.producers = [Producer(name) for name in "pqr"]
        self.applied: dict[str, int] = {producer.name: 0 for producer in self.producers}
        self.held: dict[str, float] = {}
        """Members and when their time runs out."""
        self.forgotten: set[str] = set()
        """Members whose time ran out: their money may be somebody else's by now."""
        self.overdue: Counter[str] = Counter()
        """By period, money that was renewed or booked after all."""
        self.members = 0

    def call(
        self,
        producer: Producer,
        *,
        asks: int = 0,
        first: int | None = None,
        renewed: list[Granted] | None = None,
        away_ms: int = 0,
        is_answered: bool = True,
    ) -> None:
        """One call with the producer's records from `first` on. Unanswered: it is done, and nobody hears of it."""
        asked = [(f"r|{self.members + n}|{money}|{self.period}", money) for n, money in self._amounts(asks)]
        self.members += asks
        renewed = renewed or []
        reply = self._evaluate(producer, asked, first, renewed, away_ms)
        granted = [
            Granted(member, self.period, money, reply.now_ms)
            for (member, money), verdict in zip(asked, reply.verdicts, strict=True)
            if verdict.dimension == 0
        ]
        if is_answered:
            producer.running += granted
        self._compare(producer, reply, renewed, granted)

    def _amounts(self, count: int) -> list[tuple[int, int]]:
        return [(n, self.dice.choice([0, 1, self.dice.randrange(self.budget + 2)])) for n in range(count)]

    def _evaluate(
        self, producer: Producer, asked: list[tuple[str, int]], first: int | None, renewed: list[Granted], away_ms: int
    ) -> AccountReply:
        booking = None
        if first is not None and len(producer.records) >= first:
            sent = producer.records[first - 1 :]
            settlements: list[Settlement] = [
                (number, lease.member, lease.period, "", 0, lease.at_ms, 0, cost, 0, 0, 0, 0, 0)
                for number, (lease, cost) in enumerate(sent, first)
            ]
            booking = Booking(
                first=first,
                skips=False,
                producer_ttl_s=60,
                events_after_ms=0,
                events=[lease.member.encode() for lease, _ in sent],
                settlements=settlements,
                usage=[],
            )
        call = account_call(
            self.keys,
            now_ms=self.now,
            lease_ttl_ms=TTL_MS,
            limits=AccountLimits(budget_nanousd=self.budget, period=self.period),
            budget_ttl_s=1000,
            producer=producer.name,
            away_ms=away_ms,
            renewals=[lease.member for lease in renewed],
            releases=producer.released,
            asks=[value for member, nanousd in asked for value in (member, 0, nanousd, 0, 0, 0, False)],
            booking=booking,
        )
        return account_reply(self.valkey.evalsha(self.sha1, len(call.keys), *call.keys, *call.arguments))

    def _compare(self, producer: Producer, reply: AccountReply, renewed: list[Granted], granted: list[Granted]) -> None:
        before, last, now_ms = self.applied[producer.name], reply.last, reply.now_ms
        assert last >= before, "what is booked stays booked"
        self.applied[producer.name] = last
        booked = producer.records[before:last]
        with self.valkey.pipeline(transaction=False) as pipeline:
            pipeline.zrange(self.keys.leases, 0, -1, withscores=True)
            for period in PERIODS:
                pipeline.hmget(self.keys.budget(period), "spent", "reserved")
            leases, *money_by_period = pipeline.execute()
        stored = {member.decode(): expiry for member, expiry in leases}
        for lease, money in [*((lease, lease.nanousd) for lease in renewed), *booked]:
            if lease.member in self.forgotten:
                self.forgotten.discard(lease.member)
                self.overdue[lease.period] += money
        ended = {lease.member for lease, _ in booked} | {member for member, *_ in producer.released}
        known = {*self.held, *(lease.member for lease in (*renewed, *granted))}
        assert known.issuperset(stored), "nothing is held that nobody was granted"
        vanished = known - stored.keys() - ended
        assert all(self.held[member] <= now_ms for member in vanished), "nothing is let go before its time or its end"
        self.forgotten |= vanished
        self.held = stored
        for period, money_of in zip(PERIODS, money_by_period, strict=True):
            spent, reserved = (int(value or 0) for value in money_of)
            assert spent == sum(
                cost
                for one in self.producers
                for lease, cost in one.records[: self.applied[one.name]]
                if lease.period == period
            )
            assert reserved == sum(
                int(nanousd) for _, _, nanousd, of in (member.split("|") for member in stored) if of == period
            )
            assert spent + reserved <= self.budget + self.overdue[period]

    def step(self, *, is_punctual: bool) -> None:
        """Anything that can happen. Where all are punctual, what ends is booked while its lease still stands, and
        nobody comes back to one that has run out."""
        dice = self.dice
        self.now += dice.choice([0, 1, 500, 3_000, 3_000, 10_000, 10_001, -400])
        if dice.random() < 0.1:
            self.period = dice.choice(PERIODS)
        producer = dice.choice(self.producers)
        if is_punctual:
            producer.running = [lease for lease in producer.running if self.held.get(lease.member, 0) > self.now]
        ended = [lease for lease in producer.running if dice.random() < 0.4]
        renewed = [lease for lease in producer.running if lease not in ended and dice.random() < 0.7]
        for lease in ended:
            producer.running.remove(lease)
            if dice.random() < 0.2:
                producer.released.append((lease.member, 0, lease.at_ms, 0, 0))
            else:
                producer.records.append((lease, dice.choice([0, lease.nanousd, dice.randrange(lease.nanousd + 1)])))
        applied = self.applied[producer.name]
        is_due = is_punctual and len(producer.records) > applied
        self.call(
            producer,
            asks=dice.randrange(4),
            first=applied + 1 if is_due else dice.choice([None, applied + 1, dice.randrange(1, applied + 3)]),
            renewed=renewed,
            away_ms=0 if dice.random() < 0.9 else 5_000,
            is_answered=dice.random() < 0.8,
        )

    def settle(self) -> None:
        """All that runs ends, all journals are told to their ends, and the leases that nobody knows of run out."""
        for producer in self.producers:
            producer.records += [(lease, lease.nanousd) for lease in producer.running if lease.member in self.held]
            producer.running = []
            self.call(producer, first=self.applied[producer.name] + 1)
            self.call(producer, first=1)
            assert self.applied[producer.name] == len(producer.records)
        self.now += 2 * TTL_MS
        self.call(self.producers[0])
        assert not self.held
        events = [fields for _, fields in self.valkey.xrange(self.keys.events)]
        assert Counter(fields[b"from"].decode() for fields in events) == Counter(
            f"{one.name}:{number}" for one in self.producers for number in range(1, len(one.records) + 1)
        )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    budget=st.integers(0, 3000),
    is_punctual=st.booleans(),
    steps=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_spent_and_reserved_stay_within_the_budget(
    valkey: sync_redis.Redis, budget: int, is_punctual: bool, steps: int, seed: int
) -> None:
    """Any interleaving of reserve, renew, release, settle, expiry, lost answers and resends of several producers: spent
    and reserved are never negative and never above the budget together, except by what came back to a lease after its
    time had run out; everything is spent once, and nothing stays reserved."""
    money = Money(valkey, budget, random.Random(seed))
    for _ in range(steps):
        money.step(is_punctual=is_punctual)
        if is_punctual:
            assert not money.overdue
    money.settle()
