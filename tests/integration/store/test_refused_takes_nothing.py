"""Nothing is taken for a request that is refused, nor from a limit that only would have refused it."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from gateway.admission import Denial, Grant
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

from .ledgers import ManualClock
from .test_account_mirror import PASSES_MS, asked

SCHEDULES = 12
ASKS = 10


async def stored(redis: Redis) -> dict[tuple[str, str], Any]:
    """Everything, by key and field."""
    keys = [key async for key in redis.scan_iter("mtok:*", count=1000)]
    kinds = redis.pipeline(transaction=False)
    for key in keys:
        kinds.type(key)
    values = redis.pipeline(transaction=False)
    for key, kind in zip(keys, of_kinds := await kinds.execute(), strict=True):
        if kind == b"hash":
            values.hgetall(key)
        else:
            values.zrange(key, 0, -1, withscores=True)
    found: dict[tuple[str, str], Any] = {}
    for key, kind, value in zip(keys, of_kinds, await values.execute(), strict=True):
        fields = value.items() if kind == b"hash" else [(b"", value)]
        found |= {(key.decode(), field.decode()): of_field for field, of_field in fields}
    return found


async def test_a_refused_or_audited_request_leaves_every_counter_unchanged(redis: Redis, tmp_path: Path) -> None:
    """Whatever the limits of whatever scope and mode. Each ask is made twice at the same time, as the first of a scope
    writes down that its buckets are full. Where both are refused nothing may differ between; where both are served but
    for the same audited limit, nothing of that one."""
    clock, seen = ManualClock(), Counter[str]()
    settings = LedgerSettings(lease_ttl_s=10**9, lease_renew_s=10**6)  # nobody dies, and nothing else is written
    async with Ledger(redis, tmp_path, settings=settings, now_ms=clock) as ledger:
        for seed in range(SCHEDULES):
            dice = random.Random(seed)
            policies = drawn(dice, seed)
            await redis.flushall()
            for number in range(ASKS):
                clock.now_ms += dice.choice(PASSES_MS)
                tenant = dice.choice(list(policies.tenants.values()))
                scopes = policies.scopes_of(tenant, dice.choice(["ci", "web"]), f"m{seed}")
                ask = asked(dice, f"r{number}")
                first = await ledger.reserve(tenant, ask, scopes)
                before = await stored(redis)
                second = await ledger.reserve(tenant, ask, scopes)
                after = await stored(redis)
                if isinstance(second, Denial) and isinstance(first, Denial):
                    assert (after, second) == (before, first), (seed, number)
                    seen[f"refused by {second.scope.partition(' ')[0]}"] += 1
                for note in set(audited(first)) & set(audited(second)):
                    of_it = f"~audit:{note.kind}:{'' if note.kind in ('tenant', 'fleet') else note.of}"
                    assert of(after, tenant.name, of_it) == of(before, tenant.name, of_it), (seed, number, note)
                    seen[f"audited of {note.kind}"] += 1
    assert seen.keys() >= {f"refused by {scope}" for scope in ("", "key", "group", "model", "the")}, seen
    assert seen.keys() >= {f"audited of {scope}" for scope in ("tenant", "key", "group", "model", "fleet")}, seen


def audited(decision: Grant | Denial) -> list[Any]:
    if isinstance(decision, Denial):
        return []
    return [note for note in decision.notes if note.percent is None]


def of(everything: dict[tuple[str, str], Any], tenant: str, scope: str) -> dict[tuple[str, str], Any]:
    """What is kept for one scope: of its tenant, or of all."""
    return {
        (key, field): value
        for (key, field), value in everything.items()
        if scope in key and (f"{{{tenant}}}" in key or "@" in key)
    }


USUAL = {
    "requests_per_minute": 3,
    "tokens_per_minute": 900,
    "input_tokens_per_minute": 400,
    "output_tokens_per_minute": 600,
    "tokens_per_day": 1200,
    "concurrent_requests": 2,
    "concurrent_tokens": 900,
    "usd_per_hour": Decimal("0.0000012"),
    "usd_per_day": Decimal("0.0000015"),
    "usd_per_month": Decimal("0.000002"),
}
"""Reached after two or three asks."""


def drawn(dice: random.Random, seed: int) -> Policies:
    """Some limits of every scope; those that refuse are wider than those that only tell."""

    def some(wider: int) -> dict[str, Any]:
        chosen = dice.sample(sorted(USUAL), dice.randrange(1, 4))
        return {name: USUAL[name] * dice.randrange(1, 3) * wider for name in chosen}

    def of_scope(wider: int) -> dict[str, Any]:
        return some(wider) | {"soft": RulesSpec(**some(1)), "audit": RulesSpec(**some(1))}

    def scope(wider: int) -> ScopeLimitsSpec:
        return ScopeLimitsSpec(**of_scope(wider))

    model, group = f"m{seed}", f"g{seed}"
    tenants = {
        name: TenantSpec(
            name=name,
            group=group,
            keys=(KeySpec(id="ci", sha256="0" * 64, limits=scope(1)), KeySpec(id="web", sha256="1" * 64)),
            limits=LimitsSpec(**of_scope(2), budget_usd=Decimal("0.00001")),
        )
        for name in (f"acme-{seed}", f"rival-{seed}")
    }
    return Policies(
        models={model: ModelSpec(name=model, replicas=(ReplicaSpec(url="http://m"),), limits=scope(4))},
        tenants=tenants,
        classes={},
        groups={group: GroupSpec(name=group, limits=scope(4))},
        fleet=FleetSpec(limits=scope(3)),
        sha256=f"{seed:064}",
    )
