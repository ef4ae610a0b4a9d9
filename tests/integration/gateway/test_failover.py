"""Streams whose replica dies in the middle: the client sees one ordinary stream, and pays for each token once."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from gateway import failover
from gateway.fleet import Health
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    Conversation,
    Engine,
    Received,
    as_stream_cut_after,
    recording,
    running,
)
from tests.integration.gateway.serving import CHAT, Served, eventually
from tests.integration.gateway.test_exact import PACED, counted, simulated
from tests.integration.gateway.test_queue import PATIENT
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


async def test_replicas_that_die_one_after_the_other(fleet: Fleet) -> None:
    """Each is killed after three events: the answer is whole, each token billed once, what was read again is told."""
    whole = await fleet.stream(STREAMED | USAGE, x_request_id="whole")
    for engine in fleet.engines:
        await fleet.fault(engine, kind="die", after_chunks=3)
    assert shape(await fleet.stream(STREAMED | USAGE, x_request_id="cut")) == shape(whole)
    event, prompt = await fleet.event("cut"), whole[-1]["usage"]["prompt_tokens"]
    assert (event["status"], event["continued"], event["usage"]["output_tokens"]) == ("ok", 3, TOKENS)
    delivered = [attempt["delivered_output_tokens"] for attempt in event["failed_attempts"]]
    assert delivered == [2, 3, 3]
    assert [attempt.get("delivered_input_tokens", 0) for attempt in event["failed_attempts"]] == [prompt, 0, 0]
    assert [attempt.get("input_tokens", 0) for attempt in event["failed_attempts"]] == [0, prompt + 2, prompt + 5]
    assert event["replayed_input_tokens"] == prompt + 8
    exposed = (await fleet.served.get("/metrics")).body.decode()
    told = re.findall(r'mtok_lost_tokens_total\{kind="input",replica="[^"]+"\} (\S+)', exposed)
    assert sum(map(float, told)) == (prompt + 2) + (prompt + 5) + (prompt + 8)
    assert 'mtok_lost_streams_total{how="token_ids",model="tiny"} 3.0' in exposed


@pytest.mark.parametrize("after_chunks", [1, 2])
async def test_a_stream_that_kills_whoever_runs_it_ends(fleet: Fleet, after_chunks: int) -> None:
    """After four replicas no fifth is tried: it ends with the error event, and what was delivered is billed."""
    body = STREAMED | RUNNING | {"max_tokens": 40}
    for engine in fleet.engines:
        await fleet.fault(engine, kind="die", after_chunks=after_chunks)
    answer = await fleet.served.post(body, x_request_id="cut")
    *events, error = [json.loads(event[6:]) for event in answer.body.removesuffix(DONE).split(b"\n\n")[:-1]]
    assert error["error"]["code"] == "upstream_lost"
    event = await fleet.event("cut")
    assert (event["status"], len(event["failed_attempts"])) == ("upstream_lost", failover.MOVES_MAX)
    assert event["usage"]["output_tokens"] == events[-1]["usage"]["completion_tokens"]
    assert fleet.served.lifecycle.idle
    assert all(replica.in_flight == 0 for replica in fleet.served.lifecycle.fleet.replicas)


async def test_an_engine_that_dies_behind_its_server(fleet: Fleet) -> None:
    """It says so in the stream: the client does not hear of it, and has the whole answer."""
    whole = await fleet.stream(STREAMED | USAGE, x_request_id="whole")
    first = fleet.named((await fleet.event("whole"))["replica"])
    await fleet.fault(first, kind="error_event", after_chunks=4, times=1)
    assert shape(await fleet.stream(STREAMED | USAGE, x_request_id="cut")) == shape(whole)
    (attempt,) = (await fleet.event("cut"))["failed_attempts"]
    assert (attempt["replica"], attempt["code"]) == (first.name, "engine_error")


async def test_where_it_could_not_be_right_the_stream_ends_with_an_error(fleet: Fleet) -> None:
    """Tools, logprobs, several answers, structure: what was delivered is billed, at the replica that was lost; no other
    one is troubled."""
    tool = {"type": "function", "function": {"name": "f"}}
    asked: list[dict[str, Any]] = [
        {"tools": [tool], "tool_choice": "required"},
        {"logprobs": True},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
    ]
    for engine in fleet.engines:
        await fleet.fault(engine, kind="die", after_chunks=6)
    for changes in asked:
        request_id = "-".join(changes)
        answer = await fleet.served.post(STREAMED | changes, x_request_id=request_id)
        assert b'"code":"upstream_lost"' in answer.body, changes
        event = await fleet.event(request_id)
        assert event["status"] == "upstream_lost"
        assert event["usage"]["output_tokens"] > 0
        assert not event.get("failed_attempts")


async def test_a_replica_that_is_left_on_purpose(fleet: Fleet) -> None:
    """Its streams go on elsewhere, and what had not been answered begins there. The engines' own counters have nothing
    that is not billed or told as the platform's loss."""
    served = fleet.served
    bodies = [STREAMED | USAGE | {"max_tokens": 60}, CHATS | {"max_tokens": 60, "ignore_eos": True}]
    async with AsyncExitStack() as stack:
        stream, whole = [await stack.enter_async_context(served.connect()) for _ in bodies]
        for number, (client, body) in enumerate(zip((stream, whole), bodies, strict=True)):
            client.post(CHAT, body, key=served.key, x_request_id=str(number))
        assert (await stream.head())[0] == 200
        await stream.chunk()
        await eventually(lambda: sum(replica.in_flight for replica in served.lifecycle.fleet.replicas) == 2)
        assert sum(replica.cut("it has to be empty") for replica in served.lifecycle.fleet.replicas) == 2
        got = b""
        while not got.endswith(DONE):
            got += await stream.chunk()
        assert b'"error"' not in got
        assert (await whole.answer()).status == 200
    by_id = {event["id"]: event for event in await served.events(at_least=2)}
    assert [by_id[number]["status"] for number in "01"] == ["ok"] * 2
    assert [by_id[number].get("continued", 0) for number in "01"] == [1, 0]
    (moved,), (begun,) = by_id["0"]["failed_attempts"], by_id["1"]["failed_attempts"]
    assert moved["code"] == "moved"
    engines = await counted(fleet.engines)
    billed_input = sum(event["usage"]["input_tokens"] for event in by_id.values())
    billed_output = sum(event["usage"]["output_tokens"] for event in by_id.values())
    most_input = billed_input + by_id["0"]["replayed_input_tokens"]
    assert most_input <= engines["prompt"] <= most_input + begun["input_tokens"]
    assert billed_output <= engines["generation"] <= billed_output + moved["output_tokens"] + begun["output_tokens"]


