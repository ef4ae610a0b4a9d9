"""scripts/account.lua on a real Valkey against a model in Python integers."""

from __future__ import annotations

import copy
import random
import secrets
from collections.abc import Sequence

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import (
    DIMENSIONS,
    PER_MINUTE_MAX,
    AccountLimits,
    AccountReply,
    Booking,
    Mode,
    ScopeLimits,
    TenantKeys,
    Window,
    account_call,
    account_reply,
    load_script,
)

from .model import Amounts, Check, Lease, Model, Scope

TTL_MS = 10_000
T0 = 1_790_000_000_000


class Account:
    """The real one and the model, told the same things and compared after each call."""

    def __init__(self, valkey: sync_redis.Redis, model: Model) -> None:
        self.valkey = valkey
        self.sha1 = valkey.script_load(load_script("account").text.decode())
        self.keys = TenantKeys("t-" + secrets.token_hex(8))
        self.model = model
        self.now = T0
        self.last = 0
        self.members = 0
        self.granted: dict[str, tuple[Lease, Amounts, int]] = {}  # member -> lease, amounts, reserved_ms

    def call(
        self,
        asks: Sequence[tuple[int | str, ...]] = (),
        settle: Sequence[tuple[str, int | tuple[int, int], int, bool]] = (),
        renew: Sequence[str] = (),
        *,
        resend: bool = False,
    ) -> AccountReply:
        """`asks` are `Amounts`; `settle` are (member, used tokens or (input, output), cost, never ran)."""
        model = self.model
        named = [(self.member(i, Amounts(*ask)), Amounts(*ask)) for i, ask in enumerate(asks)]
        self.members += len(asks)
        booking = None
        if settle:
            first = self.last - len(settle) + 1 if resend else self.last + 1
            self.last = first + len(settle) - 1
            booking = Booking(
                first=first,
                skips=False,
                producer_ttl_s=60,
                events_after_ms=0,
                events=[b"{}"] * len(settle),
                usage=[],
                settlements=[
                    (
                        number,
                        member,
                        lease.period,
                        ",".join(lease.windows),
                        amounts.tokens,
                        reserved_ms,
                        sum(in_out(used)),
                        cost,
                        int(never_ran),
                        amounts.input,
                        in_out(used)[0],
                        amounts.output,
                        in_out(used)[1],
                    )
                    for number, (member, used, cost, never_ran) in enumerate(settle, first)
                    for lease, amounts, reserved_ms in [self.granted[member]]
                ],
            )
        reply = account_reply(self.valkey.evalsha(self.sha1, *self.arguments(named, renew, booking)))

        assert reply.last == self.last
        model.pass_time(self.now)
        for member in renew:
            model.renew(member, self.granted[member][0])
        for member, used, cost, never_ran in settle:
            lease, amounts, reserved_ms = self.granted[member]
            if resend:
                model.leases.pop(member, None)
            else:
                model.settle(member, lease, amounts, in_out(used), reserved_ms, cost, never_ran)
        model.forget_expired()
        assert reply.now_ms == model.at
        scopes = ["", *model.others]
        for (member, amounts), verdict in zip(named, reply.verdicts, strict=True):
            dimension, wait_ms, of = model.reserve(member, amounts)
            assert (verdict.dimension, verdict.retry_after_ms, scopes[verdict.scope]) == (dimension, wait_ms, of)
            of_requests, of_tokens = model.tightest("requests", amounts), model.tightest("tokens", amounts)
            assert (scopes[verdict.requests_scope], scopes[verdict.tokens_scope]) == (of_requests.name, of_tokens.name)
            assert verdict.requests_remaining == of_requests.remaining("requests")
            assert verdict.tokens_remaining == of_tokens.remaining("tokens")
            assert verdict.requests_reset_ms == of_requests.reset_ms("requests")
            assert verdict.tokens_reset_ms == of_tokens.reset_ms("tokens")
            if dimension == 0:
                lease = model.leases.pop(member)
                granted = verdict.member or member
                assert granted == self.name(member, lease, amounts)
                model.leases[granted] = lease
                self.granted[granted] = (lease, amounts, model.at)
        self.compare()
        return reply

    def member(self, i: int, amounts: Amounts) -> str:
        """The name of the lease that the i-th ask gets."""
        return self.name(f"r|{self.members + i}{'s' if amounts.is_slice else ''}", self.model.lease(amounts), amounts)

    def name(self, member: str, lease: Lease, amounts: Amounts) -> str:
        """The same lease's, of the windows and scopes that it has in fact."""
        base = "|".join([*member.split("|")[:2], str(lease.nanousd), lease.period])
        if not self.model.has_more and not amounts.scopes:
            return base
        return f"{base}|{lease.most_tokens}|{','.join(lease.windows)}|{','.join(lease.scopes)}"

    def arguments(
        self, named: list[tuple[str, Amounts]], renew: Sequence[str], booking: Booking | None
    ) -> list[object]:
        call = account_call(
            self.keys,
            now_ms=self.now,
            lease_ttl_ms=TTL_MS,
            limits=AccountLimits(
                requests_per_minute=none_to_minus(self.model.limits["requests"]),
                tokens_per_minute=none_to_minus(self.model.limits["tokens"]),
                concurrent_requests=none_to_minus(self.model.limits["concurrent"]),
                budget_nanousd=none_to_minus(self.model.budget),
                input_tokens_per_minute=none_to_minus(self.model.limits.get("input")),
                output_tokens_per_minute=none_to_minus(self.model.limits.get("output")),
                concurrent_tokens=none_to_minus(self.model.concurrent_tokens),
                windows=windows(self.model.checks),
                period=self.model.period,
            ),
            scopes=[
                ScopeLimits(
                    name=scope.name,
                    mode=Mode(scope.mode),
                    requests_per_minute=none_to_minus(scope.limits["requests"]),
                    tokens_per_minute=none_to_minus(scope.limits["tokens"]),
                    concurrent_requests=none_to_minus(scope.limits["concurrent"]),
                    input_tokens_per_minute=none_to_minus(scope.limits.get("input")),
                    output_tokens_per_minute=none_to_minus(scope.limits.get("output")),
                    concurrent_tokens=none_to_minus(scope.concurrent_tokens),
                    windows=windows(scope.checks),
                )
                for scope in self.model.others.values()
            ],
            budget_ttl_s=1000,
            producer="p",
            renewals=renew,
            asks=[
                value
                for member, ask in named
                for value in (
                    member,
                    ask.tokens,
                    ask.nanousd,
                    ask.input,
                    ask.output,
                    ask.most,
                    tuple(list(self.model.others).index(name) + 1 for name in ask.scopes) or False,
                )
            ],
            booking=booking,
        )
        return [len(call.keys), *call.keys, *call.arguments]

    def compare(self) -> None:
        """What is stored is what the model has."""
        model = self.model
        stored = dict(self.valkey.zrange(self.keys.leases, 0, -1, withscores=True))
        assert stored == {member.encode(): lease.expiry for member, lease in model.leases.items()}
        for period in {model.period, *model.spent}:
            money = self.valkey.hgetall(self.keys.budget(period))
            assert int(money.get(b"spent", 0)) == model.spent.get(period, 0)
            assert int(money.get(b"reserved", 0)) == model.reserved(period)
        for scope in (model, *model.others.values()):
            key = self.keys.scope(scope.name)
            if scope is not model:
                assert int(self.valkey.hget(key, "running") or 0) == model.running(scope.name)
            for name, bucket in scope.buckets.items():
                if scope.limits.get(name) is not None:
                    written = self.valkey.hget(key, name)
                    assert written is not None
                    assert [int(part) for part in written.split()] == [bucket.level, bucket.at, bucket.full_at]
            assert int(self.valkey.hget(key, "held") or 0) == model.held(scope.name)
        of_scopes = {check.window for scope in (model, *model.others.values()) for check in scope.checks}
        for window in of_scopes | model.window_spent.keys():
            kept = self.valkey.hgetall(self.keys.window(window))
            assert [int(kept.get(name, 0)) for name in (b"spent", b"tokens", b"reserved", b"tokens_reserved")] == [
                model.window_spent.get(window, 0),
                model.window_tokens.get(window, 0),
                *model.window_reserved(window),
            ]


