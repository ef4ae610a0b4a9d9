"""`mtok correct`: what it books, what it refuses, and that sums and event agree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from gateway.admission import Ask, Grant
from gateway.cli import app
from gateway.export import CannotCorrect, Correction, correction_event
from gateway.export import correct as book_correction
from gateway.export._stream import StoredEvent
from gateway.metering import COST, INPUT, REQUESTS, Ledger, UsageEvent, split_field
from gateway.store import TenantKeys
from tests.integration.store.ledgers import T0_MS, ManualClock, PatientLedger, event, money, stream, tenant

Mtok = Callable[..., "asyncio.Future[Result]"]


@pytest.fixture
async def ledger(redis: Redis, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with PatientLedger(redis, tmp_path / "gateway", now_ms=ManualClock()) as ledger:
        yield ledger


@pytest.fixture
def correct(valkey_url: str, tmp_path: Path) -> Mtok:
    """`mtok correct acme ...`, in a thread."""

    def run(*arguments: str) -> Result:
        environment = {"MTOK_REDIS_URL": valkey_url, "MTOK_DATA_DIR": str(tmp_path)}
        return CliRunner().invoke(app, ["correct", "acme", *arguments], env=environment)

    return lambda *arguments: asyncio.to_thread(run, *arguments)  # type: ignore[return-value]


async def sums(redis: Redis) -> dict[str, int]:
    """Everything in the tenant's day buckets, added up by metric."""
    totals: dict[str, int] = {}
    async for key in redis.scan_iter(match="mtok:{acme}:usage:1d:*"):
        for field, amount in (await redis.hgetall(key)).items():
            metric = split_field(field.decode())[1]
            totals[metric] = totals.get(metric, 0) + int(amount)
    return totals


async def test_a_credit_is_a_new_event_and_the_sums_follow(ledger: Ledger, redis: Redis, correct: Mtok) -> None:
    """The old event stays as it was; the new one refers to it, says why, and costs less than nothing."""
    await ledger.record(event("r1", input_tokens=100, output_tokens=7, cost_nanousd=5_000_000))
    before = await stream(redis)
    done = await correct("r1", "--cost-usd", "-0.0012", "--reason", "slow replica, ticket 4711")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == "mtok: r1 of acme is corrected by -0.0012 USD\n"
    first, correction = await stream(redis)
    assert [first] == before
    assert done.stdout == f"{correction.id}\n"
    assert (correction.status, correction.corrects, correction.reason) == (
        "correction",
        "r1",
        "slow replica, ticket 4711",
    )
    assert (correction.cost_nanousd, correction.usage.total_tokens) == (-1_200_000, 0)
    assert (correction.model, correction.key, correction.endpoint) == ("tiny", "ci", "chat")
    totals = await sums(redis)
    assert (totals[COST], totals[INPUT], totals[REQUESTS]) == (3_800_000, 100, 1)


async def test_a_credit_is_money_the_budget_has_again(ledger: Ledger, redis: Redis, correct: Mtok) -> None:
    """What was spent in the tenant's current period is lowered by it."""
    grant = await ledger.reserve(tenant(budget_usd="1"), Ask("r1", 0, 6_000_000))
    assert isinstance(grant, Grant)
    await ledger.settle(event("r1", cost_nanousd=5_000_000), grant.lease)
    assert await money(redis) == (5_000_000, 0)
    assert (await correct("r1", "--cost-usd", "-0.0012", "--reason", "slow")).exit_code == 0
    assert await money(redis) == (3_800_000, 0)


async def test_a_void_takes_back_what_is_left(ledger: Ledger, redis: Redis, correct: Mtok) -> None:
    """Cost and tokens, less what was corrected before; a second time nothing is left."""
    await ledger.record(event("r1", input_tokens=100, output_tokens=7, cost_nanousd=5_000_000))
    assert (await correct("r1", "--cost-usd", "-0.001", "--reason", "first")).exit_code == 0
    assert (await correct("r1", "--void", "--reason", "never answered")).exit_code == 0
    again = await correct("r1", "--void", "--reason", "again")
    assert (again.exit_code, again.stderr) == (2, "mtok: nothing is left of r1 to take back\n")
    totals = await sums(redis)
    assert {metric: n for metric, n in totals.items() if n} == {REQUESTS: 1}
    assert len(await stream(redis)) == 3


