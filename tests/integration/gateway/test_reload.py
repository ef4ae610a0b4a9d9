"""Policies change under a gateway that serves."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, recording
from tests.integration.gateway.serving import ASKED, CHAT, Served, eventually, policies

RELOADS = {"reloads": True}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Puts another policy document in the place of the one that is served."""

    def write(document: dict[str, Any] | str) -> None:
        text = document if isinstance(document, str) else yaml.safe_dump(document)
        (tmp_path / "policies" / "policy.yaml").write_text(text)

    return write


async def metric(served: Served, line: str) -> bool:
    return line in (await served.get("/metrics")).body.decode()


async def test_a_changed_limit_holds_from_the_next_request_on(engine: Engine, start: Start, write: Any) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, settings=RELOADS)
    assert "x-ratelimit-limit-requests" not in (await served.post()).headers
    write(policies(engine, limits={"requests_per_minute": 1000}))

    async def limited() -> bool:
        return (await served.post()).headers.get("x-ratelimit-limit-requests") == "1000"

    await eventually(limited)
    await served.booked()
    prices = {event["price_epoch"] for event in await served.events()}
    assert len(prices) == 2, "each set of policies has prices of its own"


async def test_what_cannot_be_read_changes_nothing_and_is_told(
    engine: Engine, start: Start, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, settings=RELOADS, limits={"requests_per_minute": 1000})
    document = policies(engine, limits={"requests_per_minuet": 5})
    write(document)
    await eventually(lambda: metric(served, "mtok_policy_reload_failed 1.0"))
    assert "policy.yaml:" in caplog.text
    assert "requests_per_minute" in caplog.text, "what was meant"
    answer = await served.post()
    assert (answer.status, answer.headers["x-ratelimit-limit-requests"]) == (200, "1000")
    write(policies(engine, limits={"requests_per_minute": 5}))
    await eventually(lambda: metric(served, "mtok_policy_reload_failed 0.0"))
    assert (await served.post()).headers["x-ratelimit-limit-requests"] == "5"


async def test_a_key_that_is_taken_out_is_refused(engine: Engine, start: Start, write: Any) -> None:
    served = await start(engine, settings=RELOADS)
    assert (await served.get("/v1/models")).status == 200
    document = policies(engine)
    document["tenants"]["acme"]["keys"] = []
    write(document)

    async def refused() -> bool:
        return (await served.get("/v1/models")).status == 401

    await eventually(refused)


async def test_replicas_come_and_go_and_what_runs_ends(
    engine: Engine, second: Engine, start: Start, write: Any
) -> None:
    """The first is taken out while it answers: that answer arrives whole, the next ones come from the second."""
    go_on = asyncio.Event()

    async def slow(talk: Conversation, request: Received) -> None:
        await go_on.wait()
        await recording("chat").script()(talk, request)

    engine.scripts.append(slow)
    engine.script = second.script = recording("chat").script()
    served = await start(engine, settings=RELOADS)
    running_answer = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    write(policies(second))

    async def moved() -> bool:
        return (await served.post()).status == 200 and bool(second.received)

    await eventually(moved)
    go_on.set()
    assert (await running_answer).status == 200
    before = len(engine.received)
    assert [(await served.post()).status for _ in range(5)] == [200] * 5
    assert len(engine.received) == before


async def test_a_request_of_a_model_that_is_taken_out_meanwhile_is_served(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was admitted by the policies that had the model: its replicas and price are those."""
    engine.script = recording("chat").script()
    served = await start(engine)
    ledger, lifecycle = served.lifecycle.ledger, served.lifecycle
    reserve = ledger.reserve

    async def reserved(*asked: Any) -> Any:
        decision = await reserve(*asked)
        lifecycle.apply(replace(lifecycle.policies, models={}, tenants={}))
        return decision

    monkeypatch.setattr(ledger, "reserve", reserved)
    assert (await served.post()).status == 200
    assert (await served.event())["cost_nanousd"] > 0


async def test_a_request_whose_body_comes_after_a_reload_is_decided_by_the_new_policies(
    engine: Engine, start: Start, write: Any
) -> None:
    """All of it: what the answer says decided is what did."""
    engine.script = recording("chat").script()
    served = await start(engine, settings=RELOADS)
    async with served.connect() as client:
        content = json.dumps(ASKED).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {served.key}\r\ncontent-length: {len(content)}"
        )
        client.send(f"{head}\r\n\r\n".encode() + content[:10])
        await eventually(lambda: served.server.server_state.tasks)
        write(policies(engine, limits={"requests_per_minute": 1000}))
        await eventually(lambda: served.lifecycle.policies.tenants["acme"].limits.requests_per_minute == 1000)
        client.send(content[10:])
        answer = await client.answer()
    assert (answer.status, answer.headers["x-ratelimit-limit-requests"]) == (200, "1000")
    assert answer.headers["x-mtok-policy"] == served.lifecycle.policies.sha256[:12]
