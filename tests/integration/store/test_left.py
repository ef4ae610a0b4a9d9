"""What an operator is told of limits is what the account decides: every answer is held against the script's own."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any, get_args

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.admission import Ask, Denial, Dimension, Grant, denial
from gateway.admission._left import ASKED
from gateway.metering import Ledger
from gateway.policy import (
    FleetSpec,
    GroupSpec,
    KeySpec,
    LimitsSpec,
    ModelSpec,
    Policies,
    RulesSpec,
    ScopeLimitsSpec,
    TenantSpec,
)
from gateway.policy._limits import RULE_NAMES
from gateway.store import TenantKeys
from gateway.usage import read_left, whole_left

from .ledgers import ManualClock, event

OF_TENANTS = tuple(get_args(Dimension))
MONEY = tuple(name for name in OF_TENANTS if "usd" in name)


def test_every_dimension_is_known() -> None:
    assert set(ASKED) == set(OF_TENANTS)


def some(random_: random.Random, names: tuple[str, ...] = RULE_NAMES) -> dict[str, Any]:
    """One or two of these limits, each for two to six requests, and now and then for none."""

    def limit(name: str) -> int:
        a_request = 1 if "requests" in name else 12 if name in ("tokens_per_day", "concurrent_tokens") else 5
        return 0 if random_.random() < 0.02 else random_.randint(2 * a_request, 5 * a_request)

    numbers = {name: limit(name) for name in random_.sample(names, random_.randint(1, 2))}
    return {name: Decimal(n).scaleb(-9) if name in MONEY else n for name, n in numbers.items()}


def some_of_a_scope(random_: random.Random) -> ScopeLimitsSpec:
    """Mostly limits that refuse; some that only tell."""
    modes = {mode: RulesSpec(**some(random_)) for mode in ("soft", "audit") if random_.random() < 0.3}
    return ScopeLimitsSpec(**some(random_) if random_.random() < 0.6 else {}, **modes)


def some_policies(random_: random.Random) -> Policies:
    key = KeySpec(id="ci", sha256="0" * 64, limits=some_of_a_scope(random_))
    limits = LimitsSpec(**some(random_, OF_TENANTS), budget_period="hour")
    return Policies(
        models={"tiny": ModelSpec(name="tiny", replicas=(), limits=some_of_a_scope(random_))},
        tenants={"acme": TenantSpec(name="acme", group="all", keys=(key,), limits=limits)},
        classes={},
        groups={"all": GroupSpec(name="all", limits=some_of_a_scope(random_))},
        fleet=FleetSpec(limits=some_of_a_scope(random_)),
        sha256="0" * 64,
    )


@pytest.mark.parametrize("seed", range(24))
async def test_it_is_told_as_the_account_decides(ledger: Ledger, redis: Redis, clock: ManualClock, seed: int) -> None:
    """Requests come, end having used more or less than they asked for, and time passes, over the ends of hours too.
    Before each one the limits of all its scopes are read: what would refuse it, with all its numbers, is what does."""
    random_ = random.Random(seed)
    policies = some_policies(random_)
    tenant = policies.tenants["acme"]
    running: list[Grant] = []
    for number in range(30):
        likely, most = random_.randint(0, 8), random_.randint(8, 16)
        ask = Ask(
            f"r{number}",
            tokens=likely,
            nanousd=random_.randint(0, 12),
            input_tokens=likely // 2,
            output_tokens=likely - likely // 2,
            most_tokens=most,
        )
        scopes = policies.scopes_of(tenant, random_.choice(("ci", "other")), "tiny")
        left = await read_left(redis, "acme", tenant.limits, clock.now_ms, scopes=scopes.others)
        told = denial(left, ask, clock.now_ms)
        decision = await ledger.reserve(tenant, ask, scopes)
        if isinstance(decision, Grant):
            assert told is None
            running.append(decision)
        else:
            decision = replace(decision, notes=())
            if told is not None and not told.period:  # limits that do not begin anew have no period to tell
                decision = replace(decision, period="", resets_at_s=0)
            assert told == decision
        while running and random_.random() < 0.3:
            used = {"input_tokens": random_.randint(0, 6), "output_tokens": random_.randint(0, 9)}
            lease = running.pop(random_.randrange(len(running))).lease
            await ledger.settle(event("r", cost_nanousd=min(lease.nanousd, random_.randint(0, 12)), **used), lease)
        clock.advance_s(random_.choice((0, 0.3, 2, 4)))
        ledger.renew()
        if random_.random() < 0.05:
            while running:
                await ledger.settle(event("r"), running.pop().lease)
            clock.advance_s(1800)


async def test_without_a_redis_every_limit_is_whole(ledger: Ledger, redis: Redis, clock: ManualClock) -> None:
    """And reading takes nothing: the account is as it was."""
    limits = LimitsSpec(tokens_per_minute=100, concurrent_requests=2, usd_per_day=Decimal("0.00000001"))
    tenant = TenantSpec(name="acme", limits=limits)
    assert isinstance(await ledger.reserve(tenant, Ask("r", tokens=60, nanousd=7)), Grant)
    before = {key: await redis.dump(key) for key in sorted(await redis.keys(f"{TenantKeys('acme').limits[:12]}*"))}
    read = await read_left(redis, "acme", limits, clock.now_ms)
    whole = whole_left("acme", limits, clock.now_ms)
    assert [(one.dimension, one.remaining) for one in read] == [
        ("tokens_per_minute", 40),
        ("concurrent_requests", 1),
        ("usd_per_day", 3),
    ]
    assert [one.remaining for one in whole] == [100, 2, 10]
    assert {key: await redis.dump(key) for key in before} == before
    assert isinstance(await ledger.reserve(tenant, Ask("s", tokens=41, nanousd=0)), Denial)