async def test_the_policy_may_want_the_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the engine is asked for no ids, and the stream ends where its replica does."""
    script = as_stream_cut_after(*recording("stream_cont").events[:4])
    engines = [Engine(script=script), Engine(script=script)]
    async with running(*engines):
        served = await start(*engines, on_replica_loss="error")
        answer = await served.post(STREAMED)
    assert b'"code":"upstream_lost"' in answer.body
    (received,) = [request for engine in engines for request in engine.received]
    assert b"return_token_ids" not in received.body


async def test_a_client_that_leaves_while_the_next_replica_reads(start: Start) -> None:
    """The next replica stops too; what was delivered before is billed, once, and nothing is left behind."""

    async def script(talk: Conversation, request: Received) -> None:
        if request.path == CHAT:
            talk.stream()
            for event in with_ids:
                talk.chunk(event)
            await talk.room()
            talk.close()
        else:
            await talk.gone.wait()
            left.append(request)

    left: list[Received] = []
    role, first, *_ = recording("stream_token_ids").events
    usage = b',"usage":{"prompt_tokens":9,"total_tokens":%d,"completion_tokens":%d}'
    with_ids = [
        role.replace(b',"prompt_token_ids"', usage % (9, 0) + b',"prompt_token_ids"'),
        first[:-3] + usage % (10, 1) + b"}\n\n",
    ]
    engines = [Engine(script=script), Engine(script=script)]
    async with running(*engines):
        served = await start(*engines)
        async with served.connect() as client:
            client.post(CHAT, STREAMED | {"max_tokens": 7}, key=served.key)
            await client.head()
            await eventually(lambda: sum(len(engine.received) for engine in engines) == 2)
            client.leave()
            event = await served.event()
        await eventually(lambda: left)
    assert json.loads(left[0].body)["prompt"] == [2, 321, 598, 11826, 12, 6702, 308, 325, 3, 7728]
    assert json.loads(left[0].body)["max_tokens"] == 6
    assert event["status"] == "client_gone"
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (9, 1)
    assert all(replica.in_flight == 0 for replica in served.lifecycle.fleet.replicas)


async def test_a_stream_that_holds_its_budget_in_slices_goes_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Money is held for the tokens of the one answer, whoever makes them."""
    monkeypatch.setattr(Health, "fault", lambda *_, **__: None)
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(simulated(PACED)) for _ in range(2)]
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        served = await start(*engines, limits={"budget_usd": 1, "reserve": "sliced"})
        fleet = Fleet(served, engines, http)
        whole = await fleet.stream(STREAMED | USAGE, x_request_id="whole")
        await fleet.fault(fleet.named((await fleet.event("whole"))["replica"]), kind="die", after_chunks=4, times=1)
        assert shape(await fleet.stream(STREAMED | USAGE, x_request_id="cut")) == shape(whole)
        whole_event, cut = await fleet.event("whole"), await fleet.event("cut")
        assert cut["continued"] == 1
        assert cut["cost_nanousd"] <= whole_event["cost_nanousd"]
        left = (await served.usage())["limits"]["budget_usd"]
        assert left["reserved_usd"] == "0.00"


async def test_in_the_queue_a_stream_goes_on_as_well(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With latency targets the next replica is asked for room, the lost one's place is free, and at the end all are."""
    monkeypatch.setattr(Health, "fault", lambda *_, **__: None)
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(simulated(PACED)) for _ in range(2)]
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        served = await start(*engines, service=PATIENT)
        fleet = Fleet(served, engines, http)
        whole = await fleet.stream(STREAMED | USAGE, x_request_id="whole")
        await fleet.fault(fleet.named((await fleet.event("whole"))["replica"]), kind="die", after_chunks=4, times=1)
        assert shape(await fleet.stream(STREAMED | USAGE, x_request_id="cut")) == shape(whole)
        assert (await fleet.event("cut"))["continued"] == 1
        line = served.lifecycle.dispatcher.lines["tiny"]
        assert line.idle
        assert all(knee.running == 0 for knee in line.knees.values())
