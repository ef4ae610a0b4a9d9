"""The ledger on a real Valkey: reserve, settle, record, renew."""

from __future__ import annotations

import asyncio
from pathlib import Path

from redis.asyncio import Redis

from gateway.admission import Ask, Denial, Grant
from gateway.metering import Dimensions, Ledger, LedgerSettings, sum_field
from gateway.policy import TenantSpec
from gateway.store import TenantKeys, client

from .ledgers import T0_MS, ManualClock, PatientLedger, event, leases, money, stream, tenant


def summed(metric: str, status: str = "ok") -> bytes:
    """The bucket field of an `event`."""
    return sum_field(Dimensions("tiny", "ci", "chat", status), metric).encode()


async def granted(ledger: Ledger, of: TenantSpec, ask: Ask) -> Grant:
    decision = await ledger.reserve(of, ask)
    assert isinstance(decision, Grant)
    return decision


async def test_a_request_is_reserved_and_settled_with_what_it_used(ledger: Ledger, redis: Redis) -> None:
    """Settling frees the lease, gives unused tokens back, books the real cost and writes the event and the sums."""
    acme = tenant(requests=60, tokens=6000, concurrent=2, budget_usd="1")
    grant = await granted(ledger, acme, Ask("r1", 1000, 500_000_000))
    assert await money(redis) == (0, 500_000_000)
    assert await leases(redis) == 1
    done = event("r1", input_tokens=100, cached_tokens=40, output_tokens=50, cost_nanousd=7)
    await ledger.settle(done, grant.lease)
    assert await money(redis) == (7, 0)
    assert await leases(redis) == 0
    assert await stream(redis) == [done]
    after = await granted(ledger, acme, Ask("r2", 0, 0))
    assert after.standing.tokens_remaining == 5850
    assert after.standing.requests_remaining == 58
    for size, start in (("1m", T0_MS // 60_000 * 60), ("1h", T0_MS // 3_600_000 * 3600), ("1d", 1_789_948_800)):
        sums = await redis.hgetall(TenantKeys("acme").usage(size, start))  # type: ignore[arg-type]
        assert sums == {
            summed("requests"): b"1",
            summed("input"): b"100",
            summed("cached"): b"40",
            summed("output"): b"50",
            summed("cost_nanousd"): b"7",
        }


async def test_buckets_are_kept_as_long_as_promised(ledger: Ledger, redis: Redis) -> None:
    """Minutes are kept for 7 days, hours for 120, days for ever."""
    await ledger.record(event("r1", status="refused", code="rate_limit_exceeded"))
    keys = TenantKeys("acme")
    assert 604_000 < await redis.ttl(keys.usage("1m", T0_MS // 60_000 * 60)) <= 604_800
    assert 10_367_000 < await redis.ttl(keys.usage("1h", T0_MS // 3_600_000 * 3600)) <= 10_368_000
    assert await redis.ttl(keys.usage("1d", 1_789_948_800)) == -1


async def test_a_refused_request_is_recorded_without_tokens(ledger: Ledger, redis: Redis) -> None:
    """Refusals are counted by code, and join the tenant's stream."""
    refused = event("r1", status="refused", code="insufficient_quota")
    await asyncio.gather(*(ledger.record(refused) for _ in range(3)))
    assert await stream(redis) == [refused] * 3
    sums = await redis.hgetall(TenantKeys("acme").usage("1d", 1_789_948_800))
    assert sums == {summed("refused:insufficient_quota", "refused"): b"3"}


async def test_settling_twice_books_once(ledger: Ledger, redis: Redis) -> None:
    """The second settlement of a lease changes nothing, at the same time or later."""
    grant = await granted(ledger, tenant(), Ask("r1", 10, 100))
    done = event("r1", cost_nanousd=5)
    await asyncio.gather(ledger.settle(done, grant.lease), ledger.settle(done, grant.lease))
    await ledger.settle(done, grant.lease)
    assert await money(redis) == (5, 0)
    assert await stream(redis) == [done]


async def test_one_request_id_twice_is_two_leases(ledger: Ledger, redis: Redis) -> None:
    """Clients choose request ids; two running requests with the same one hold two places and two reservations."""
    acme = tenant(concurrent=2, budget_usd="1")
    first, second = [await granted(ledger, acme, Ask("same", 0, 100)) for _ in range(2)]
    assert isinstance(await ledger.reserve(acme, Ask("same", 0, 100)), Denial)
    await ledger.settle(event("same", cost_nanousd=1), first.lease)
    await ledger.settle(event("same", cost_nanousd=2), second.lease)
    assert await money(redis) == (3, 0)


async def test_a_request_refused_after_its_reservation_gives_all_of_it_back(ledger: Ledger, redis: Redis) -> None:
    """A request that found no slot in the queue costs neither a request nor a token of the minute's."""
    acme = tenant(requests=1, tokens=10, concurrent=1, budget_usd="1")
    grant = await granted(ledger, acme, Ask("r1", 10, 1_000_000_000))
    await ledger.settle(event("r1", status="refused", code="queue_full"), grant.lease)
    assert await money(redis) == (0, 0)
    assert isinstance(await ledger.reserve(acme, Ask("r2", 10, 1_000_000_000)), Grant)


async def test_a_cancelled_reservation_is_given_back(ledger: Ledger, redis: Redis) -> None:
    """A client that leaves while its request asks, or just when it is granted, holds nothing."""
    acme = tenant(requests=1, concurrent=1, budget_usd="1")
    for turns in range(1, 12):  # cancelled at every stage of the trip
        asking = asyncio.ensure_future(ledger.reserve(acme, Ask("r", 0, 1_000_000_000)))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns > 6:
            await asyncio.wait([asking], timeout=0.05 if turns % 2 else 0)
        asking.cancel()
        outcome = (await asyncio.gather(asking, return_exceptions=True))[0]
        if isinstance(outcome, Grant):
            await ledger.settle(event("r", status="refused", code="client_gone"), outcome.lease)
        again = await granted(ledger, acme, Ask("again", 0, 1_000_000_000))
        await ledger.settle(event("again", status="refused", code="test"), again.lease)
    assert ledger.statistics().leases == 0
    assert await leases(redis) == 0


async def test_a_renewed_lease_outlives_its_first_ten_seconds(ledger: Ledger, redis: Redis, clock: ManualClock) -> None:
    """A request that runs longer than a lease's life keeps its place as long as its worker renews it."""
    acme = tenant(concurrent=1)
    grant = await granted(ledger, acme, Ask("long", 0, 0))
    for _ in range(3):
        clock.advance_s(8)
        ledger.renew()
        assert isinstance(await ledger.reserve(acme, Ask("r", 0, 0)), Denial)
    clock.advance_s(11)
    assert isinstance(await ledger.reserve(acme, Ask("r", 0, 0)), Grant)
    await ledger.settle(event("long"), grant.lease)


async def test_a_settled_lease_is_not_renewed(ledger: Ledger, redis: Redis) -> None:
    """A renewal that was under way when the request ended does not bring its lease back."""
    acme = tenant(concurrent=1)
    for _ in range(20):
        grant = await granted(ledger, acme, Ask("r", 0, 0))
        settling = asyncio.ensure_future(ledger.settle(event("r"), grant.lease))
        for _ in range(3):
            ledger.renew()
            await asyncio.sleep(0)
        await settling
        ledger.renew()
        assert await leases(redis) == 0


async def test_leases_are_renewed_by_themselves(redis: Redis, tmp_path: Path, clock: ManualClock) -> None:
    """Inside `async with` a worker's leases are renewed every `lease_renew_s`."""
    settings = LedgerSettings(lease_ttl_s=0.06, lease_renew_s=0.02)
    async with Ledger(redis, tmp_path, settings=settings, now_ms=clock) as ledger:
        await granted(ledger, tenant(), Ask("r", 0, 0))
        [(_, expiry)] = await redis.zrange(TenantKeys("acme").leases, 0, -1, withscores=True)
        clock.advance_s(0.05)
        async with asyncio.timeout(5):
            while (renewed := (await redis.zrange(TenantKeys("acme").leases, 0, -1, withscores=True))[0][1]) == expiry:
                await asyncio.sleep(0.005)
        assert renewed == expiry + 50


async def test_500_concurrent_requests_never_overrun_a_budget(ledger: Ledger, redis: Redis, clock: ManualClock) -> None:
    """Of 500 requests that reserve 10 cents of a 5-dollar budget at once, 50 run; when they cost less, more run."""
    acme = tenant(budget_usd="5")
    asks = [Ask(f"r{i}", 0, 100_000_000) for i in range(500)]
    decisions = await asyncio.gather(*(ledger.reserve(acme, ask) for ask in asks))
    grants = [decision for decision in decisions if isinstance(decision, Grant)]
    assert len(grants) == 50
    assert await money(redis) == (0, 5_000_000_000)
    refusals = [decision for decision in decisions if isinstance(decision, Denial)]
    assert {(denial.dimension, denial.retry_after_ms, denial.remaining) for denial in refusals} == {
        ("budget_usd", 1000, 0)
    }
    await asyncio.gather(*(ledger.settle(event("r", cost_nanousd=40_000_000), grant.lease) for grant in grants))
    assert await money(redis) == (2_000_000_000, 0)
    decisions = await asyncio.gather(*(ledger.reserve(acme, ask) for ask in asks))
    assert sum(isinstance(decision, Grant) for decision in decisions) == 30


async def test_two_gateways_share_limits_exactly(
    redis: Redis, valkey_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    """However requests are spread over two ledgers, they take together what one may take."""
    acme = tenant(requests=100, concurrent=70)
    async with (
        client(valkey_url) as other,
        Ledger(redis, tmp_path, now_ms=clock) as one,
        Ledger(other, tmp_path, now_ms=clock) as two,
    ):
        decisions = await asyncio.gather(
            *((one, two)[i % 2].reserve(acme, Ask(f"r{i}", 0, 0)) for i in range(200)),
        )
        grants = [decision for decision in decisions if isinstance(decision, Grant)]
        assert len(grants) == 70
        assert {decision.dimension for decision in decisions if isinstance(decision, Denial)} == {"concurrent_requests"}


async def test_many_tenants_travel_together_and_apart(ledger: Ledger, redis: Redis) -> None:
    """Operations of many tenants go in one trip, and each is decided on its own account."""
    specs = [tenant(f"t{i}", requests=i) for i in range(1, 41)]
    decisions = await asyncio.gather(*(ledger.reserve(spec, Ask("r", 0, 0)) for spec in specs for _ in range(50)))
    for i, _ in enumerate(specs):
        mine = decisions[50 * i : 50 * i + 50]
        assert sum(isinstance(decision, Grant) for decision in mine) == i + 1


async def test_more_than_one_call_holds_is_split(ledger: Ledger, redis: Redis) -> None:
    """2,000 requests at once take several calls, in order, and lose none."""
    acme = tenant(requests=1500)
    decisions = await asyncio.gather(*(ledger.reserve(acme, Ask(f"r{i}", 0, 0)) for i in range(2000)))
    assert [isinstance(decision, Grant) for decision in decisions] == [True] * 1500 + [False] * 500
    events = [event(f"r{i}", cost_nanousd=1) for i in range(1500)]
    await asyncio.gather(
        *(
            ledger.settle(done, decision.lease)
            for done, decision in zip(events, decisions, strict=False)
            if isinstance(decision, Grant)
        )
    )
    assert await money(redis) == (1500, 0)
    assert await stream(redis) == events


async def test_a_new_policy_holds_for_the_next_request(ledger: Ledger) -> None:
    """Limits are those of the latest tenant document; what was used before is not forgotten."""
    for _ in range(10):
        assert isinstance(await ledger.reserve(tenant(requests=10), Ask("r", 0, 0)), Grant)
    denial = await ledger.reserve(tenant(requests=12), Ask("r", 0, 0))
    assert isinstance(denial, Denial)
    assert (denial.dimension, denial.limit, denial.retry_after_ms) == ("requests_per_minute", 12, 5000)


async def test_a_request_pays_in_the_period_it_was_reserved_in(
    ledger: Ledger, redis: Redis, clock: ManualClock
) -> None:
    """A request that ends in the next month is spent from the month that admitted it, which frees its reservation."""
    acme = tenant(budget_usd="1")
    clock.now_ms = 1_790_812_799_000  # 2026-09-30T23:59:59Z
    grant = await granted(ledger, acme, Ask("r", 0, 600_000_000))
    clock.advance_s(2)
    assert isinstance(await ledger.reserve(acme, Ask("r2", 0, 1_000_000_000)), Grant)
    await ledger.settle(event("r", cost_nanousd=5), grant.lease)
    assert await money(redis, period="month:2026-09") == (5, 0)
    assert await money(redis, period="month:2026-10") == (0, 1_000_000_000)


async def test_a_script_that_redis_forgot_is_loaded_again(ledger: Ledger, redis: Redis) -> None:
    """SCRIPT FLUSH or a restart of Redis is noticed by nobody."""
    acme = tenant(requests=4)
    assert isinstance(await ledger.reserve(acme, Ask("r", 0, 0)), Grant)
    await redis.script_flush()
    decisions = await asyncio.gather(*(ledger.reserve(acme, Ask("r", 0, 0)) for _ in range(4)))
    assert [isinstance(decision, Grant) for decision in decisions] == [True, True, True, False]


async def test_single_events_are_kept_as_long_as_promised(redis: Redis, tmp_path: Path, clock: ManualClock) -> None:
    """Events older than `events_kept_s` leave the stream, a node of it at a time; sums stay."""
    async with PatientLedger(redis, tmp_path, settings=LedgerSettings(events_kept_s=86_400), now_ms=clock) as ledger:
        await asyncio.gather(*(ledger.record(event(f"r{i}")) for i in range(1000)))
        assert await redis.xlen(TenantKeys("acme").events) == 1000
        clock.advance_s(400 * 86_400)
        await ledger.record(event("last"))
        assert await redis.xlen(TenantKeys("acme").events) < 200
        assert (await redis.hgetall(TenantKeys("acme").usage("1d", 1_789_948_800)))[summed("requests")] == b"1001"
