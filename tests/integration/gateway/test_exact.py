"""Exact: over a run of mixed requests every token that the simulated engines count is on the ledger or explained."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from redis.asyncio import Redis

from gateway.simulator import PROFILES, build_app
from tests.integration.gateway.engine import Engine
from tests.integration.gateway.serving import CHAT, Served, eventually, policies, serve

REQUESTS = 80
FAST = PROFILES["instant"]
PACED = replace(FAST, steps=replace(FAST.steps, decode_base_ms=1.0))
"""A millisecond a token, so that a client can hang up in the middle."""


@asynccontextmanager
async def simulated(profile: Any) -> AsyncIterator[Engine]:
    """A simulated replica in this event loop; what comes back only knows its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        config = uvicorn.Config(build_app(profile, control=True), log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[sock])
        try:
            yield Engine(port=sock.getsockname()[1])
        finally:
            for listener in server.servers:
                listener.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await server.lifespan.shutdown()


async def counted(engines: list[Engine]) -> dict[str, int]:
    """The engines' own counters, all replicas together."""
    totals = {"prompt": 0, "generation": 0, "running": 0}
    async with httpx.AsyncClient(trust_env=False) as http:
        for engine in engines:
            text = (await http.get(f"{engine.url}/metrics")).text
            for name, pattern in (
                ("prompt", r"^vllm:prompt_tokens_total\{.*\} (\S+)$"),
                ("generation", r"^vllm:generation_tokens_total\{.*\} (\S+)$"),
                ("running", r"^vllm:num_requests_running\{.*\} (\S+)$"),
            ):
                totals[name] += sum(int(float(value)) for value in re.findall(pattern, text, re.MULTILINE))
    return totals


def kinds(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    """One request of any kind."""
    text = "word " * rng.randint(1, 60) + str(number)
    stream: dict[str, Any] = {"stream": rng.random() < 0.6}
    tokens = rng.randint(1, 40)
    options = rng.choice([{}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
    if stream["stream"] and options:
        stream["stream_options"] = options
    match rng.randrange(4):
        case 0:
            return "/v1/completions", {
                "prompt": [text, "another"] if rng.random() < 0.3 else text,
                "n": rng.choice([1, 2]),
                "max_tokens": tokens,
                **stream,
            }
        case 1:
            return "/v1/responses", {"input": text, "max_output_tokens": tokens, "stream": stream["stream"]}
        case 2:
            messages = [{"role": "user", "content": text}]
            return "/v1/messages", {"messages": messages, "max_tokens": tokens, "stream": stream["stream"]}
        case _:
            messages = [{"role": "user", "content": text}]
            return CHAT, {"messages": messages, "n": rng.choice([1, 1, 3]), "max_tokens": tokens, **stream}


async def mixed(served: Served, rng: random.Random, *, hang_up: float) -> int:
    """A run of requests, eight at a time; returns how many clients hung up."""
    slots = asyncio.Semaphore(8)
    left = 0

    async def one(number: int) -> None:
        nonlocal left
        path, body = kinds(rng, number)
        async with slots, served.connect() as client:
            request_id = f"{number}.{body.get('n', 1)}"
            client.post(path, {"model": "tiny", "ignore_eos": True, **body}, key=served.key, x_request_id=request_id)
            if rng.random() < hang_up:
                left += 1
                await asyncio.sleep(rng.random() * 0.03)
                client.leave()
                return
            answer = await client.answer()
            assert answer.status == 200, answer.body
            assert answer.complete

    await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    return left


async def run(
    tmp_path: Path, redis: Redis, url: str, profile: Any, *, hang_up: float
) -> tuple[dict[str, int], list[dict[str, Any]], dict[str, Any], int]:
    """What the engines counted, the events, the tenant's report, and how many hung up."""
    rng = random.Random(20261124)
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(simulated(profile)) for _ in range(2)]
        limits = {"concurrent_requests": 100, "tokens_per_minute": 10_000_000, "budget_usd": 1000}
        chosen = policies(*engines, limits=limits)
        served = await stack.enter_async_context(serve(chosen, tmp_path / "policies", redis, url))
        left = await mixed(served, rng, hang_up=hang_up)
        await eventually(lambda: served.lifecycle.idle)

        async def ended() -> bool:
            return (await counted(engines))["running"] == 0

        await eventually(ended)
        events = await served.events(at_least=REQUESTS - left)
        totals = await counted(engines)
        assert all(replica.in_flight == 0 for replica in served.lifecycle.fleet.replicas)
        report = await served.usage()
        assert report["limits"]["concurrent_requests"]["remaining"] == 100
        assert report["limits"]["budget_usd"]["reserved_usd"] == "0.00"
        assert {event["replica"] for event in events if event["status"] == "ok"} == {one.name for one in engines}
        return totals, events, report, left


async def test_every_token_of_finished_requests_is_billed(tmp_path: Path, redis: Redis, valkey_url: str) -> None:
    """Chat, completions, responses and messages, streamed or not, with and without usage: the sums are the engines'."""
    totals, events, report, _ = await run(tmp_path, redis, valkey_url, FAST, hang_up=0)
    assert len(events) == REQUESTS
    assert {event["status"] for event in events} == {"ok"}
    assert not any(event.get("estimated") for event in events)
    # vLLM's counter has a prompt once for each of its samples, its usage (and the bill) once; the id ends with n.
    assert (
        sum(int(event["id"].partition(".")[2]) * event["usage"]["input_tokens"] for event in events) == totals["prompt"]
    )
    assert report["totals"]["input_tokens"] == sum(event["usage"]["input_tokens"] for event in events)
    assert report["totals"]["output_tokens"] == totals["generation"]
    assert sum(event["usage"]["output_tokens"] for event in events) == totals["generation"]


async def test_who_hangs_up_never_pays_for_more_than_was_made(tmp_path: Path, redis: Redis, valkey_url: str) -> None:
    """A third hangs up at any moment: what is billed is at most what the engines generated, and no slot is left."""
    totals, events, report, left = await run(tmp_path, redis, valkey_url, PACED, hang_up=0.33)
    assert left > 10
    assert {event["status"] for event in events} <= {"ok", "client_gone"}
    assert report["totals"]["output_tokens"] <= totals["generation"]
    told = [event["usage"]["output_tokens"] for event in events if event["status"] == "ok"]
    assert len(told) >= REQUESTS - left
    assert totals["generation"] - report["totals"]["output_tokens"] <= 40 * 4 * left
