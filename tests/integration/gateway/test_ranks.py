"""Data-parallel ranks: several engines with caches of their own behind one address are places of their own."""

from __future__ import annotations

from typing import Any

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, Served


def ranked(engine: Engine, **more: Any) -> list[dict[str, Any]]:
    return [{"url": engine.url, **more}]


async def rank(served: Served, engine: Engine, words: str, **headers: str) -> str | None:
    """The rank that a request was sent to."""
    asked = ASKED | {"messages": [{"role": "user", "content": words * 2000}]}
    assert (await served.post(asked, **headers)).status == 200
    return engine.received[-1].headers.get("x-data-parallel-rank")


async def test_each_rank_is_a_place_and_a_warm_prefix_goes_back_to_its_own(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, replicas=ranked(engine, data_parallel_ranks=4))
    first = {words: await rank(served, engine, words) for words in "abcdefghijkl"}
    assert len(set(first.values())) > 1, "prompts that nobody has seen are spread by their hash"
    assert set(first.values()) <= {"0", "1", "2", "3"}
    assert {words: await rank(served, engine, words) for words in first} == first
    await served.booked()
    events = await served.events(at_least=24)
    assert {event["replica"] for event in events} == {engine.name}, "audited by the address, whose page sums its ranks"


async def test_ranks_are_numbered_over_all_nodes(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, replicas=ranked(engine, data_parallel_ranks=2, data_parallel_start_rank=6))
    assert {await rank(served, engine, words) for words in "abcdefgh"} <= {"6", "7"}


async def test_without_ranks_nothing_is_said_of_them_whatever_a_client_sends(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    served = await start(engine)
    assert await rank(served, engine, "a", x_data_parallel_rank="3") is None
