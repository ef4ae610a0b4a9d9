"""scripts/share.lua on a real Valkey: what gateway workers tell each other."""

from __future__ import annotations

import secrets

import pytest
import redis as sync_redis

from gateway.store import (
    ModelKeys,
    ShareReply,
    load_script,
    packed_growth,
    share_call,
    share_reply,
    total_growth,
)


class Worker:
    """One that talks to the script."""

    def __init__(self, valkey: sync_redis.Redis, keys: ModelKeys) -> None:
        self.valkey = valkey
        self.keys = keys
        self.name = secrets.token_hex(6)
        self.number = 0
        self.after = ""
        self.sha1 = valkey.script_load(load_script("share").text.decode())

    def tells(self, growth: dict[str, float] | None = None, *, again: bool = False) -> dict[str, float]:
        """What it hears in exchange; `again`: it does not know whether the last one was heard."""
        self.number += 0 if again else 1
        reply = self.call(growth or {})
        self.after = reply.after
        return total_growth(reply.growths)

    def call(self, growth: dict[str, float]) -> ShareReply:
        keys, arguments = share_call(
            self.keys, self.name, number=self.number, growth=packed_growth(growth), after=self.after
        )
        return share_reply(self.valkey.evalsha(self.sha1, len(keys), *keys, *arguments))


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
    valkey.delete(a.keys.given, a.keys.gateways)
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


def test_nothing_is_left_of_workers_that_have_gone(three: list[Worker], valkey: sync_redis.Redis) -> None:
    three[0].tells({"0 x": 10.0})
    for key in (three[0].keys.given, three[0].keys.gateways):
        assert 0 < valkey.pttl(key) <= 60_000


def test_a_models_keys_share_a_slot_that_no_tenant_has() -> None:
    keys = ModelKeys("org/name:tag")
    assert {keys.gateways, keys.given} == {"mtok:{model:org/name:tag}:gateways", "mtok:{model:org/name:tag}:given"}
