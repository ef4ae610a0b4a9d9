"""Streams whose replica dies in the middle: the client sees one ordinary stream, and pays for each token once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from gateway import failover
from gateway.fleet import Health
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine
from tests.integration.gateway.serving import CHAT, Served, eventually
from tests.integration.gateway.test_exact import PACED, simulated
from tests.integration.gateway.test_relay import DONE

TOKENS = 9
CHATS = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": TOKENS}
STREAMED = CHATS | {"stream": True, "ignore_eos": True}
USAGE = {"stream_options": {"include_usage": True}}
RUNNING = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
IDS_OF_A_CHAT = [2, 700, 701, 702, 5]


@dataclass
class Fleet:
    """A gateway before simulated replicas, of which one answers the next request: the prompt is warm there."""

    served: Served
    engines: list[Engine]
    http: httpx.AsyncClient

    async def fault(self, engine: Engine, **fault: Any) -> None:
        """From now on."""
        await self.http.post(f"{engine.url}/simulator/faults", json=fault)

    def named(self, name: str) -> Engine:
        return next(engine for engine in self.engines if engine.name == name)

    async def stream(self, body: Any, path: str = CHAT, **headers: str) -> list[dict[str, Any]]:
        """The events of a stream that ends as it should."""
        answer = await self.served.post(body, path, **headers)
        assert answer.status == 200, answer.body
        assert answer.body.endswith(DONE), answer.body[-500:]
        return [json.loads(event[6:]) for event in answer.body.removesuffix(DONE).split(b"\n\n")[:-1]]

    async def event(self, request_id: str) -> dict[str, Any]:
        """The request's only event."""

        async def found() -> list[dict[str, Any]]:
            return [event for event in await self.served.events() if event["id"] == request_id]

        events: list[dict[str, Any]] = await eventually(found)
        assert len(events) == 1
        return events[0]


@pytest.fixture
async def fleet(start: Start, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Two replicas, which are forgiven every death."""
    monkeypatch.setattr(Health, "fault", lambda *_, **__: None)
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(simulated(PACED)) for _ in range(2)]
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        yield Fleet(await start(*engines), engines, http)


def said(events: list[dict[str, Any]]) -> str:
    """The answer's text."""
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def shape(events: list[dict[str, Any]]) -> list[Any]:
    """What a client may look at, but for the id, the time and how the text is cut: these are the stream's own."""
    assert len({(event["id"], event["created"], event["object"], event["model"]) for event in events}) == 1
    roles = [event for event in events if event["choices"] and event["choices"][0].get("delta", {}).get("role")]
    ends = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    usages = [event["usage"] for event in events if event.get("usage") and not event["choices"]]
    for usage in usages:
        usage.pop("prompt_tokens_details", None)
    ids = [one for event in events for choice in event["choices"] for one in choice.get("token_ids") or ()]
    prompts = [event["prompt_token_ids"] for event in events if event.get("prompt_token_ids")]
    return [said(events), len(roles), ends, usages, ids, prompts, len([e for e in events if not e["choices"]])]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        (USAGE, CHAT),
        (RUNNING, CHAT),
        ({"return_token_ids": True}, CHAT),
        ({"messages": None, "prompt": IDS_OF_A_CHAT} | USAGE, "/v1/completions"),
    ],
    ids=["by token ids", "by text", "with ids asked for", "completions"],
)
async def test_a_replica_that_dies_anywhere(
    fleet: Fleet, changes: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each of its events in turn: text, end, usage and ids are those of the unbroken stream, and the bill
    is its bill; what the second replica had to read again is the platform's."""
    if changes is RUNNING:
        monkeypatch.setattr(failover, "IDS_PROMPT_MAX_TOKENS", 0)
    body = {name: value for name, value in (STREAMED | changes).items() if value is not None}
    whole = await fleet.stream(body, path, x_request_id="whole")
    expected, bill = shape(whole), await fleet.event("whole")
    first = fleet.named(bill["replica"])
    for position in range(len(whole) + 1):
        for engine in fleet.engines:
            await fleet.fault(engine)
        await fleet.fault(first, kind="die", after_chunks=position, times=1)
        broken = await fleet.stream(body, path, x_request_id=f"cut-{position}")
        assert shape(broken) == expected, position
        event = await fleet.event(f"cut-{position}")
        assert event["status"] == "ok"
        assert event["usage"]["input_tokens"] == bill["usage"]["input_tokens"]
        assert event["usage"]["output_tokens"] == TOKENS
        if not event.get("continued"):
            continue
        (lost,) = event["failed_attempts"]
        assert lost["replica"] == first.name != event["replica"]
        assert lost["delivered_input_tokens"] == bill["usage"]["input_tokens"]
        had = lost["delivered_output_tokens"]
        assert 0 < had < TOKENS
        assert event["replayed_input_tokens"] == bill["usage"]["input_tokens"] + had
    continued = [event for event in await fleet.served.events() if event.get("continued")]
    assert len(continued) >= TOKENS - 2
