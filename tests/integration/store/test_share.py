"""scripts/share.lua on a real Valkey: what gateway workers tell each other."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec
import pytest
import redis as sync_redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.admission import Told
from gateway.store import (
    Granted,
    Limited,
    ModelKeys,
    ShareReply,
    Wanted,
    load_script,
    packed_growth,
    share_call,
    share_reply,
    total_growth,
)
from tests.simulation.virtual_pool import Store

LIMITS = [("r1", 64, 5000, -1), ("r2", 10, 1024, 100_000)]


class Worker:
    """One that talks to the script."""

    def __init__(self, valkey: sync_redis.Redis, keys: ModelKeys) -> None:
        self.valkey = valkey
        self.keys = keys
        self.name = secrets.token_hex(6)
        self.number = 0
        self.after = ""
        self.limits = LIMITS
        self.sha1 = valkey.script_load(load_script("share").text.decode())

    def tells(self, growth: dict[str, float] | None = None, *, again: bool = False) -> dict[str, float]:
        """What it hears in exchange; `again`: it does not know whether the last one was heard."""
        self.number += 0 if again else 1
        reply = self.call(growth or {})
        self.after = reply.after
        return total_growth(reply.growths)

    def wants(self, sequences: int, *, lane: int = 0, replica: str = "r1") -> Granted:
        """What it is granted of one replica."""
        (granted,) = self.call({}, wants=[(replica, sequences, lane)]).grants
        return granted

    def call(
        self,
        growth: dict[str, float],
        *,
        told: str = "",
        limits: Sequence[Limited] = (),
        wants: Sequence[Wanted] = (),
    ) -> ShareReply:
        keys, arguments = share_call(
            self.keys,
            self.name,
            number=self.number,
            growth=packed_growth(growth),
            after=self.after,
            told=told.encode(),
            limits=limits or self.limits,
            wants=wants,
        )
        return share_reply(self.valkey.evalsha(self.sha1, len(keys), *keys, *arguments))

    def was_silent_for(self, ms: int) -> None:
        """Its last call was so much earlier, whatever the others do."""
        at_ms, *rest = msgspec.msgpack.decode(self.valkey.hget(self.keys.gateways, self.name))
        self.valkey.hset(self.keys.gateways, self.name, msgspec.msgpack.encode((at_ms - ms, *rest)))
        self.valkey.hincrby(self.keys.knee, "awake_ms", -60_000)
        if self.valkey.hget(self.keys.knee, "leader") == self.name.encode():
            self.valkey.hincrby(self.keys.knee, "until_ms", -ms)


def outage(worker: Worker, ms: int) -> None:
    """Nobody could reach Redis for so long."""
    names = worker.valkey.hkeys(worker.keys.gateways)
    for name in names:
        at_ms, *rest = msgspec.msgpack.decode(worker.valkey.hget(worker.keys.gateways, name))
        worker.valkey.hset(worker.keys.gateways, name, msgspec.msgpack.encode((at_ms - ms, *rest)))
    for field in ("until_ms", "called_ms", "awake_ms"):
        worker.valkey.hincrby(worker.keys.knee, field, -ms)


@pytest.fixture
def three(valkey: sync_redis.Redis) -> list[Worker]:
    keys = ModelKeys("m-" + secrets.token_hex(8))
    return [Worker(valkey, keys) for _ in range(3)]


def test_each_hears_once_what_the_others_gave(three: list[Worker]) -> None:
    a, b, c = three
    assert a.tells({"0 x": 10.0}) == {}
    assert b.tells({"0 x": 5.0, "0 y": 1.5}) == {"0 x": 10.0}
    assert a.tells({"0 x": -2.0}) == {"0 x": 5.0, "0 y": 1.5}
    assert a.tells() == {}
    assert b.tells() == {"0 x": -2.0}
    assert c.tells() == {"0 x": 13.0, "0 y": 1.5}
    assert [worker.tells() for worker in three] == [{}, {}, {}]


def test_what_is_told_again_counts_once(three: list[Worker]) -> None:
    a, b, _ = three
    a.tells({"0 x": 10.0})
    a.tells({"0 x": 10.0}, again=True)
    assert b.tells() == {"0 x": 10.0}
    a.tells({"0 x": 1.0})
    assert b.tells() == {"0 x": 1.0}


def test_after_redis_has_lost_everything_they_go_on(three: list[Worker], valkey: sync_redis.Redis) -> None:
    a, b, _ = three
    a.tells({"0 x": 10.0})
    b.tells()
    lost_at = valkey.time()
    valkey.delete(a.keys.given, a.keys.gateways, a.keys.knee)
    while valkey.time()[1] // 1000 == lost_at[1] // 1000:
        pass  # two entries of one millisecond are one to whoever has read the first
    a.tells({"0 x": 3.0})
    assert b.tells() == {"0 x": 3.0}


def test_where_redis_clock_went_back_nothing_more_than_that_is_missed(three: list[Worker]) -> None:
    a, b, _ = three
    b.after = "9999999999999-0"
    a.tells({"0 x": 10.0})
    b.tells()
    a.tells({"0 x": 3.0})
    assert b.tells() == {"0 x": 3.0}


def test_grants_are_never_above_the_limit_and_what_is_given_back_goes_to_who_wants_it(three: list[Worker]) -> None:
    a, b, c = three
    assert a.wants(64) == ("r1", 64, 0, 0)
    assert b.wants(32) == ("r1", 0, 0, 0)
    assert a.wants(40) == ("r1", 40, 0, 24)
    assert b.wants(32) == ("r1", 24, 0, 0)
    assert c.wants(5, replica="r2") == ("r2", 5, 0, 5)
    assert c.wants(8) == ("r1", 0, 0, 0)
    assert b.wants(20) == ("r1", 20, 0, 4)
    assert c.wants(8) == ("r1", 4, 0, 0)


def test_where_a_limit_falls_nobody_is_granted_more_until_all_have_given_way(three: list[Worker]) -> None:
    a, b, _ = three
    a.wants(32)
    b.wants(32)
    a.limits = [("r1", 40, 5000, -1)]
    assert a.call({}, wants=[("r1", 20, 0)]).grants == [("r1", 20, 0, 40 - 32 - 20)]
    assert b.wants(32) == ("r1", 32, 0, 40 - 20 - 32)
    assert a.wants(24) == ("r1", 20, 0, 40 - 32 - 20)
    assert b.wants(16) == ("r1", 16, 0, 4)


def test_one_at_a_time_has_the_lane_of_a_replica(three: list[Worker]) -> None:
    a, b, _ = three
    assert a.wants(1, lane=1)[2] == 1
    assert b.wants(1, lane=1)[2] == 0
    assert a.wants(1, lane=1)[2] == 1
    assert b.wants(1, lane=1, replica="r2")[2] == 1
    a.wants(1)
    assert b.wants(1, lane=1)[2] == 1


def test_one_leads_and_the_others_hear_its_limits(three: list[Worker]) -> None:
    a, b, _ = three
    assert a.call({}).leads == 1
    found = [("r1", 80, 6000, -1), ("r2", 10, 1024, 100_000)]
    assert a.call({}, limits=found).limits == found
    reply = b.call({}, limits=LIMITS)
    assert (reply.leads, reply.limits) == (0, found)
    assert reply.others == [(a.name, "")]


def test_who_takes_over_goes_on_from_what_the_last_one_found(three: list[Worker]) -> None:
    a, b, c = three
    found = [("r1", 80, 6000, -1)]
    a.call({}, limits=found)
    b.call({})
    a.was_silent_for(2600)
    reply = b.call({})
    assert (reply.leads, reply.limits, reply.others) == (1, found, [])
    assert c.call({}).leads == 0
    found = [("r1", 90, 6000, -1)]
    b.call({}, limits=found)
    assert a.call({}).limits == found


def test_whoever_is_silent_has_nothing_and_starts_again_from_nothing(three: list[Worker]) -> None:
    a, b, c = three
    a.call({"0 x": 1.0}, told="a's", wants=[("r1", 64, 1)])
    a.was_silent_for(2000)
    assert b.wants(64, lane=1) == ("r1", 0, 0, 0)
    a.was_silent_for(600)
    reply = b.call({}, wants=[("r1", 50, 1)])
    assert (reply.others, reply.grants) == ([], [("r1", 50, 1, 14)])
    assert a.wants(64) == ("r1", 14, 0, 0)
    assert {name for name, _ in c.call({}).others} == {a.name, b.name}


def test_after_an_outage_nobody_takes_what_the_others_have(three: list[Worker]) -> None:
    """They have all been silent; each has its time to speak again."""
    a, b, _ = three
    a.wants(32)
    b.wants(32)
    outage(a, 10 * 60_000)
    assert a.wants(64) == ("r1", 32, 0, 0)
    assert b.wants(32) == ("r1", 32, 0, 0)


wanted = st.tuples(st.sampled_from(["r1", "r2"]), st.integers(0, 80), st.integers(0, 1))
calls = st.lists(
    st.tuples(st.integers(0, 2), st.lists(wanted, max_size=2, unique_by=lambda want: want[0]), st.integers(4, 80)),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=calls)
def test_the_script_grants_what_its_model_does(
    valkey: sync_redis.Redis, calls: list[tuple[int, list[Wanted], int]]
) -> None:
    keys, store = ModelKeys("m-" + secrets.token_hex(8)), Store()
    crowd = [Worker(valkey, keys) for _ in range(3)]
    for number, wants, sequences in calls:
        limits = [("r1", sequences, 5000, -1), ("r2", 10, 1024, 100_000)]
        reply = crowd[number].call({}, limits=limits, wants=wants)
        model = store.call(crowd[number].name, Told({}, 0, 0, {}), limits, wants, 0)
        assert (reply.leads == 1, reply.limits, reply.grants) == (model.leads, model.limits, model.grants)
        assert {name for name, _ in reply.others} == set(model.others)


def test_nothing_is_left_of_workers_that_have_gone(three: list[Worker], valkey: sync_redis.Redis) -> None:
    a, b, _ = three
    a.tells({"0 x": 10.0})
    for key in (a.keys.given, a.keys.gateways, a.keys.knee):
        assert 0 < valkey.pttl(key) <= 3_600_000
    b.tells()
    a.was_silent_for(61_000)
    b.tells()
    assert valkey.hkeys(a.keys.gateways) == [b.name.encode()]


def test_a_models_keys_share_a_slot_that_no_tenant_has() -> None:
    keys = ModelKeys("org/name:tag")
    assert [keys.gateways, keys.given, keys.knee] == [
        f"mtok:{{model:org/name:tag}}:{name}" for name in ("gateways", "given", "knee")
    ]
