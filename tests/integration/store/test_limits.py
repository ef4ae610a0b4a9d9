"""Tokens of each kind, tokens per day, tokens at once and several budgets: on a real Valkey, through the ledger."""

from __future__ import annotations

import asyncio
import secrets
from decimal import Decimal
from pathlib import Path

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.admission import Ask, Denial, Dimension, Grant
from gateway.metering import Ledger
from gateway.policy import GroupSpec, KeySpec, LimitsSpec, Policies, RulesSpec, ScopeLimitsSpec, Scopes, TenantSpec
from gateway.store import AccountLimits, TenantKeys, Window, account_call, account_reply, load_script

from .ledgers import T0_MS, ManualClock, PatientLedger, event

ASK = Ask("r", tokens=10, nanousd=100, input_tokens=4, output_tokens=6, most_tokens=10)
DAY_END_S = 1_790_035_200
"""2026-09-22T00:00:00Z, the first midnight after T0_MS."""
USD_100 = Decimal("0.0000001")
"""100 nano-dollars."""

ONE_REQUEST: dict[Dimension, LimitsSpec] = {
    "requests_per_minute": LimitsSpec(requests_per_minute=1),
    "tokens_per_minute": LimitsSpec(tokens_per_minute=10),
    "input_tokens_per_minute": LimitsSpec(input_tokens_per_minute=4),
    "output_tokens_per_minute": LimitsSpec(output_tokens_per_minute=6),
    "tokens_per_day": LimitsSpec(tokens_per_day=10),
    "concurrent_requests": LimitsSpec(concurrent_requests=1),
    "concurrent_tokens": LimitsSpec(concurrent_tokens=10),
    "budget_usd": LimitsSpec(budget_usd=USD_100),
    "usd_per_hour": LimitsSpec(usd_per_hour=USD_100),
    "usd_per_day": LimitsSpec(usd_per_day=USD_100),
    "usd_per_month": LimitsSpec(usd_per_month=USD_100),
}
"""Of each dimension as much as one request of ASK takes."""

HELD = ("concurrent_requests", "concurrent_tokens")


def acme(limits: LimitsSpec) -> TenantSpec:
    return TenantSpec(name="acme", limits=limits)


async def denied(ledger: Ledger, limits: LimitsSpec, ask: Ask = ASK) -> Denial:
    decision = await ledger.reserve(acme(limits), ask)
    assert isinstance(decision, Denial)
    return decision


async def granted(ledger: Ledger, limits: LimitsSpec, ask: Ask = ASK) -> Grant:
    decision = await ledger.reserve(acme(limits), ask)
    assert isinstance(decision, Grant)
    return decision


@pytest.mark.parametrize("dimension", ONE_REQUEST)
async def test_a_limit_of_one_admits_the_first_and_refuses_the_second(ledger: Ledger, dimension: Dimension) -> None:
    """Whatever the dimension, exactly what the limit says fits, and the refusal names it and what is left."""
    limits = ONE_REQUEST[dimension]
    await granted(ledger, limits)
    refused = await denied(ledger, limits)
    assert (refused.dimension, refused.remaining) == (dimension, 0)


@pytest.mark.parametrize("dimension", [name for name in ONE_REQUEST if not name.startswith("requests")])
async def test_what_a_request_did_not_use_can_be_used_at_once(ledger: Ledger, dimension: Dimension) -> None:
    """Settled with nothing used, it leaves the whole limit for the next one."""
    limits = ONE_REQUEST[dimension]
    grant = await granted(ledger, limits)
    await ledger.settle(event("r"), grant.lease)
    await granted(ledger, limits)


@pytest.mark.parametrize("dimension", ["tokens_per_day", "usd_per_hour", "usd_per_day", "usd_per_month"])
async def test_what_was_used_up_comes_back_when_the_window_ends(
    ledger: Ledger, clock: ManualClock, dimension: Dimension
) -> None:
    """Retry-After is the end of the window, to the millisecond; then there is all of it again, and not before."""
    limits = ONE_REQUEST[dimension]
    grant = await granted(ledger, limits)
    await ledger.settle(event("r", input_tokens=4, output_tokens=6, cost_nanousd=100), grant.lease)
    refused = await denied(ledger, limits)
    assert refused.retry_after_ms == refused.resets_at_s * 1000 - clock.now_ms
    clock.now_ms = refused.resets_at_s * 1000 - 1
    assert (await denied(ledger, limits)).dimension == dimension
    clock.now_ms += 1
    await granted(ledger, limits)
    assert (await denied(ledger, limits)).dimension == dimension, "no double burst at the edge"


