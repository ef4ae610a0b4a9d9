"""Strategies by policy, through a gateway: sessions by header and user, and what a shadow strategy tells."""

from __future__ import annotations

from typing import Any

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, Served, eventually


async def place(served: Served, engines: tuple[Engine, ...], body: Any = ASKED, **headers: str) -> int:
    """The engine that a request went to, by its place."""
    before = [len(engine.received) for engine in engines]
    assert (await served.post(body, **headers)).status == 200
    return next(index for index, engine in enumerate(engines) if len(engine.received) > before[index])


def asked(words: str, **more: str) -> dict[str, Any]:
    return ASKED | {"messages": [{"role": "user", "content": words}]} | more


async def test_a_session_goes_to_its_replica_at_every_gateway(engine: Engine, second: Engine, start: Start) -> None:
    engines = engine, second
    for one in engines:
        one.script = recording("chat").script()
    routing = {"strategy": "session", "session_header": "X-Chat"}
    gateways = [await start(*engines, routing=routing), await start(*engines, routing=routing)]
    by_header = [
        {
            await place(served, engines, asked(f"turn {number}"), x_chat=f"{chat}")
            for number, served in enumerate(gateways)
        }
        for chat in range(20)
    ]
    assert all(len(places) == 1 for places in by_header), "whatever it asks"
    assert len(set().union(*by_header)) == 2, "sessions are spread"
    by_user = [
        {
            await place(served, engines, asked(f"turn {number}", user=f"u{user}"))
            for number, served in enumerate(gateways)
        }
        for user in range(4)
    ]
    assert all(len(places) == 1 for places in by_user)


async def test_a_shadow_strategy_is_scored_in_the_metrics(engine: Engine, second: Engine, start: Start) -> None:
    engines = engine, second
    for one in engines:
        one.script = recording("chat").script()
    served = await start(*engines, routing={"strategy": "round_robin", "shadow": "prefix"})
    words = "the same long beginning of every prompt " * 100
    places = [await place(served, engines, asked(words)) for _ in range(6)]
    assert places[::2] == [places[0]] * 3
    assert places[1::2] == [1 - places[0]] * 3, "the shadow decides nothing"

    async def told() -> str:
        page = (await served.get("/metrics")).body.decode()
        return page if 'mtok_shadow_requests_total{model="tiny",to="elsewhere"} 3.0' in page else ""

    page = await eventually(told)
    tokens = {
        kind: float(line.rpartition(" ")[2])
        for kind in ("all", "cached_taken", "cached_shadow")
        for line in page.splitlines()
        if line.startswith(f'mtok_shadow_input_tokens_total{{kind="{kind}",model="tiny"}}')
    }
    assert tokens["cached_shadow"] > tokens["cached_taken"] > 0
    assert tokens["all"] > tokens["cached_shadow"]
    assert 'mtok_shadow_ttft_seconds_total{kind="shadow",model="tiny"}' in page
