"""Which policies decided on a request, and which of their rules: in the answer, in the event, and from `mtok why`."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.admission import _knee as knee
from gateway.cli import app
from gateway.policy import load
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, recording
from tests.integration.gateway.serving import ASKED, CHAT, StoppedClock, eventually, policies


@pytest.fixture
def mtok(valkey_url: str) -> Any:
    """A command beside the running gateway; it has an event loop of its own."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"MTOK_REDIS_URL": valkey_url})

    async def beside(*arguments: str) -> Result:
        return await asyncio.to_thread(run, *arguments)

    return beside


def lines(result: Result) -> dict[str, str]:
    """What `mtok why` prints, by the first word; of ways to pass the first."""
    assert result.exit_code == 0, result.stderr
    told: dict[str, str] = {}
    for line in result.stdout.splitlines():
        told.setdefault(line[:11].strip(), line[12:])
    return told


async def test_every_answer_and_event_names_the_policies_that_decided(
    engine: Engine, start: Start, tmp_path: Path
) -> None:
    """Served, refused by a limit, refused without a key, a page, a path that is not there: the same version, which is
    the start of the SHA-256 that `mtok policy check` prints; after a reload the new one, and the metric says which is
    in force."""
    engine.script = recording("chat").script()
    served = await start(engine, clock=StoppedClock(), settings={"reloads": True}, limits={"requests_per_minute": 1})
    directory = tmp_path / "policies"
    version = load(directory).sha256[:12]
    answers = [await served.post(), await served.post(), await served.post(key="wrong"), await served.post(b"{")]
    assert [answer.status for answer in answers] == [200, 429, 401, 400]
    answers += [await served.get(path) for path in ("/v1/usage", "/v1/models", "/healthz", "/nowhere", CHAT)]
    assert {answer.headers["x-mtok-policy"] for answer in answers} == {version}
    assert [event["policy"] for event in await served.events(at_least=3)] == [version] * 3
    assert f'mtok_policy_info{{sha256="{version}"}} 1.0' in (await served.get("/metrics")).body.decode()

    (directory / "policy.yaml").write_text(yaml.safe_dump(policies(engine)))
    changed = load(directory).sha256[:12]

    async def in_force() -> bool:
        return bool((await served.get("/readyz")).json["policy"] == changed)

    await eventually(in_force)
    answer = await served.post()
    assert (answer.status, answer.headers["x-mtok-policy"]) == (200, changed)
    metrics = (await served.get("/metrics")).body.decode()
    assert f'mtok_policy_info{{sha256="{version}"}} 0.0' in metrics
    assert f'mtok_policy_info{{sha256="{changed}"}} 1.0' in metrics


async def test_a_limit_that_refused_is_named_with_its_numbers(
    engine: Engine, start: Start, mtok: Any, tmp_path: Path
) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, clock=StoppedClock(), limits={"output_tokens_per_minute": 30})
    assert (await served.post()).status == 200
    answer = await served.post(ASKED | {"max_tokens": 25})
    assert answer.status == 429
    await served.booked()
    request = answer.headers["x-request-id"]
    told = lines(await mtok("why", request, "--tenant", "acme"))
    left = 30 - 8
    assert told["request"] == f"{request} of acme, key acme, {CHAT}"
    assert told["policy"] == answer.headers["x-mtok-policy"]
    assert told["outcome"] == "refused, rate_limit_exceeded"
    assert told["decided"] == (
        f"output_tokens_per_minute of the tenant is 30 tokens: {left} tokens left, 25 tokens asked."
    )
    wait_ms = int(answer.headers["retry-after-ms"])
    assert told["would pass"] == f"the same request {wait_ms / 1000:.1f} s later".replace(".0 s", " s")
    assert "admitted" not in told
    whole = json.loads((await mtok("why", request, "--json")).stdout)
    assert whole["refused_by"] == {
        "dimension": "output_tokens_per_minute",
        "limit": 30,
        "asked": 25,
        "remaining": left,
        "retry_after_ms": wait_ms,
    }
    directory = str(tmp_path / "policies")
    met = (await mtok("why", request, "--policies", directory)).stdout.splitlines()
    [row] = [line for line in met if line.startswith("reserve  output_tokens_per_minute")]
    assert " ".join(row.split()).startswith(
        f"reserve output_tokens_per_minute the tenant 30 tokens {left} tokens 25 tokens REFUSES"
    )
    assert met[-1] == f"Rules of policies {told['policy']}, those that decided."
    shown = await served.get(f"/v1/usage/requests/{request}")
    assert shown.json["refused_by"] == whole["refused_by"], "the tenant sees it too"


async def test_a_budget_says_what_is_only_reserved(engine: Engine, start: Start, mtok: Any) -> None:
    """While another request runs its dollars are held, not spent."""
    go_on = asyncio.Event()

    async def slow(talk: Conversation, request: Received) -> None:
        await go_on.wait()
        await recording("chat").script()(talk, request)

    engine.script = slow
    served = await start(engine, limits={"usd_per_day": 0.00018})
    running = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    answer = await served.post()
    assert answer.status == 429
    go_on.set()
    assert (await running).status == 200
    await served.booked()
    told = lines(await mtok("why", answer.headers["x-request-id"]))
    assert told["decided"].startswith("usd_per_day of the tenant is $0.00018: $")
    assert "held by requests that still ran" in told["decided"]
    assert told["would pass"] == "the same request 1 s later"