def windows(checks: Sequence[Check]) -> tuple[Window, ...]:
    """As the script is told them."""
    return tuple(
        Window(dimension=dimension, name=check.window, limit=check.limit, end_s=check.ends_ms // 1000)
        for check in checks
        for dimension in [DIMENSIONS[check.dimension]]
        if dimension is not None
    )


def in_out(used: int | tuple[int, int]) -> tuple[int, int]:
    """Input and output tokens."""
    return (0, used) if isinstance(used, int) else used


def none_to_minus(limit: int | None) -> int:
    return -1 if limit is None else limit


limit = st.one_of(st.none(), st.integers(0, 40), st.integers(1, 10**10))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=limit,
    tokens=limit,
    concurrent=st.one_of(st.none(), st.integers(0, 6)),
    budget=st.one_of(st.none(), st.integers(0, 2000), st.just(2**53 - 1)),
    has_more=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_script_and_model_decide_the_same(
    valkey: sync_redis.Redis,
    requests: int | None,
    tokens: int | None,
    concurrent: int | None,
    budget: int | None,
    has_more: bool,
    seed: int,
) -> None:
    """Any sequence of reserve, settle, resend, renew, expiry and time jumps comes out as the model says."""
    dice = random.Random(seed)
    model = Model(
        limits={"requests": requests, "tokens": tokens, "concurrent": concurrent},
        budget=budget,
        period="hour:0",
        ttl_ms=TTL_MS,
    )
    account = Account(valkey, model)
    shared = f"@group:{secrets.token_hex(8)}"
    most = tokens or 50
    for _ in range(dice.randrange(1, 25)):
        account.now += dice.choice([0, 0, 1, 7, 500, 3_000, 10_000, 10_001, 61_000, 3_600_000, -400])
        if dice.random() < 0.1:
            model.period = f"hour:{dice.randrange(3)}"
        if has_more and dice.random() < 0.4:
            draw_further_limits(model, most, dice)
        if has_more and dice.random() < 0.2:
            draw_scopes(model, shared, most, dice)
        if dice.random() < 0.05:
            model.limits["tokens"] = dice.choice([None, most, max(1, most // 2)])
        open_leases = list(account.granted)
        dice.shuffle(open_leases)
        settled = open_leases[: dice.randrange(3)]
        renewed = [member for member in open_leases[len(settled) :] if dice.random() < 0.5]
        asks = [
            (
                dice.choice([0, 1, dice.randrange(2 * most)]),
                dice.choice([0, 1, dice.randrange(900)]),
                *(dice.choice([0, 1, dice.randrange(2 * most)]) for _ in range(3)),
                tuple(name for name in model.others if dice.random() < 0.6),
                bool(open_leases) and dice.random() < 0.2,
            )
            for _ in range(dice.randrange(4))
        ]
        settlements = [
            (
                member,
                dice.choice([0, account.granted[member][1].tokens, (dice.randrange(most), dice.randrange(most))]),
                dice.randrange(900),
                dice.random() < 0.3,
            )
            for member in settled
        ]
        account.call(asks, settlements, renewed)
        if settlements and dice.random() < 0.3:
            account.call([], settlements, resend=True)
        for member in settled:
            del account.granted[member]


def draw_further_limits(model: Model, most: int, dice: random.Random) -> None:
    """Other limits, and windows of another hour or day, as if the policy or the time had changed."""
    model.limits["input"] = dice.choice([None, most, most // 2])
    model.limits["output"] = dice.choice([None, most, most // 2])
    model.concurrent_tokens = dice.choice([None, most, 3 * most])
    ends_ms = T0 + dice.randrange(100) * 60_000
    model.checks = [
        Check(dimension, f"{kind}:{dice.randrange(3)}", dice.choice([0, 1, 900, 5 * most]), ends_ms)
        for dimension, kind in ((8, "day"), (9, "hour"), (10, "day"), (11, "month"))
        if dice.random() < 0.4
    ]


def draw_scopes(model: Model, shared: str, most: int, dice: random.Random) -> None:
    """A key's limits, a group's that are shared, one that only tells what is used, one that only tells what it would
    refuse: they come, and go, and change."""
    for name, mode in (("key:ci", 0), (shared, 0), ("~soft:tenant:", 1), (f"@~audit:{shared}", 2)):
        if dice.random() < 0.3:
            continue
        scope = model.others.setdefault(name, Scope(limits={}, name=name, mode=mode))
        scope.limits = {
            "requests": dice.choice([None, 3, 40]),
            "tokens": dice.choice([None, most, min(PER_MINUTE_MAX, 3 * most)]),
            "concurrent": dice.choice([None, 1, 4]),
            "input": dice.choice([None, most]),
            "output": dice.choice([None, most]),
        }
        scope.concurrent_tokens = dice.choice([None, 3 * most])
        ends_ms = T0 + dice.randrange(100) * 60_000
        scope.checks = [
            Check(dimension, f"{name}:{kind}:{dice.randrange(2)}", dice.choice([1, 900, 5 * most]), ends_ms)
            for dimension, kind in ((8, "day"), (9, "hour"))
            if dice.random() < 0.5
        ]


def account_with(valkey: sync_redis.Redis, **limits: int | None) -> Account:
    budget = limits.pop("budget", None)
    known = {"requests": None, "tokens": None, "concurrent": None} | limits
    return Account(valkey, Model(limits=known, budget=budget, period="hour:0", ttl_ms=TTL_MS))


@pytest.mark.parametrize(
    ("full", "dimension"),
    [({"requests": 1}, 1), ({"tokens": 10}, 2), ({"concurrent": 1}, 3), ({"budget": 10}, 4)],
)
def test_a_refusal_takes_nothing(valkey: sync_redis.Redis, full: dict[str, int], dimension: int) -> None:
    """Whichever dimension refuses, the account is afterwards as it was before, in all dimensions."""
    account = account_with(valkey, **({"requests": 50, "tokens": 500, "concurrent": 50, "budget": 500} | full))
    assert account.call([(10, 10)]).verdicts[0].dimension == 0
    before = copy.deepcopy(account.model)
    assert [verdict.dimension for verdict in account.call([(10, 10)] * 5).verdicts] == [dimension] * 5
    assert account.model == before
    account.compare()


def test_the_dimension_that_takes_longest_is_named(valkey: sync_redis.Redis) -> None:
    """A request that two limits refuse hears of the one it has to wait longer for."""
    account = account_with(valkey, requests=60, tokens=60)
    account.call([(60, 0)])
    verdict = account.call([(30, 0)]).verdicts[0]
    assert (verdict.dimension, verdict.retry_after_ms, verdict.available) == (2, 30_000, 0)


def test_tokens_come_back_to_the_minute_they_were_taken_from(valkey: sync_redis.Redis) -> None:
    """What a long request did not use is no extra allowance once the bucket has been full again without it."""
    account = account_with(valkey, tokens=600)
    account.call([(600, 0)])
    first = next(iter(account.granted))
    account.now += 60_000
    account.call([(600, 0)], renew=[first])
    second = next(member for member in account.granted if member != first)
    account.call(settle=[(first, 0, 0, False)])
    assert account.model.remaining("tokens") == 0
    account.call(settle=[(second, 100, 0, False)])
    assert account.model.remaining("tokens") == 500


def test_a_request_that_used_more_than_it_reserved_leaves_a_debt(valkey: sync_redis.Redis) -> None:
    """The bucket goes below zero, and the next request waits until it has paid that back too."""
    account = account_with(valkey, tokens=600)
    account.call([(600, 0)])
    account.call(settle=[(next(iter(account.granted)), 900, 0, False)])
    verdict = account.call([(10, 0)]).verdicts[0]
    assert (verdict.dimension, verdict.retry_after_ms, verdict.tokens_remaining) == (2, 31_000, 0)
    assert verdict.tokens_reset_ms == 90_000


def test_a_request_that_never_ran_gives_its_place_back(valkey: sync_redis.Redis) -> None:
    """A request refused after it was admitted counts neither against requests/min nor against tokens/min."""
    account = account_with(valkey, requests=1, tokens=10)
    account.call([(10, 0)])
    account.call(settle=[(next(iter(account.granted)), 0, 0, True)])
    assert account.call([(10, 0)]).verdicts[0].dimension == 0


def test_a_dead_workers_leases_free_their_place_and_money(valkey: sync_redis.Redis) -> None:
    """A lease that nobody renews for its lifetime counts no longer, and what it reserved can be reserved again."""
    account = account_with(valkey, concurrent=1, budget=100)
    account.call([(0, 100)])
    account.now += TTL_MS - 1
    assert account.call([(0, 100)]).verdicts[0].dimension == 4
    account.now += 1
    assert account.call([(0, 100)]).verdicts[0].dimension == 0


def test_an_expired_leases_settlement_is_still_booked(valkey: sync_redis.Redis) -> None:
    """A worker that was away longer than its lease books its cost all the same, once, in the lease's own period."""
    account = account_with(valkey, budget=100)
    account.call([(0, 100)])
    lease = next(iter(account.granted))
    account.now += TTL_MS
    account.model.period = "hour:1"
    account.call()
    assert account.model.leases == {}
    account.call(settle=[(lease, 0, 70, False)])
    account.call(settle=[(lease, 0, 70, False)], resend=True)
    assert account.valkey.hgetall(account.keys.budget("hour:0")) == {b"spent": b"70", b"reserved": b"0"}


def test_a_lease_forgotten_by_mistake_is_held_again_when_renewed(valkey: sync_redis.Redis) -> None:
    """A worker cut off from the store for longer than a lease's life gets its leases and its money back."""
    account = account_with(valkey, budget=100)
    account.call([(0, 60)])
    lease = next(iter(account.granted))
    account.now += TTL_MS
    account.call()
    account.call(renew=[lease])
    assert account.model.leases == {lease: Lease(account.now + TTL_MS, 60, "hour:0")}
    assert account.call([(0, 60)]).verdicts[0].dimension == 4


def test_money_that_is_only_reserved_is_told_from_money_that_is_spent(valkey: sync_redis.Redis) -> None:
    """Reserved money may come back soon, spent money not before the period ends."""
    account = account_with(valkey, budget=100)
    account.call([(0, 60)])
    reserved = account.call([(0, 60)]).verdicts[0]
    assert (reserved.dimension, reserved.retry_after_ms, reserved.available) == (4, 1000, 40)
    assert (reserved.spent_nanousd, reserved.reserved_nanousd) == (0, 60)
    account.call(settle=[(next(iter(account.granted)), 0, 50, False)])
    spent = account.call([(0, 60)]).verdicts[0]
    assert (spent.dimension, spent.retry_after_ms, spent.available) == (4, -1, 50)
    assert (spent.spent_nanousd, spent.reserved_nanousd) == (50, 0)


def test_a_clock_that_goes_back_gives_nothing(valkey: sync_redis.Redis) -> None:
    """A gateway whose clock is behind neither refills twice nor runs the account's time backwards."""
    account = account_with(valkey, requests=60)
    account.call([(0, 0)] * 60)
    account.now -= 30_000
    assert account.call([(0, 0)]).verdicts[0].dimension == 1
    account.now += 31_000
    assert [verdict.dimension for verdict in account.call([(0, 0)] * 2).verdicts] == [0, 1]


def test_sums_beyond_what_a_double_holds_stay_exact(valkey: sync_redis.Redis) -> None:
    """Usage sums are 64-bit integers, though Lua's numbers are doubles."""
    account = account_with(valkey)
    script = load_script("account").text.decode()
    sha1 = valkey.script_load(script)
    for first in (1, 2):
        booking = Booking(
            first=first,
            skips=False,
            producer_ttl_s=60,
            events_after_ms=0,
            events=[b"{}"],
            settlements=[],
            usage=[("1d", 0, {"tiny|k|output": 2**53 + 1})],
        )
        valkey.evalsha(sha1, *account.arguments([], [], booking))
    assert valkey.hget(account.keys.usage("1d", 0), "tiny|k|output") == str(2**54 + 2).encode()
