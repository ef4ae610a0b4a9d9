"""`reserve: sliced`: what a request holds is what it will use soon, and a budget is used up without being overrun."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from gateway.simulator import PROFILES
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, as_stream
from tests.integration.gateway.serving import CHAT, Served, eventually
from tests.integration.gateway.test_exact import counted, simulated
from tests.integration.gateway.test_relay import DONE, RUNNING_USAGE, chunk

INSTANT = PROFILES["instant"]
PACED = replace(INSTANT, steps=replace(INSTANT.steps, decode_base_ms=1.0))
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
STREAMED = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
OUTPUT_NANOUSD = 1000
"""Of a token at 1 dollar per million, as `PRICE` has it."""


def sliced(budget_usd: str, **limits: Any) -> dict[str, Any]:
    return {"budget_usd": float(budget_usd), "reserve": "sliced", **limits}


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The stream's events but `[DONE]`, which ends it."""
    *events, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


async def budget(served: Served) -> dict[str, Decimal]:
    left = (await served.usage())["limits"]["budget_usd"]
    return {name: Decimal(left[name]) for name in ("spent_usd", "reserved_usd", "remaining_usd")}


async def test_an_agent_that_asks_for_much_and_uses_little_locks_nobody_out(start: Start) -> None:
    """The most that one of these can use is more than the whole budget; three at once run all the same, and while they
    do they hold a slice each."""
    async with simulated(PACED) as engine:
        served = await start(engine, limits=sliced("0.002"))
        body = STREAMED | {"max_tokens": 4000, "ignore_eos": False, "stop": None}
        clients = [served.connect() for _ in range(3)]
        connected = [await client.__aenter__() for client in clients]
        for client in connected:
            client.post(CHAT, body, key=served.key)
        await eventually(lambda: served.lifecycle.telemetry.metrics.running == 3)
        held = (await budget(served))["reserved_usd"]
        assert Decimal("0.0007") < held < Decimal("0.002"), "each holds 256 tokens and its prompt"
        for client in clients:
            await client.__aexit__(None, None, None)
        await eventually(lambda: served.lifecycle.idle)
        await served.booked()
        assert (await budget(served))["reserved_usd"] == 0, "what they held is back"


async def test_a_stream_goes_on_to_the_end_of_the_budget_and_ends_there_properly(start: Start) -> None:
    """The last event says `length`, the usage is told as asked for, the engine stops, and not a cent is overrun."""
    async with simulated(PACED) as engine:
        served = await start(engine, limits=sliced("0.001"))
        answer = await served.post(STREAMED | {"max_tokens": 4000})
        assert answer.status == 200
        *tokens, end, told = events_of(answer.body)
        assert end["choices"][0] == {"index": 0, "logprobs": None, "finish_reason": "length", "delta": {}}
        assert end["id"] == told["id"] == tokens[-1]["id"]
        event = await served.event()
        assert (event["status"], event["code"]) == ("ok", "budget_reached")
        assert told["usage"]["completion_tokens"] == event["usage"]["output_tokens"]
        assert told["usage"]["prompt_tokens"] == event["usage"]["input_tokens"]
        assert "estimated" not in event
        said = [one for one in tokens if one["choices"] and one["choices"][0]["delta"].get("content")]
        assert len(said) == event["usage"]["output_tokens"], "the client has had what is billed"
        assert 1_000_000 - OUTPUT_NANOUSD < event["cost_nanousd"] <= 1_000_000
        assert (await budget(served))["reserved_usd"] == 0

        async def stopped() -> bool:
            return (await counted([engine]))["running"] == 0

        await eventually(stopped)
        refused = await served.post(STREAMED | {"max_tokens": 4000})
        assert (refused.status, refused.json["error"]["code"]) == (429, "insufficient_quota")