async def test_a_forbidden_model_and_an_unreadable_body_are_told(engine: Engine, start: Start, mtok: Any) -> None:
    served = await start(engine)
    forbidden = await served.post(ASKED | {"model": "other"})
    unreadable = await served.post(b"{")
    assert (forbidden.status, unreadable.status) == (404, 400)
    await served.booked()
    told = lines(await mtok("why", forbidden.headers["x-request-id"], "--tenant", "acme"))
    assert told["decided"] == "There is no model other here, or the tenant may not use it."
    told = lines(await mtok("why", unreadable.headers["x-request-id"], "--tenant", "acme"))
    assert (told["outcome"], told["model"]) == ("refused, invalid_request", "-")


async def test_waits_are_told_of_the_served_and_of_those_who_waited_in_vain(
    engine: Engine, start: Start, mtok: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica has room for one: who comes second waits for longer than its class allows, or for the first to end."""
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 1)
    monkeypatch.setattr(knee, "LEAST_SEQUENCES", 1)
    go_on = asyncio.Event()

    async def slow(talk: Conversation, request: Received) -> None:
        await go_on.wait()
        await recording("chat").script()(talk, request)

    engine.script = slow
    served = await start(engine, service={"max_wait_s": 0.2, "slo": {"itl_p99_ms": 80}})
    first = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    vain = await served.post()
    assert (vain.status, vain.error["code"]) == (429, "overloaded")
    service = served.lifecycle.policies.classes["service"]
    monkeypatch.setitem(served.lifecycle.policies.classes, "service", replace(service, max_wait_s=Decimal(30)))
    second = asyncio.create_task(served.post())
    await eventually(lambda: len(served.lifecycle.dispatcher.lines["tiny"].queue) == 1)
    queued_ms = served.gateway.clock.now_ms()
    await eventually(lambda: served.gateway.clock.now_ms() > queued_ms + 1)
    go_on.set()
    answers = [await first, await second]
    assert [answer.status for answer in answers] == [200, 200]
    await served.booked()
    told = lines(await mtok("why", vain.headers["x-request-id"], "--tenant", "acme"))
    assert told["decided"].startswith("It could wait for 200 ms (max_wait_s of its class")
    waited = json.loads((await mtok("why", vain.headers["x-request-id"], "--json")).stdout)
    assert 0 < waited["queued_ms"] <= waited["ended_after_ms"]
    assert waited["ended_after_ms"] > 200, "it waited until its time was over"
    at_once = json.loads((await mtok("why", answers[0].headers["x-request-id"], "--json")).stdout)
    assert at_once["queued_ms"] < 50, "nobody was before it"
    told = lines(await mtok("why", answers[1].headers["x-request-id"]))
    assert told["decided"] == "It was served."
    assert told["queued"].startswith("for ")
    assert told["used"] == "9 input (0 cached), 8 output"


async def test_a_request_that_is_not_there_is_one_line(engine: Engine, start: Start, mtok: Any) -> None:
    await start(engine)
    missing = await mtok("why", "nowhere", "--tenant", "acme", "--start", "1h")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr.startswith("mtok: No request 'nowhere' was booked from ")
    wrong = await mtok("why", "nowhere", "--start", "yesterday")
    assert (wrong.exit_code, wrong.stdout) == (2, "")


async def test_a_placement_is_told_with_what_came_true(engine: Engine, start: Start, mtok: Any) -> None:
    """The second time a prompt comes, most of it is expected to be cached; the engine's own count stands beside that,
    and the metric sums both up."""
    engine.script = recording("chat").script()
    served = await start(engine)
    asked = ASKED | {"messages": [{"role": "user", "content": "Tell me about prefixes. " * 100}]}
    first, second = await served.post(asked), await served.post(asked)
    await served.booked()
    cold = lines(await mtok("why", first.headers["x-request-id"]))
    assert cold["placed at"].startswith(f"{engine.name}: 0 tokens cached, 0 waiting before it, 0 running, first token")
    warm = lines(await mtok("why", second.headers["x-request-id"]))
    expected = int(warm["placed at"].removeprefix(f"{engine.name}: ").split()[0])
    assert expected > 400
    assert warm["came true"].startswith("0 tokens cached, first bytes after ")
    metrics = (await served.get("/metrics")).body.decode()
    [predicted] = re.findall(r'mtok_prefix_tokens_total\{kind="predicted",replica="[^"]+"\} (\S+)', metrics)
    assert float(predicted) > 0
    shown = (await served.get(f"/v1/usage/requests/{second.headers['x-request-id']}")).json
    assert "placed" not in shown, "what others have waiting is not the tenant's business"
