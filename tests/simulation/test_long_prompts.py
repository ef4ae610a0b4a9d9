"""Prompts of 100,000 tokens back to back beside nine chatting tenants, on four engines as measured on an H200 with
vLLM's defaults: through the gateway's own dispatcher."""

from __future__ import annotations

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