async def test_an_answer_that_is_not_streamed_is_cut_to_what_the_budget_allows(start: Start) -> None:
    """Its engine is told so: it gets a whole, valid answer that ends with `length`."""
    async with simulated(INSTANT) as engine:
        served = await start(engine, limits=sliced("0.001"))
        answer = await served.post(ASKED | {"max_tokens": 4000})
        assert answer.status == 200
        assert answer.json["choices"][0]["finish_reason"] == "length"
        event = await served.event()
        assert event["usage"]["output_tokens"] == answer.json["usage"]["completion_tokens"] > 500
        assert 900_000 < event["cost_nanousd"] <= 1_000_000


async def test_while_another_holds_what_is_left_it_is_worth_coming_back(start: Start) -> None:
    """A whole answer holds all there is and uses little of it: who comes meanwhile is not told that the budget is
    spent, and is served later."""
    async with simulated(replace(INSTANT, steps=replace(INSTANT.steps, decode_base_ms=5.0))) as engine:
        served = await start(engine, limits=sliced("0.001"))
        first = asyncio.create_task(served.post(ASKED | {"max_tokens": 4000, "ignore_eos": False}))
        await eventually(lambda: served.lifecycle.telemetry.metrics.running == 1)
        refused = await served.post(ASKED | {"max_tokens": 4000})
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after-ms"] == "1000"
        assert (await first).status == 200
        await served.booked()
        assert (await served.post(ASKED | {"max_tokens": 4000})).status == 200


async def test_many_at_once_use_the_budget_up_and_no_more(start: Start) -> None:
    """Streams and whole answers together, by two gateways, until nothing is left: overrun 0, unused less than 5 %."""
    async with simulated(INSTANT) as engine:
        spenders = [await start(engine, limits=sliced("0.003")) for _ in range(2)]

        async def spend(number: int) -> None:
            body = (STREAMED if number % 3 else ASKED) | {"max_tokens": 40 + 12 * number}
            while True:
                answer = await spenders[number % 2].post(body)
                assert answer.status in (200, 429), answer.body
                if answer.status == 429 and answer.json["error"]["code"] == "insufficient_quota":
                    return
                if answer.status == 429:
                    await asyncio.sleep(0.2)  # what others hold comes back when they end

        await asyncio.gather(*(spend(number) for number in range(16)))
        for one in spenders:
            await one.booked()
        billed = sum(event.get("cost_nanousd", 0) for event in await spenders[0].events())
        left = await budget(spenders[0])
        assert (left["spent_usd"] * 10**9, left["reserved_usd"]) == (billed, 0)
        assert 2_850_000 <= billed <= 3_000_000


async def test_an_engine_that_does_not_count_as_it_goes_is_held_to_the_worst(engine: Engine, start: Start) -> None:
    """What an event may have cost is not known, so all that the answer can use is held before the first one is sent."""
    events = [RUNNING_USAGE.sub(b"", chunk(0, text, 9, 1)) for text in ("a", "b")]
    engine.script = as_stream(*events, DONE)
    served = await start(engine, limits=sliced("0.0011"))
    rich = await served.post(STREAMED | {"max_tokens": 300})
    assert rich.body == b"".join(events) + DONE
    poor = await served.post(STREAMED | {"max_tokens": 4000})
    end, told = events_of(poor.body)
    assert end["choices"][0]["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("reserve", ["worst_case", "sliced"])
async def test_a_days_tokens_are_held_as_the_policy_says(start: Start, reserve: str) -> None:
    """The worst case refuses what could use more than is left; slices let it run to where the limit is."""
    async with simulated(INSTANT) as engine:
        served = await start(engine, limits={"tokens_per_day": 1500, "reserve": reserve})
        answer = await served.post(STREAMED | {"max_tokens": 3000})
        if reserve == "worst_case":
            assert (answer.status, answer.json["error"]["code"]) == (429, "rate_limit_exceeded")
            return
        usage = (await served.event())["usage"]
        assert usage["input_tokens"] + usage["output_tokens"] == 1500
