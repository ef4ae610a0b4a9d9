"""Prompts of 100,000 tokens back to back beside nine chatting tenants, on four engines as measured on an H200 with
vLLM's defaults: through the gateway's own dispatcher."""

from __future__ import annotations

import logging

import pytest

from gateway.simulator import PROFILES
from tests.simulation.long_prompts import LongWorld, chats
from tests.simulation.virtual_gateway import Asked, Front, Mtok, Open

H200 = PROFILES["h200-llama-8b"]
UNTIL_S, SINCE_S = 45.0, 15.0


def world(front: Front, others: list[Asked], *, together: int) -> LongWorld:
    return LongWorld(front, others, until_s=UNTIL_S, profiles=[H200] * 4, together=together, since_s=5.0)


def test_long_prompts_back_to_back_leave_nine_chatting_tenants_what_they_have_without_them() -> None:
    """At 10 chats a second and replica. Without the gateway the nine's slowest first tokens take seconds."""
    without = world(Mtok(), chats(40.0, seed=1, until_s=UNTIL_S), together=0).of(SINCE_S)
    beside = world(Mtok(), chats(40.0, seed=1, until_s=UNTIL_S), together=1)
    alone = world(Mtok(), [], together=1)
    seen = beside.of(SINCE_S)
    assert not seen.refused
    assert seen.ttft_s(0.99) <= 1.2 * without.ttft_s(0.99)
    assert seen.itl_s(0.99) <= 1.5 * without.itl_s(0.99)
    assert beside.long_per_s(SINCE_S) >= 0.8 * alone.long_per_s(SINCE_S) > 0.0
    unprotected = world(Open(), chats(40.0, seed=1, until_s=UNTIL_S), together=1).of(SINCE_S)
    assert unprotected.ttft_s(0.99) > 10 * without.ttft_s(0.99)


def on_one_replica(threshold: int) -> tuple[float, float, float]:
    """What 10 chats a second and long prompts back to back make of one engine: good chats a second, the p99 of their
    gaps in seconds, and long prompts a second."""
    profile = H200.override(long_prefill_token_threshold=threshold)
    others = chats(10.0, seed=1, until_s=100.0)
    seen = LongWorld(Mtok(), others, until_s=100.0, profiles=[profile], since_s=10.0)
    chatting = seen.of(20.0)
    return chatting.good_per_s, chatting.itl_s(0.99), seen.long_per_s(20.0)


def test_on_one_replica_the_engines_flag_decides_and_the_gateway_names_it(caplog: pytest.LogCaptureFixture) -> None:
    """With vLLM's defaults the two take turns. With a threshold of 512 others are read beside the long prompts, which
    the gateway finds out by itself, and nobody's tokens take longer than wanted."""
    with caplog.at_level(logging.WARNING, logger="gateway.dispatch"):
        good, gap_s, long_per_s = on_one_replica(0)
    (told,) = [one.getMessage() for one in caplog.records]
    assert "replica-0:8000" in told
    assert "--long-prefill-token-threshold 512" in told
    assert good >= 3.0
    assert gap_s > 0.3
    assert long_per_s >= 0.05
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="gateway.dispatch"):
        good, gap_s, long_per_s = on_one_replica(512)
    assert not caplog.records
    assert good >= 8.0
    assert gap_s <= 0.08
    assert long_per_s >= 0.08
