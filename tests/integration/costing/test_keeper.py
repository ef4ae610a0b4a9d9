"""Several workers and one price: whoever leads or dies, every epoch has one price and no request is without."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.audit import read_prices
from gateway.costing import PriceKeeper, Tariffs, epoch_name, read_epochs, read_spans
from gateway.metering import Dimensions, sum_field
from gateway.policy import Policies, load
from gateway.pricing import cost_nanousd
from gateway.store import PRICE_LEASE, TENANTS, ReplicaKeys, TenantKeys

POLICY = """
pricing: {epoch_s: 60}
models:
  tiny:
    replicas: [{url: "http://a:1"}, {url: "http://b:1"}]
    gpu: {usd_per_hour: 3.6}
    price: {mode: live, output_usd_per_mtok: 0.5, smooth: epoch, max_step: 0.5}
tenants: {acme: {}}
"""
NOON = 1_795_608_000
EPOCHS = 60


@dataclass
class Replica:
    url: str
    name: str
    is_there: bool = True


@dataclass
class World:
    """A clock, a fleet and workers that may die."""

    redis: Redis
    policies: Policies
    now_ms: int = NOON * 1000

    def __post_init__(self) -> None:
        self.fleet = [Replica("http://a:1", "a:1"), Replica("http://b:1", "b:1")]

    def worker(self) -> tuple[PriceKeeper, list[Tariffs]]:
        held: list[Tariffs] = []
        keeper = PriceKeeper(
            self.redis, self.policies, replicas=lambda: self.fleet, now_ms=lambda: self.now_ms, use=held.append
        )
        return keeper, held

    async def leader_gone(self) -> None:
        """Its lease has run out."""
        await self.redis.hset(PRICE_LEASE, "until_ms", 0)

    async def sell(self, output_tokens: int, minute_s: int) -> None:
        """What the ledger has of one minute."""
        field = sum_field(Dimensions("tiny", "k"), "output")
        await self.redis.hincrby(TenantKeys("acme").usage("1m", minute_s), field, output_tokens)

    def price(self, held: list[Tariffs]) -> tuple[str, Decimal]:
        price = held[-1].of(self.policies.tenants["acme"], "tiny")
        assert price is not None
        return price.epoch, price.output_usd_per_mtok


@pytest.fixture
async def world(redis: Redis, tmp_path: Path) -> World:
    (tmp_path / "policy.yaml").write_text(POLICY)
    await redis.sadd(TENANTS, "acme")
    return World(redis, load(tmp_path))


async def test_one_price_per_epoch_whoever_dies(world: World) -> None:
    """Two workers, each of which may be replaced by a new one at any time and the lease with it: no epoch without a
    price, none with two, and both pay the same at every moment."""
    chance = random.Random(7)
    workers = [world.worker(), world.worker()]
    seen: dict[str, set[Decimal]] = {}
    for step in range(EPOCHS * 12):
        world.now_ms = (NOON + step * 5) * 1000
        minute_s = world.now_ms // 60_000 * 60
        await world.sell(chance.randrange(20_000), minute_s)
        if chance.random() < 0.25:
            await world.leader_gone()
            workers[chance.randrange(2)] = world.worker()
        chance.shuffle(workers)
        for keeper, held in workers:
            await keeper.tick()
            name, output = world.price(held)
            seen.setdefault(name, set()).add(output)
            assert name == epoch_name(minute_s)
            assert not keeper.stale
    assert len(seen) == EPOCHS
    assert all(len(prices) == 1 for prices in seen.values())
    kept = await read_epochs(world.redis, [NOON + 60 * epoch for epoch in range(EPOCHS)])
    assert [str(epoch.prices["tiny"].output_usd_per_mtok) for epoch in kept if epoch] == [
        str(seen[epoch_name(NOON + 60 * epoch)].pop()) for epoch in range(EPOCHS)
    ]
    book = await read_prices(world.redis)
    assert all((epoch_name(NOON + 60 * epoch), "tiny") in book for epoch in range(EPOCHS))


async def test_the_price_is_what_the_minute_cost_over_what_it_made(world: World) -> None:
    """Two replicas at 3.60 $/h cost 0.12 $ a minute; 200,000 tokens in it are 0.60 $/Mtok."""
    keeper, held = world.worker()
    for second in range(0, 240, 5):
        world.now_ms = (NOON + second) * 1000
        await keeper.tick()
        if second % 60 == 0:
            await world.sell(200_000, NOON + second)
    assert world.price(held) == (epoch_name(NOON + 180), Decimal("0.600000"))


async def test_hours_are_counted_to_the_second_while_a_replica_is_there(world: World) -> None:
    """One goes after a minute, comes back ten minutes later, and has cost what it was there."""
    keeper, _ = world.worker()
    for second in range(0, 1200, 5):
        world.now_ms = (NOON + second) * 1000
        world.fleet[1].is_there = not 60 < second < 660
        await keeper.tick()
    spans = await read_spans(world.redis, NOON, NOON + 7200)
    assert [(span.replica, span.start_s - NOON, span.end_s - NOON) for span in spans] == [
        ("a:1", 0, 1195),
        ("b:1", 0, 60),
        ("b:1", 660, 1195),
    ]
    assert cost_nanousd(spans, NOON, NOON + 7200) == (1195 + 60 + 535) * 1_000_000


async def test_a_short_silence_is_no_absence(world: World) -> None:
    """A leader that dies is followed by another within a minute: the hours have no gap."""
    for second in (0, 5, 50):
        world.now_ms = (NOON + second) * 1000
        await world.leader_gone()
        keeper, _ = world.worker()
        await keeper.tick()
    spans = await read_spans(world.redis, NOON, NOON + 60)
    assert {(span.start_s - NOON, span.end_s - NOON) for span in spans} == {(0, 50)}


async def test_a_new_price_begins_a_new_span_without_a_second_between(world: World, tmp_path: Path) -> None:
    """The GPUs' price changes: what was before it costs what it cost."""
    keeper, _ = world.worker()
    await keeper.tick()
    (tmp_path / "policy.yaml").write_text(POLICY.replace("3.6", "7.2"))
    keeper.apply(load(tmp_path))
    for second in (30, 60):
        world.now_ms = (NOON + second) * 1000
        await keeper.tick()
    spans = [span for span in await read_spans(world.redis, NOON, NOON + 60) if span.replica == "a:1"]
    assert [(span.start_s - NOON, span.end_s - NOON) for span in spans] == [(0, 30), (30, 60)]
    assert cost_nanousd(spans, NOON, NOON + 60) == 30 * 1_000_000 + 30 * 2_000_000


