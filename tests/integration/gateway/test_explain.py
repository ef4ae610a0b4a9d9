"""`mtok policy explain` beside a gateway that serves: what it says is what the gateway then does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.wire import Endpoint, parse
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, Served, StoppedClock

LIMITS = {"usd_per_day": 0.0006, "tokens_per_minute": 60, "output_tokens_per_minute": 1000, "concurrent_requests": 4}


@pytest.fixture
def explain(valkey_url: str, tmp_path: Path) -> Any:
    """The command on the served policies."""

    def run(served: Served, *arguments: str) -> Result:
        at = str(served.gateway.clock.now_ms() // 1000)
        asked = ["policy", "explain", "--policies", str(tmp_path / "policies"), "--tenant", "acme", "--at", at]
        return CliRunner().invoke(app, [*asked, *arguments], env={"MTOK_REDIS_URL": valkey_url})

    async def beside(*arguments: Any) -> Result:
        return await asyncio.to_thread(run, *arguments)

    return beside


def chat_of(prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """A chat whose prompt is so many tokens of 4 bytes, as the gateway estimates it."""
    body = ASKED | {"max_tokens": max_tokens, "messages": [{"role": "user", "content": ""}]}
    empty = len(parse(Endpoint.CHAT, json.dumps(body).encode()).prompt)
    return body | {"messages": [{"role": "user", "content": "x" * (4 * prompt_tokens - empty)}]}


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens"),
    [(20, 20), (20, 30), (20, 41), (20, 61), (250, 20), (20, 900), (40, 4)],
)
async def test_it_says_what_the_gateway_does(
    engine: Engine, start: Start, explain: Any, prompt_tokens: int, max_tokens: int
) -> None:
    """Before any request, and after one that used some of every limit: the same verdict, the same words to the client,
    the same numbers in the event."""
    engine.script = recording("chat").script()
    engine.prompt_tokens = prompt_tokens
    served = await start(engine, clock=StoppedClock(), limits=LIMITS)
    sizes = ("--prompt-tokens", str(prompt_tokens), "--max-tokens", str(max_tokens))
    for _ in range(3):
        told = await explain(served, "--model", "tiny", *sizes, "--json")
        answer = await served.post(chat_of(prompt_tokens, max_tokens))
        found = json.loads(told.stdout)
        assert (told.exit_code, found["served"]) == ((0, True) if answer.status == 200 else (1, False))
        if answer.status != 200:
            assert (found["code"], found["message"]) == (answer.error["code"], answer.error["message"])
            by = (await served.get(f"/v1/usage/requests/{answer.headers['x-request-id']}")).json["refused_by"]
            assert (by["dimension"], by["asked"]) == (found["decided_by"]["dimension"], found["decided_by"]["asked"])
        await served.booked()
        assert found["policy"] == answer.headers["x-mtok-policy"]


async def test_a_way_it_names_is_a_way(engine: Engine, start: Start, explain: Any) -> None:
    """The longest answer it says would pass is served, one token more is refused; asking has taken nothing."""
    engine.script = recording("chat").script()
    served = await start(engine, clock=StoppedClock(), limits=LIMITS)
    told = await explain(served, "--model", "tiny", "--prompt-tokens", "20", "--max-tokens", "500", "--json")
    [way] = [way for way in json.loads(told.stdout)["would_pass"] if way.startswith("max_tokens of at most ")]
    fits = int(way.split()[-1])
    assert fits == 40
    assert (await served.post(chat_of(20, fits + 1))).status == 429
    assert (await served.post(chat_of(20, fits))).status == 200


async def test_the_table_shows_each_rule_and_the_verdict(engine: Engine, start: Start, explain: Any) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, clock=StoppedClock(), limits=LIMITS)
    assert (await served.post()).status == 200
    await served.booked()
    shown = await explain(served, "--model", "small", "--prompt-tokens", "20", "--max-tokens", "50")
    lines = shown.stdout.splitlines()
    rates = next(line for line in lines if "  tokens_per_minute" in line)
    assert rates.split() == [
        *("reserve", "tokens_per_minute", "the", "tenant", "60", "tokens", "43", "tokens", "70", "tokens", "REFUSES")
    ]
    assert any(line.startswith("At ") and line.endswith("limits as Redis has them.") for line in lines)
    assert any(line.startswith("REFUSED: rate_limit_exceeded. Request too large") for line in lines)
    assert "Would pass: max_tokens of at most 23" in lines


async def test_a_keys_own_limit_is_read_too(engine: Engine, start: Start, explain: Any) -> None:
    """With that key it refuses, with another it does not; audited ones are shown and refuse nobody."""
    engine.script = recording("chat").script()
    engine.prompt_tokens = 20
    limits = {"tokens_per_day": 50, "requests_per_minute": {"limit": 1, "mode": "audit"}}
    served = await start(engine, clock=StoppedClock(), key={"limits": limits})
    assert (await served.post(chat_of(20, 20))).status == 200
    assert (await served.post(chat_of(20, 20))).status == 429
    await served.booked()
    asked = (served, "--model", "tiny", "--prompt-tokens", "20", "--max-tokens", "20", "--json")
    told = json.loads((await explain(*asked, "--key", "acme")).stdout)
    rules = {rule["dimension"]: rule for rule in told["rules"] if rule["scope"] == "key acme"}
    assert told["decided_by"] == rules["tokens_per_day"]
    assert (rules["tokens_per_day"]["remaining"], rules["tokens_per_day"]["asked"]) == (50 - 17, 80 + 256 + 20)
    assert rules["requests_per_minute"]["passes"] is None
    assert json.loads((await explain(*asked, "--key", "another")).stdout)["served"]


async def test_slices_let_pass_what_the_worst_case_would_not(engine: Engine, start: Start, explain: Any) -> None:
    """A budget for 90 tokens of an answer: one that is not streamed is cut to them, a stream holds them as it goes."""
    engine.script = recording("chat").script()
    engine.prompt_tokens = 20
    limits = {"usd_per_day": 0.0001, "reserve": "sliced"}
    served = await start(engine, clock=StoppedClock(), limits=limits)
    asked = (served, "--model", "tiny", "--prompt-tokens", "20", "--max-tokens", "500", "--json")
    for flags, text in (
        ((), "sliced: no more could be held, so the engine is told to answer with at most 90 tokens"),
        (("--stream",), "sliced: 90 tokens of the answer are held, more as it grows"),
    ):
        told = json.loads((await explain(*asked, *flags)).stdout)
        assert told["served"]
        assert [rule["text"] for rule in told["rules"] if rule["dimension"] == "reserve"] == [text]
    assert (await served.post(chat_of(20, 500))).status == 200
    assert engine.only.json["max_tokens"] == 90
