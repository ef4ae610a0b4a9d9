"""`admission.Accounts`, by which a replay decides, against the script on a real Valkey, through the ledger."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from pathlib import Path

from redis.asyncio import Redis

from gateway.admission import Accounts, Ask, Denial, Held, Lease, Refusing
from gateway.metering import Ledger, LedgerSettings
from gateway.policy import (
    FleetSpec,
    GroupSpec,
    KeySpec,
    LimitsSpec,
    ModelSpec,
    Policies,
    ReplicaSpec,
    RulesSpec,
    ScopeLimitsSpec,
    TenantSpec,
)

from .ledgers import ManualClock, event

SCHEDULES = 16
ASKS = 40
HOURS_MS = 3_600_000
PASSES_MS = [0, 0, 1, 7, 500, 3_000, 20_000, 61_000, HOURS_MS, 11 * HOURS_MS, 500 * HOURS_MS]


async def test_accounts_decide_what_the_script_decides(redis: Redis, tmp_path: Path) -> None:
    """Whatever the limits, of whatever scope and mode, and whatever was asked, used and given back before: the same are
    refused by the same limit of the same scope, and the same audited limits would have refused. Hours, days and months
    end meanwhile."""
    clock, seen, scopes, audited = ManualClock(), Counter[str](), Counter[str](), Counter[str]()
    settings = LedgerSettings(lease_ttl_s=10**9)  # time jumps, but nobody dies
    async with Ledger(redis, tmp_path, settings=settings, now_ms=clock) as ledger:
        for seed in range(SCHEDULES):
            await compare(ledger, clock, random.Random(seed), seed, seen=seen, scopes=scopes, audited=audited)
    assert len(seen) == 12, seen
    assert scopes.keys() == {"", "key", "group", "model", "the fleet"}
    assert sum(audited.values()) > 20


async def compare(
    ledger: Ledger,
    clock: ManualClock,
    dice: random.Random,
    seed: int,
    *,
    seen: Counter[str],
    scopes: Counter[str],
    audited: Counter[str],
) -> None:
    policies = drawn(dice, seed)
    mirror = Accounts()
    running: list[tuple[Lease, Held]] = []
    for number in range(ASKS):
        clock.now_ms += dice.choice(PASSES_MS)
        while running and dice.random() < 0.4:
            lease, held = running.pop(dice.randrange(len(running)))
            used = [dice.choice([0, most, dice.randrange(most + 1)]) for most in (200, 300)]
            cost, ran = dice.randrange(600), dice.random() < 0.8
            ended = event(
                "r",
                of=lease.tenant,
                status="ok" if ran else "refused",
                input_tokens=used[0],
                output_tokens=used[1],
                cost_nanousd=cost,
                ended_ms=clock.now_ms,
            )
            await ledger.settle(ended, lease)
            mirror.settle(held, input_tokens=used[0], output_tokens=used[1], nanousd=cost, ran=ran, now_ms=clock.now_ms)
        for name in policies.tenants:
            await ledger.booked(name)
        tenant = dice.choice(list(policies.tenants.values()))
        ask, met = asked(dice, f"r{number}"), policies.scopes_of(tenant, dice.choice(["ci", "web"]), f"m{seed}")
        decision = await ledger.reserve(tenant, ask, met)
        mirrored = mirror.ask(tenant, met.others, ask, clock.now_ms)
        if isinstance(decision, Denial):
            assert mirrored == Refusing(decision.dimension, decision.scope), (seed, number, decision)
            seen[decision.dimension] += 1
            scopes[decision.scope if decision.scope == "the fleet" else decision.scope.partition(" ")[0]] += 1
        else:
            assert isinstance(mirrored, Held), (seed, number, mirrored)
            told = [(note.dimension, note.scope) for note in decision.notes if note.percent is None]
            assert [(one.dimension, one.scope) for one in mirrored.audited] == told, (seed, number)
            running.append((decision.lease, mirrored))
            seen["granted"] += 1
            audited.update(dimension for dimension, _ in told)


def drawn(dice: random.Random, seed: int) -> Policies:
    """Some of all limits of all scopes, each tight enough to refuse now and then. Names are of this schedule alone."""

    def some(low: int, high: int) -> int | None:
        return dice.randrange(low, high) if dice.random() < chance else None

    def usd(low: int, high: int) -> Decimal | None:
        nanousd = some(low, high)
        return None if nanousd is None else Decimal(nanousd) / 10**9

    def rules() -> dict[str, int | Decimal | None]:
        return {
            "requests_per_minute": some(0, 6),
            "tokens_per_minute": some(0, 2000),
            "input_tokens_per_minute": some(0, 1000),
            "output_tokens_per_minute": some(0, 1500),
            "tokens_per_day": some(300, 4000),
            "concurrent_requests": some(1, 3),
            "concurrent_tokens": some(300, 2000),
            "usd_per_hour": usd(300, 2000),
            "usd_per_day": usd(300, 4000),
            "usd_per_month": usd(300, 9000),
        }

    def of_scope() -> ScopeLimitsSpec:
        modes = {mode: RulesSpec(**rules()) for mode in ("soft", "audit")}  # type: ignore[arg-type]
        return ScopeLimitsSpec(**rules(), **modes)  # type: ignore[arg-type]

    tenants = {}
    for name in (f"acme-{seed}", f"rival-{seed}"):
        chance = 0.25
        limits = LimitsSpec(
            **rules(),  # type: ignore[arg-type]
            budget_usd=usd(300, 5000),
            budget_period=dice.choice(["hour", "day", "month"]),
        )
        chance = 0.05
        keys = (KeySpec(id="ci", sha256="0" * 64, limits=of_scope()), KeySpec(id="web", sha256="1" * 64))
        tenants[name] = TenantSpec(name=name, keys=keys, limits=limits, time_zone="Europe/Berlin", group=f"g{seed}")
    model = ModelSpec(name=f"m{seed}", replicas=(ReplicaSpec(url="http://m"),), limits=of_scope() if seed % 2 else None)
    group = GroupSpec(name=f"g{seed}", limits=of_scope(), time_zone="America/New_York")
    chance = 0.4
    fleet = of_scope() if seed == 0 else ScopeLimitsSpec()  # there is one fleet, which keeps what it has taken
    return Policies(
        models={model.name: model},
        tenants=tenants,
        classes={},
        groups={group.name: group},
        fleet=FleetSpec(limits=fleet),
        sha256=f"{seed:064}",
    )


def asked(dice: random.Random, request: str) -> Ask:
    input_tokens, output_tokens = dice.randrange(200), dice.randrange(300)
    return Ask(
        request,
        tokens=input_tokens + output_tokens,
        nanousd=dice.choice([0, 1, dice.randrange(900)]),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        most_tokens=input_tokens + output_tokens + dice.randrange(200),
    )