async def test_without_anybody_to_make_it_the_last_price_holds_and_is_marked(world: World) -> None:
    """A worker that cannot lead follows; when nobody leads it keeps the price and says that it is stale."""
    leader, _ = world.worker()
    follower, held = world.worker()
    await leader.tick()
    await follower.tick()
    before = world.price(held)
    world.now_ms += 120_000
    await world.redis.hset(PRICE_LEASE, mapping={"owner": "another", "until_ms": 2**52})
    await follower.tick()
    assert follower.stale
    assert world.price(held) == before


async def test_inputs_ratio_may_come_from_the_engines_own_time(world: World, tmp_path: Path) -> None:
    """Half of the time went to 80,000 uncached prompt tokens, half to 20,000 generated ones: a quarter. An engine that
    made too little says nothing."""
    (tmp_path / "policy.yaml").write_text(POLICY.replace("smooth: epoch", "smooth: epoch, ratios: measured"))
    world.policies = load(tmp_path)
    keeper, held = world.worker()
    await keeper.tick()
    price = held[-1].of(world.policies.tenants["acme"], "tiny")
    assert price is not None
    assert price.input_usd_per_mtok == Decimal("0.14")
    minute = {"prompt": 90_000, "cached": 10_000, "generation": 20_000, "prefill_ms": 50_000, "decode_ms": 50_000}
    keys = ReplicaKeys("a:1")
    await world.redis.hset(keys.engine(NOON), mapping={f"1|{name}": n for name, n in minute.items()})
    world.now_ms += 120_000
    await keeper.tick()
    price = held[-1].of(world.policies.tenants["acme"], "tiny")
    assert price is not None
    assert price.input_usd_per_mtok == price.output_usd_per_mtok / 4