async def test_a_refund_goes_to_the_window_it_was_taken_from(ledger: Ledger, redis: Redis, clock: ManualClock) -> None:
    """A request that begins before midnight and ends after it leaves the new day as it was."""
    limits = LimitsSpec(tokens_per_day=20, usd_per_day=Decimal("0.0000002"))
    clock.now_ms = DAY_END_S * 1000 - 1000
    old = await granted(ledger, limits)
    clock.now_ms += 2000
    await granted(ledger, limits)
    before = await redis.hgetall(TenantKeys("acme").window("day:2026-09-22"))
    await ledger.settle(event("r", output_tokens=3, cost_nanousd=30), old.lease)
    assert await redis.hgetall(TenantKeys("acme").window("day:2026-09-22")) == before
    assert await redis.hgetall(TenantKeys("acme").window("day:2026-09-21")) == {
        b"spent": b"30",
        b"reserved": b"0",
        b"tokens": b"3",
        b"tokens_reserved": b"0",
    }
    refused = await denied(ledger, limits, Ask("r", 0, 0, most_tokens=11))
    assert (refused.dimension, refused.remaining, refused.retry_after_ms) == ("tokens_per_day", 10, 1000)


@pytest.mark.parametrize("dimension", [*HELD, "tokens_per_day", "budget_usd", "usd_per_hour"])
async def test_a_killed_workers_share_is_free_after_its_leases_term(
    redis: Redis, tmp_path: Path, clock: ManualClock, dimension: Dimension
) -> None:
    """Nobody renews what a killed worker held: places, tokens and money are free after 10 s and not before."""
    limits = ONE_REQUEST[dimension]
    killed = PatientLedger(redis, tmp_path / "killed", now_ms=clock)
    async with PatientLedger(redis, tmp_path / "lives", now_ms=clock) as lives, killed:
        await granted(killed, limits)
        clock.advance_s(9.999)
        await denied(lives, limits)
        clock.advance_s(0.001)
        await granted(lives, limits)


@pytest.mark.parametrize("dimension", ONE_REQUEST)
async def test_several_workers_together_never_overshoot(
    redis: Redis, tmp_path: Path, clock: ManualClock, dimension: Dimension
) -> None:
    """Three workers that ask at the same time get exactly one request's worth, not one each."""
    limits = ONE_REQUEST[dimension]
    async with (
        PatientLedger(redis, tmp_path / "a", now_ms=clock) as a,
        PatientLedger(redis, tmp_path / "b", now_ms=clock) as b,
        PatientLedger(redis, tmp_path / "c", now_ms=clock) as c,
    ):
        decisions = await asyncio.gather(*(one.reserve(acme(limits), ASK) for one in (a, b, c) for _ in range(10)))
    assert sum(isinstance(decision, Grant) for decision in decisions) == 1


KEYED = TenantSpec(
    name="acme",
    keys=(
        KeySpec(id="acme-ci", sha256="0" * 64, limits=ScopeLimitsSpec(tokens_per_day=10, usd_per_hour=USD_100)),
        KeySpec(id="acme-web", sha256="1" * 64, limits=ScopeLimitsSpec(usd_per_day=2 * USD_100)),
        KeySpec(id="acme-free", sha256="2" * 64),
    ),
    limits=LimitsSpec(usd_per_day=4 * USD_100),
)


POLICIES = Policies(models={}, tenants={"acme": KEYED}, classes={}, sha256="0" * 64)


def of_key(key: str) -> Scopes:
    return POLICIES.scopes_of(KEYED, key, "tiny")


