"""Limits of every scope and mode through sockets: who is refused and by whose limit, and what only is told."""

from __future__ import annotations

import re
from typing import Any

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import PRICE, MovedClock, Served, StoppedClock, key_of

SOFT = "x-mtok-soft-limit"
REQUESTS = {"requests_per_minute": 2}
DEAR = PRICE | {"output_usd_per_mtok": 1000}
"""A recorded chat costs $0.0125."""


def soft(limit: float) -> dict[str, Any]:
    return {"limit": limit, "mode": "soft"}


async def metric(served: Served, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values by those of its labels, in the order of their names."""
    lines = (await served.get("/metrics")).body.decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(name + "{")]
    return {tuple(re.findall(r'"([^"]*)"', labels)): float(value) for labels, value in found}


async def used(served: Served) -> dict[tuple[str, ...], float]:
    """Of soft limits, by dimension, `of` and scope."""
    return await metric(served, "mtok_soft_limit_used_ratio")


async def audited(served: Served) -> dict[tuple[str, ...], float]:
    """By dimension, `of`, scope and tenant."""
    return await metric(served, "mtok_audited_refusals_total")


async def test_a_soft_limit_is_told_from_half_on_and_refuses_nothing(engine: Engine, start: Start) -> None:
    """A header for the client and a gauge for the operator; a minute after the last request the gauge is back at 0."""
    engine.script = recording("chat").script()
    clock = MovedClock()
    served = await start(engine, limits={"requests_per_minute": soft(4)}, clock=clock)
    answers = [await served.post() for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert [answer.headers.get(SOFT) for answer in answers] == [
        None,
        "requests_per_minute 50%",
        "requests_per_minute 75%",
        "requests_per_minute 100%",
        "requests_per_minute 125%",
    ]
    assert "x-ratelimit-limit-requests" not in answers[0].headers, "clients would stop before it"
    assert await used(served) == {("requests_per_minute", "acme", "tenant"): 1.25}
    clock.advance_ms(59_999)
    assert await used(served) == {("requests_per_minute", "acme", "tenant"): 1.25}
    clock.advance_ms(1)
    assert await used(served) == {("requests_per_minute", "acme", "tenant"): 0.0}


async def test_a_soft_budget_is_told_until_its_period_ends(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    clock = MovedClock()
    served = await start(engine, limits={"usd_per_day": soft(0.02)}, clock=clock, price=DEAR)
    for _ in range(2):
        answer = await served.post()
        await served.booked()
    assert answer.headers[SOFT] == "usd_per_day 62%"
    clock.advance_ms(86_400_000 - clock.now_ms() % 86_400_000 - 1)
    assert await used(served) == {("usd_per_day", "acme", "tenant"): 0.62}
    clock.advance_ms(1)
    assert await used(served) == {("usd_per_day", "acme", "tenant"): 0.0}
    assert SOFT not in (await served.post()).headers


async def test_a_client_is_told_of_its_keys_and_its_groups_limits_and_not_of_the_fleets(
    engine: Engine, start: Start
) -> None:
    """Also when another limit refuses: how full the soft ones are then. Models' and the fleet's are in the metric."""
    engine.script = recording("chat").script()
    served = await start(
        engine,
        clock=StoppedClock(),
        limits={"requests_per_minute": 1},
        key={"limits": {"concurrent_requests": soft(2)}},
        tenant={"group": "labs"},
        top={
            "groups": {"labs": {"limits": {"requests_per_minute": soft(2)}}},
            "fleet": {"limits": {"requests_per_minute": soft(1)}},
        },
    )
    first, refused = await served.post(), await served.post()
    assert (first.status, refused.status) == (200, 429)
    assert first.headers[SOFT] == "key acme concurrent_requests 50%, group labs requests_per_minute 50%"
    assert refused.headers[SOFT] == "group labs requests_per_minute 50%"
    assert await used(served) == {
        ("concurrent_requests", "acme", "key"): 0.5,
        ("requests_per_minute", "labs", "group"): 0.5,
        ("requests_per_minute", "", "fleet"): 1.0,
    }


async def test_what_an_audited_limit_would_refuse_is_served_and_counted(engine: Engine, start: Start) -> None:
    """The client sees nothing of it."""
    engine.script = recording("chat").script()
    audit = {"limit": 1, "mode": "audit"}
    served = await start(
        engine,
        clock=StoppedClock(),
        limits={"requests_per_minute": audit},
        top={"fleet": {"limits": {"requests_per_minute": audit}}},
    )
    answers = [await served.post() for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert all(SOFT not in answer.headers for answer in answers)
    assert await audited(served) == {
        ("requests_per_minute", "acme", "tenant", "acme"): 2.0,
        ("requests_per_minute", "", "fleet", "acme"): 2.0,
    }
    assert await metric(served, "mtok_denied_requests_total") == {}


async def test_a_candidate_tells_what_it_would_refuse_beyond_the_limit_beside_it(engine: Engine, start: Start) -> None:
    """Four requests: 3 would be served by the limit, 1 by the candidate; what the limit refuses is not its doing."""
    engine.script = recording("chat").script()
    limits = {"requests_per_minute": {"limit": 3, "candidate": 1}}
    served = await start(engine, clock=StoppedClock(), limits=limits)
    assert [(await served.post()).status for _ in range(4)] == [200, 200, 200, 429]
    assert await audited(served) == {("requests_per_minute", "acme", "tenant", "acme"): 2.0}


async def test_two_tenants_share_their_groups_limit(engine: Engine, start: Start) -> None:
    """One uses it up, the other is refused, and is told whose limit that is."""
    engine.script = recording("chat").script()
    document = {"tenant": {"group": "labs"}, "top": {"groups": {"labs": {"limits": REQUESTS}}}}
    served = await start(engine, clock=StoppedClock(), rival={"group": "labs"}, rival_uses="tiny", **document)
    assert [(await served.post()).status for _ in range(2)] == [200, 200]
    refused = await served.post(key=key_of("rival"))
    assert refused.status == 429
    assert "2 requests per minute for group labs, 0 left" in refused.json["error"]["message"]
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert (await served.events("rival"))[-1]["refused_by"]["scope"] == "group labs"


async def test_limits_of_a_model_and_of_the_fleet_are_of_all_tenants(engine: Engine, start: Start) -> None:
    """Each is named in the 429 of whoever comes too late."""
    engine.script = recording("chat").script()
    for name, document in (
        ("model tiny", {"model_limits": REQUESTS}),
        ("the fleet", {"top": {"fleet": {"limits": REQUESTS}}}),
    ):
        served = await start(engine, clock=StoppedClock(), rival_uses="tiny", **document)
        await served.redis.flushall()
        assert (await served.post()).status == 200
        assert (await served.post(key=key_of("rival"))).status == 200
        for key in ("acme", "rival"):
            refused = await served.post(key=key_of(key))
            assert refused.status == 429
            assert f"2 requests per minute for {name}, 0 left" in refused.json["error"]["message"]
