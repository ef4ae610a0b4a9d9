"""However a request ends, its place and its money are free for the next one; and what asks for no GPU takes neither."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, Script, as_json, dies, recording, says_nothing
from tests.integration.gateway.serving import ASKED, CHAT, eventually

ONE = {"concurrent_requests": 1}
TIMES = 3


@pytest.mark.parametrize(
    "failure",
    [
        dies,
        as_json({"error": {"message": "out of memory"}}, status=500),
        as_json({"error": {"message": "no"}}, status=502),
        as_json({"error": {"message": "too late"}}, status=504),
    ],
    ids=["dies", "500", "502", "504"],
)
async def test_an_engine_that_fails_leaves_no_place_taken(engine: Engine, start: Start, failure: Script) -> None:
    engine.scripts.extend([failure] * TIMES)
    engine.script = recording("chat").script()
    served = await start(engine, limits=ONE)
    assert [(await served.post()).status for _ in range(TIMES)] == [502] * TIMES
    assert (await served.post()).status == 200


@pytest.mark.parametrize("body", [ASKED, ASKED | {"stream": True}], ids=["whole", "streamed"])
async def test_clients_that_hang_up_leave_no_place_taken(engine: Engine, start: Start, body: dict[str, Any]) -> None:
    engine.scripts.extend([says_nothing] * TIMES)
    engine.script = recording("chat").script()
    served = await start(engine, limits=ONE)
    for number in range(1, TIMES + 1):
        async with served.connect() as client:
            client.post(CHAT, body, key=served.key)
            await eventually(lambda number=number: len(engine.received) == number)
        assert len(await served.events(at_least=number)) == number
    assert (await served.post()).status == 200


@pytest.mark.parametrize("body", [b"{", {"model": "tiny"}, {"model": "no such model", "messages": []}, []])
async def test_what_is_no_request_takes_no_place(engine: Engine, start: Start, body: Any) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, limits=ONE | {"requests_per_minute": 1})
    for _ in range(TIMES):
        assert (await served.post(body)).status in (400, 404)
    assert (await served.post()).status == 200


async def test_what_asks_for_no_gpu_takes_nothing(engine: Engine, start: Start) -> None:
    """Lists and usage are free."""
    engine.script = recording("chat").script()
    served = await start(engine, limits=ONE | {"requests_per_minute": 1, "tokens_per_minute": 500})
    for path in ("/v1/models", "/v1/usage") * TIMES:
        assert (await served.get(path, key=served.key)).status == 200
    assert (await served.post()).status == 200
    assert (await served.post()).status == 429


async def test_a_messages_request_spends_what_it_is_billed(engine: Engine, start: Start) -> None:
    """The account and the event agree, in every dialect, and nothing more is held when all has ended."""
    engine.script = recording("messages").script()
    served = await start(engine, limits={"budget_usd": 1})
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    for _ in range(TIMES):
        assert (await served.post(body, "/v1/messages")).status == 200
    billed = sum(event["cost_nanousd"] for event in await served.events(at_least=TIMES))
    budget = (await served.usage())["limits"]["budget_usd"]
    assert billed > 0
    assert round(float(budget["spent_usd"]) * 1e9) == billed
    assert float(budget["reserved_usd"]) == 0


@pytest.mark.parametrize(
    "asked",
    [{"n": 2, "max_tokens": 200}, {"max_tokens": 10, "max_completion_tokens": 400}],
    ids=["n", "the other field"],
)
async def test_a_budget_is_reserved_for_all_that_the_engine_will_make(
    engine: Engine, start: Start, asked: dict[str, Any]
) -> None:
    """Every answer, and the longest that the engine would take the request to allow. 200 tokens would fit."""
    engine.script = recording("chat").script()
    served = await start(engine, limits={"budget_usd": 0.0003})
    assert (await served.post(ASKED | asked)).error["code"] == "insufficient_quota"
    assert (await served.post(ASKED | {"n": 1, "max_tokens": 200})).status == 200