async def test_a_key_has_its_own_limits_within_its_tenants(ledger: Ledger, redis: Redis) -> None:
    """Decided in one call: each key by its own limits, all together by the tenant's; a refusal names the key."""

    keys = ["acme-ci", "acme-ci", "acme-web", "acme-web", "acme-web", "acme-free", "acme-free"]
    decisions = await asyncio.gather(*(ledger.reserve(KEYED, ASK, of_key(key)) for key in keys))
    assert [isinstance(decision, Grant) for decision in decisions] == [True, False, True, True, False, True, False]
    refused = [
        (decision.dimension, decision.scope, decision.limit) for decision in decisions if isinstance(decision, Denial)
    ]
    assert refused == [
        ("tokens_per_day", "key acme-ci", 10),
        ("usd_per_day", "key acme-web", 200),
        ("usd_per_day", "", 400),
    ]
    first = decisions[0]
    assert isinstance(first, Grant)
    await ledger.settle(event("r", output_tokens=3, cost_nanousd=30), first.lease)
    keys_of = TenantKeys("acme")
    window = await redis.hgetall(keys_of.window("key:acme-ci:day:2026-09-21"))
    assert (window[b"tokens"], window[b"tokens_reserved"], window[b"spent"]) == (b"3", b"0", b"30")
    assert await redis.hget(keys_of.window("key:acme-web:day:2026-09-21"), "reserved") == b"200"
    again = await ledger.reserve(KEYED, ASK, of_key("acme-ci"))
    assert isinstance(again, Denial)
    assert (again.scope, again.remaining) == ("key acme-ci", 7 if again.dimension == "tokens_per_day" else 70)


async def test_a_killed_workers_share_of_a_key_is_free_after_its_leases_term(
    redis: Redis, tmp_path: Path, clock: ManualClock
) -> None:
    """Its key's tokens and money too."""
    async with (
        PatientLedger(redis, tmp_path / "lives", now_ms=clock) as lives,
        PatientLedger(redis, tmp_path / "killed", now_ms=clock) as killed,
    ):
        assert isinstance(await killed.reserve(KEYED, ASK, of_key("acme-ci")), Grant)
        clock.advance_s(9.999)
        assert isinstance(await lives.reserve(KEYED, ASK, of_key("acme-ci")), Denial)
        clock.advance_s(0.001)
        assert isinstance(await lives.reserve(KEYED, ASK, of_key("acme-ci")), Grant)


async def test_a_tenant_without_further_limits_keeps_nothing_for_them(ledger: Ledger, redis: Redis) -> None:
    """No window, no field and no longer lease: what only others use costs nothing."""
    grant = await granted(ledger, LimitsSpec(requests_per_minute=5, budget_usd=Decimal(1)))
    assert grant.lease.member.count("|") == 3
    assert not await redis.keys(TenantKeys("acme").window_prefix + "*")
    assert set(await redis.hkeys(TenantKeys("acme").limits)) == {b"at", b"period", b"requests"}


