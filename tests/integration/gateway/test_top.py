"""`GET /admin/state` and `mtok top`, on gateways that serve."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
import yaml
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.overview import LimitState, State
from loadtest.processes import free_port
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import (
    ADMIN_KEY,
    ASKED,
    CHAT,
    Served,
    StoppedClock,
    eventually,
    key_of,
    policies,
    serve,
)
from tests.integration.gateway.test_workers import two_workers
from tests.integration.gateway.wire_client import connect

TARGETS = {"slo": {"ttft_p99_ms": 600, "itl_p99_ms": 80}}


async def state_of(served: Served) -> State:
    answer = await served.get("/admin/state", key=ADMIN_KEY)
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body, type=State)


async def test_the_state_shows_tenants_limits_queues_and_replicas(engine: Engine, start: Start) -> None:
    """Three served, two refused by a limit that is named; what is left is what the account says."""
    engine.script = recording("chat").script()
    limits = {"requests_per_minute": 3, "budget_usd": 1}
    served = await start(engine, clock=StoppedClock(), limits=limits, service=TARGETS)
    assert [(await served.post()).status for _ in range(5)] == [200, 200, 200, 429, 429]
    await served.booked()
    state = await state_of(served)
    acme = state.tenants["acme"]
    assert (acme.requests, acme.refused, acme.running) == (5, {"requests_per_minute": 2}, 0)
    assert (acme.input_tokens, acme.output_tokens) == (27, 24)
    assert acme.limits["requests_per_minute"].left == "0"
    assert acme.limits["budget_usd"] == LimitState("1.00", "0.9999625", True, acme.limits["budget_usd"].resets_at)
    assert state.models["tiny"].attempts["first"] == 3
    replica = state.replicas[engine.name]
    assert (replica.healthy, replica.in_flight) == (True, 0)
    assert replica.limits["sequences"] == 64
    assert state.policies_sha256 == served.lifecycle.policies.sha256


async def test_the_state_shows_what_tenants_share(
    engine: Engine, tmp_path: Path, redis: Redis, valkey_url: str
) -> None:
    """Limits of a group, and a soft one of the fleet; who is refused by the group's is told so."""
    engine.script = recording("chat").script()
    document = policies(engine, tenant={"group": "labs"})
    document["groups"] = {"labs": {"limits": {"requests_per_minute": 2, "usd_per_day": 1}}}
    document["fleet"] = {"limits": {"concurrent_requests": {"limit": 50, "mode": "soft"}}}
    async with serve(document, tmp_path / "policies", redis, valkey_url, clock=StoppedClock()) as served:
        assert [(await served.post()).status for _ in range(3)] == [200, 200, 429]
        await served.booked()
        state = await state_of(served)
    assert state.tenants["acme"].refused == {"group requests_per_minute": 1}
    assert state.shared["group labs"]["requests_per_minute"].left == "0"
    assert state.shared["group labs"]["usd_per_day"].left == "0.999975"
    assert state.shared["the fleet (soft)"]["concurrent_requests"].left == "50"


async def test_what_runs_is_shown_while_it_runs(engine: Engine, start: Start) -> None:
    gate = asyncio.Event()

    async def held(talk, request):  # type: ignore[no-untyped-def]
        await gate.wait()
        await recording("chat").script()(talk, request)

    engine.script = held
    served = await start(engine, service=TARGETS)
    answers = [asyncio.create_task(served.post()) for _ in range(2)]
    while served.replica(engine).in_flight < 2:
        await asyncio.sleep(0.005)
    state = await state_of(served)
    assert state.tenants == {} or state.tenants["acme"].running == 2
    assert state.replicas[engine.name].in_flight == 2
    assert state.replicas[engine.name].load["sequences"] == 2
    gate.set()
    assert [answer.status for answer in await asyncio.gather(*answers)] == [200, 200]


async def test_only_the_administrator_sees_it(engine: Engine, start: Start) -> None:
    served = await start(engine)
    tenants = await served.get("/admin/state")
    assert (tenants.status, tenants.json["error"]["code"]) == (403, "admin_key_required")
    nobody = await served.say("GET /admin/state HTTP/1.1\r\nhost: g\r\n\r\n")
    assert (nobody.status, nobody.json["error"]["code"]) == (401, "invalid_api_key")


async def test_top_draws_it(engine: Engine, start: Start) -> None:
    """One picture and the end; what keeps it from being drawn is one line and exit code 1."""
    engine.script = recording("chat").script()
    served = await start(engine, clock=StoppedClock(), limits={"requests_per_minute": 60})
    await served.post()
    url = f"http://127.0.0.1:{served.port}"
    drawn = await top("--url", url, "--admin-key", ADMIN_KEY)
    assert (drawn.exit_code, f"{engine.name}  yes" in drawn.stdout) == (0, True), drawn.output
    assert "requests_per_minute 59/60" in next(line for line in drawn.stdout.split("\n") if line.startswith("acme"))
    told = await top("--url", url, "--admin-key", ADMIN_KEY, "--json")
    assert json.loads(told.stdout)["tenants"][0]["tenant"] == "acme"
    forbidden = await top("--url", url, "--admin-key", served.key)
    assert (forbidden.exit_code, "does not take this key" in forbidden.stderr) == (1, True)
    away = await top("--url", f"http://127.0.0.1:{free_port()}", "--admin-key", ADMIN_KEY)
    assert (away.exit_code, "does not answer" in away.stderr) == (1, True)


async def test_one_worker_shows_the_requests_of_all(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 requests over two processes on one port, most of them refused."""
    engine.script = recording("chat").script()
    monkeypatch.setenv("MTOK_ADMIN_KEY", ADMIN_KEY)
    directory = tmp_path / "policies"
    directory.mkdir()
    document = policies(engine, limits={"requests_per_minute": 2})
    (directory / "policy.yaml").write_text(yaml.safe_dump(document))
    with two_workers(tmp_path) as (_, url):
        port = int(url.rpartition(":")[2])

        async def both_are_ready() -> bool:
            replica = (await look(port)).replicas.get(engine.name)
            return replica is not None and replica.healthy

        await eventually(both_are_ready)
        statuses = []
        for _ in range(24):
            async with connect(port) as client:
                client.post(CHAT, ASKED, key=key_of("acme"))
                statuses.append((await client.answer()).status)

        async def everything() -> State | None:
            now = await look(port)
            return now if "acme" in now.tenants and now.tenants["acme"].requests >= 24 else None

        acme = (await eventually(everything)).tenants["acme"]
        assert (acme.requests, acme.refused["requests_per_minute"]) == (24, statuses.count(429))
        assert 429 in statuses


async def look(port: int) -> State:
    """What one of the workers shows of all of them."""
    async with connect(port) as client:
        client.send(f"GET /admin/state HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode())
        return msgspec.json.decode((await client.answer()).body, type=State)


async def top(*arguments: str) -> Result:
    """`mtok top --once`, beside the gateway's event loop."""
    command = ["top", "--once", "--interval", "0.05", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, app, command)
