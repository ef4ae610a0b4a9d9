"""What gateways that count differently lose or grant twice: places, money, minutes. On a real Valkey."""

from __future__ import annotations

import random
from decimal import Decimal

from redis.asyncio import Redis

from gateway.admission import Ask, Denial, Grant
from gateway.metering import Ledger
from gateway.policy import LimitsSpec, TenantSpec

from .ledgers import ManualClock, event, leases, money, tenant


async def test_a_lost_place_is_free_after_its_term_though_the_tenant_goes_on(
    redis: Redis, ledger: Ledger, clock: ManualClock
) -> None:
    """Each lease has an end of its own: other requests of the tenant do not keep a lost one alive."""
    acme = tenant(concurrent=2)
    lost = await ledger.reserve(acme, Ask("lost", tokens=1, nanousd=0))
    assert isinstance(lost, Grant)
    for second in range(11):
        grant = await ledger.reserve(acme, Ask(f"r{second}", tokens=1, nanousd=0))
        assert isinstance(grant, Grant)
        await ledger.settle(event(f"r{second}"), grant.lease)
        clock.advance_s(1)
    both = [await ledger.reserve(acme, Ask(f"both {number}", tokens=1, nanousd=0)) for number in range(2)]
    assert all(isinstance(decision, Grant) for decision in both)
    assert await leases(redis) == 2


async def test_when_all_has_ended_only_what_was_spent_is_missing_from_a_budget(
    redis: Redis, ledger: Ledger, clock: ManualClock
) -> None:
    """However requests end: answered, refused later, or lost with their worker."""
    source, spent = random.Random(1), 0
    acme = tenant(budget_usd="0.001")
    for number in range(80):
        decision = await ledger.reserve(acme, Ask(f"r{number}", tokens=1, nanousd=source.randrange(1, 100_000)))
        if isinstance(decision, Grant):
            match source.randrange(3):
                case 0:
                    cost = source.randrange(1_000)
                    spent += cost
                    await ledger.settle(event(f"r{number}", cost_nanousd=cost), decision.lease)
                case 1:
                    await ledger.settle(event(f"r{number}", status="refused"), decision.lease)
        clock.advance_s(source.random() * 2)
    clock.advance_s(11)

    left = 1_000_000 - spent
    assert isinstance(await ledger.reserve(acme, Ask("too much", tokens=1, nanousd=left + 1)), Denial)
    assert isinstance(await ledger.reserve(acme, Ask("all of it", tokens=1, nanousd=left)), Grant)
    assert await money(redis) == (spent, left)


async def test_a_minute_has_no_edge_at_which_twice_as_much_passes(ledger: Ledger, clock: ManualClock) -> None:
    """Sixty a minute come back one a second, wherever in the minute of the clock they are used."""
    acme = tenant(requests=60)
    clock.now_ms -= clock.now_ms % 60_000
    clock.advance_s(59.9)

    async def passed() -> int:
        decisions = [await ledger.reserve(acme, Ask(f"{clock.now_ms} {number}", 0, 0)) for number in range(70)]
        return sum(isinstance(decision, Grant) for decision in decisions)

    assert await passed() == 60
    clock.advance_s(0.2)
    assert await passed() == 0
    clock.advance_s(0.8)
    assert await passed() == 1


async def test_a_budget_is_no_rate(ledger: Ledger, clock: ManualClock) -> None:
    """What is spent is not back before its period ends, however long that takes."""
    acme = TenantSpec(name="acme", limits=LimitsSpec(usd_per_month=Decimal("0.000001")))
    grant = await ledger.reserve(acme, Ask("all of it", tokens=1, nanousd=1_000))
    assert isinstance(grant, Grant)
    await ledger.settle(event("all of it", cost_nanousd=1_000), grant.lease)
    clock.advance_s(9 * 86_400)
    assert isinstance(await ledger.reserve(acme, Ask("a part", tokens=1, nanousd=1)), Denial)
    clock.advance_s(86_400)
    assert isinstance(await ledger.reserve(acme, Ask("in October", tokens=1, nanousd=1_000)), Grant)