few = st.one_of(st.just(-1), st.integers(0, 30))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rates=st.tuples(few, few, few, few, few, few),
    windows=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    asks=st.lists(st.tuples(*[st.integers(0, 20)] * 5), min_size=1, max_size=12),
)
def test_a_refused_request_leaves_every_counter_unchanged(
    valkey: sync_redis.Redis, rates: tuple[int, ...], windows: list[int], asks: list[tuple[int, ...]]
) -> None:
    """No phantom refusals: whoever is refused by one limit has taken nothing from any other."""
    sha1 = valkey.script_load(load_script("account").text.decode())
    keys = TenantKeys("t-" + secrets.token_hex(8))
    kinds: tuple[tuple[Dimension, str], ...] = (
        ("tokens_per_day", "day:0"),
        ("usd_per_hour", "hour:0"),
        ("usd_per_day", "day:0"),
        ("usd_per_month", "month:0"),
    )
    limits = AccountLimits(
        requests_per_minute=rates[0],
        tokens_per_minute=rates[1],
        concurrent_requests=rates[2],
        input_tokens_per_minute=rates[3],
        output_tokens_per_minute=rates[4],
        concurrent_tokens=rates[5],
        windows=tuple(
            Window(dimension=dimension, name=period, limit=limit, end_s=T0_MS // 1000 + 60)
            for (dimension, period), limit in zip(kinds, windows, strict=True)
        ),
        period="month:0",
    )

    def stored() -> dict[str, object]:
        found: dict[str, object] = {key: valkey.hgetall(keys.window(key)) for _, key in kinds}
        found["limits"] = {
            name: value.split()[0] for name, value in valkey.hgetall(keys.limits).items() if value.strip()
        }
        found["leases"] = valkey.zrange(keys.leases, 0, -1, withscores=True)
        found["budget"] = valkey.hgetall(keys.budget("month:0"))
        return found

    def reserve(number: int, ask: tuple[int, ...] | None) -> int | None:
        tokens, nanousd, of_input, of_output, most = ask or (0, 0, 0, 0, 0)
        member = f"r|{number}|{nanousd}|month:0|{most}|day:0,hour:0,month:0"
        call = account_call(
            keys,
            now_ms=T0_MS,
            lease_ttl_ms=10_000,
            limits=limits,
            budget_ttl_s=1000,
            producer="p",
            asks=() if ask is None else (member, tokens, nanousd, of_input, of_output, most, False),
        )
        reply = account_reply(valkey.evalsha(sha1, len(call.keys), *call.keys, *call.arguments))
        return reply.verdicts[0].dimension if reply.verdicts else None

    reserve(0, (31, 31, 31, 31, 31))  # refused: the account is written down full
    for number, ask in enumerate(asks, 1):
        before = stored()
        if reserve(number, ask) != 0:
            assert stored() == before


async def test_a_slice_pays_from_its_leases_periods_and_ends_with_it(
    ledger: Ledger, redis: Redis, clock: ManualClock
) -> None:
    """Extended after midnight, an answer still costs the day it was admitted in; places and requests/min are taken
    once; one settlement gives back all that was held."""
    limits = LimitsSpec(usd_per_day=3 * USD_100, tokens_per_day=30, concurrent_requests=1, requests_per_minute=1)
    clock.now_ms = DAY_END_S * 1000 - 1000
    first = await granted(ledger, limits)
    clock.now_ms += 2000
    more = [await ledger.extend(acme(limits), first.lease, ASK) for _ in range(3)]
    slices = [one.lease for one in more if isinstance(one, Grant)]
    assert [isinstance(one, Grant) for one in more] == [True, True, False], "three times 100 is the old day's budget"
    window = TenantKeys("acme").window("day:2026-09-21")
    assert await redis.hmget(window, "reserved", "tokens_reserved") == [b"300", b"30"]
    assert await redis.exists(TenantKeys("acme").window("day:2026-09-22")) == 0
    lease = replace(first.lease, slices=tuple(slices))
    await ledger.settle(event("r", input_tokens=4, output_tokens=20, cost_nanousd=250), lease)
    await ledger.shipped(5.0)
    assert await redis.hmget(window, "spent", "reserved", "tokens", "tokens_reserved") == [b"250", b"0", b"24", b"0"]
    assert await redis.zcard(TenantKeys("acme").leases) == 0
    assert await redis.hget(TenantKeys("acme").limits, "slices") == b"0"


async def test_what_a_killed_worker_holds_of_a_shared_limit_comes_back_without_its_tenant(
    redis: Redis, tmp_path: Path, clock: ManualClock
) -> None:
    """Two tenants share a group's places. One's worker is killed, and the tenant never asks again: after the lease's
    term and one sweep the other has them."""
    limits = ScopeLimitsSpec(concurrent_requests=1)
    name = secrets.token_hex(4)
    tenants = {one: TenantSpec(name=one, group=name) for one in (f"a-{name}", f"b-{name}")}
    groups = {name: GroupSpec(name=name, limits=limits)}
    policies = Policies(models={}, tenants=tenants, classes={}, groups=groups, sha256="0" * 64)
    first, second = tenants.values()
    async with (
        PatientLedger(redis, tmp_path / "lives", now_ms=clock) as lives,
        PatientLedger(redis, tmp_path / "killed", now_ms=clock) as killed,
    ):
        assert isinstance(await killed.reserve(first, ASK, policies.scopes_of(first, "", "tiny")), Grant)
        refused = await lives.reserve(second, ASK, policies.scopes_of(second, "", "tiny"))
        assert isinstance(refused, Denial)
        assert (refused.dimension, refused.scope, refused.limit) == ("concurrent_requests", f"group {name}", 1)
        clock.advance_s(10)
        await lives.sweep()
        for _ in range(1000):
            if isinstance(await lives.reserve(second, ASK, policies.scopes_of(second, "", "tiny")), Grant):
                break
        else:
            pytest.fail("the place never came back")


async def calls_of(redis: Redis) -> int:
    """Script calls so far."""
    found: dict[str, dict[str, int]] = await redis.info("commandstats")
    return found["cmdstat_evalsha"]["calls"]


async def test_a_flood_that_is_refused_asks_redis_ten_times_a_second(
    ledger: Ledger, redis: Redis, clock: ManualClock
) -> None:
    """Requests/min that are used up say so without asking for 100 ms; what is told goes on with the time, and the one
    that has refilled is there at once."""
    limits = LimitsSpec(requests_per_minute=60)
    for _ in range(60):
        await granted(ledger, limits)
    first = await denied(ledger, limits)
    assert first.retry_after_ms == 1000
    before = await calls_of(redis)
    for passed_ms in range(1, 1000):
        clock.now_ms += 1
        refused = await denied(ledger, limits)
        assert (refused.dimension, refused.retry_after_ms) == ("requests_per_minute", 1000 - passed_ms)
        assert refused.standing.requests_reset_ms == 60_000 - passed_ms
    assert await calls_of(redis) - before <= 12
    clock.now_ms += 1
    await granted(ledger, limits)


async def test_a_place_that_comes_back_is_given_at_once_though_others_were_refused(ledger: Ledger) -> None:
    """A request that was refused after it was admitted leaves its place in requests/min to the next one."""
    limits = LimitsSpec(requests_per_minute=1)
    grant = await granted(ledger, limits)
    await denied(ledger, limits)
    await ledger.settle(event("r", status="refused"), grant.lease)
    await granted(ledger, limits)


async def test_another_limit_is_asked_for_though_one_has_just_refused(ledger: Ledger) -> None:
    """A policy that was raised meanwhile holds at once: the next place refills as fast as it says."""
    await granted(ledger, LimitsSpec(requests_per_minute=1))
    assert (await denied(ledger, LimitsSpec(requests_per_minute=1))).retry_after_ms == 60_000
    assert (await denied(ledger, LimitsSpec(requests_per_minute=100))).retry_after_ms == 600


async def test_who_asks_for_more_hears_what_he_has_to_wait_for(ledger: Ledger) -> None:
    """The one before was refused by requests/min alone; this one has to wait longer for tokens."""
    limits = LimitsSpec(requests_per_minute=1, tokens_per_minute=40)
    small = replace(ASK, tokens=1)
    await granted(ledger, limits, replace(ASK, tokens=39))
    assert (await denied(ledger, limits, small)).dimension == "requests_per_minute"
    more = await denied(ledger, limits, replace(ASK, tokens=1000))
    assert (more.dimension, more.retry_after_ms) == ("tokens_per_minute", None)


async def test_modes_other_than_enforce_refuse_nothing(ledger: Ledger) -> None:
    """A soft limit tells how much of it is used, an audited one and a candidate that they would have refused, and then
    nothing is taken from them."""
    limits = LimitsSpec(soft=RulesSpec(requests_per_minute=4), audit=RulesSpec(requests_per_minute=2))
    tenant = TenantSpec(name="acme", limits=limits)
    policies = Policies(models={}, tenants={"acme": tenant}, classes={}, sha256="0" * 64)
    notes = []
    for _ in range(5):
        decision = await ledger.reserve(tenant, ASK, policies.scopes_of(tenant, "", "tiny"))
        assert isinstance(decision, Grant)
        notes.append({(note.limit, note.percent) for note in decision.notes})
    assert notes == [set(), {(4, 50)}, {(4, 75), (2, None)}, {(4, 100), (2, None)}, {(4, 125), (2, None)}]