async def test_two_corrections_do_not_add_up_to_less_than_nothing(ledger: Ledger, redis: Redis, correct: Mtok) -> None:
    """One after the other, and at the same time."""
    await ledger.record(event("r1", cost_nanousd=5_000_000))
    wanted = Correction(request="r1", reason="credit", cost_nanousd=-3_000_000)

    async def book(correction: UsageEvent, period: str) -> None:
        await ledger.record(correction, period=period)

    both = (book_correction(redis, "acme", wanted, book=book, now_ms=T0_MS) for _ in range(2))
    done = await asyncio.gather(*both, return_exceptions=True)
    assert sorted((type(one) for one in done), key=str) == [CannotCorrect, UsageEvent]
    refused = await correct("r1", "--cost-usd", "-0.003", "--reason", "credit")
    assert refused.exit_code == 2
    assert "r1 stands at 0.002 USD after 1 corrections; -0.003 would make it negative" in refused.stderr
    assert (await sums(redis))[COST] == 2_000_000


async def test_an_id_that_a_client_used_again_needs_its_entry(ledger: Ledger, redis: Redis, correct: Mtok) -> None:
    """Each event has its own corrections."""
    await ledger.record(event("r1", cost_nanousd=10))
    await ledger.record(event("r1", cost_nanousd=20))
    unclear = await correct("r1", "--void", "--reason", "x")
    first, second = [entry.decode() for entry, _ in await redis.xrange(TenantKeys("acme").events)]
    assert (unclear.exit_code, unclear.stderr) == (
        2,
        f"mtok: the id r1 is of 2 events; say which: --entry one of {first}, {second}\n",
    )
    for entry in (second, first):
        assert (await correct("r1", "--void", "--reason", "x", "--entry", entry)).exit_code == 0
    *_, of_second, of_first = await stream(redis)
    assert (of_second.corrects, of_second.cost_nanousd) == (f"r1@{second}", -20)
    assert (of_first.corrects, of_first.cost_nanousd) == ("r1", -10)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["r9", "--void", "--reason", "x"], "mtok: there is no event of the request r9, or it is kept no more\n"),
        (["r1", "--reason", "x"], "mtok: say what to correct: --cost-usd USD or --void, one of them\n"),
        (["r1", "--void", "--cost-usd", "1", "--reason", "x"], "mtok: say what to correct: "),
        (["r1", "--cost-usd", "1e3", "--reason", "x"], "mtok: --cost-usd is '1e3'; write dollars"),
        (["r1", "--cost-usd", "-0.0000000001", "--reason", "x"], "write dollars with at most 9 decimals"),
        (["r1", "--cost-usd", "0", "--reason", "x"], "mtok: a correction by nothing changes nothing\n"),
        (["r1", "--void", "--reason", " "], "mtok: --reason is empty; an auditor will ask\n"),
        (["r1", "--void"], "Missing option '--reason'"),
    ],
)
async def test_what_cannot_be_corrected_is_told(
    ledger: Ledger, redis: Redis, correct: Mtok, arguments: list[str], told: str
) -> None:
    """Exit code 2, and nothing is booked."""
    await ledger.record(event("r1", cost_nanousd=5))
    refused = await correct(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert told in refused.stderr
    assert len(await stream(redis)) == 1


@given(st.integers(0, 100), st.lists(st.integers(-100, 100) | st.none(), max_size=8))
@settings(max_examples=200, deadline=None)
def test_whatever_is_tried_a_request_never_ends_below_nothing(cost: int, tries: list[int | None]) -> None:
    """Any series of corrections, those that are refused left out."""
    events = [StoredEvent("acme", "1-0", event("r1", input_tokens=9, cost_nanousd=cost))]
    for n, amount in enumerate(tries):
        wanted = Correction(request="r1", reason="x", cost_nanousd=amount)
        try:
            booked = correction_event(events, wanted, now_ms=T0_MS)
        except CannotCorrect:
            continue
        events.append(StoredEvent("acme", f"{n + 2}-0", booked))
        assert sum(one.event.cost_nanousd for one in events) >= 0
        assert sum(one.event.usage.input_tokens for one in events) in (0, 9)
