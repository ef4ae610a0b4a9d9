"""Paths the gateway answers itself, and those it does not know."""

from __future__ import annotations

import pytest

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ADMIN_KEY, CHAT, key_of


async def test_models_are_the_tenants_own(engine: Engine, start: Start) -> None:
    """`/v1/models` lists what this tenant may use, aliases included, with the engine's context."""
    served = await start(engine)
    answer = await served.get("/v1/models")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    cards = [
        {"id": name, "object": "model", "created": 0, "owned_by": "mtok", "max_model_len": 4096}
        for name in ("tiny", "small")
    ]
    assert answer.json == {"object": "list", "data": cards}
    assert [card["id"] for card in (await served.get("/v1/models", key=key_of("rival"))).json["data"]] == ["other"]
    assert (await served.get("/v1/models/tiny")).json == cards[0]
    hidden, missing = await served.get("/v1/models/other"), await served.get("/v1/models/nope")
    assert (hidden.status, hidden.error["code"]) == (404, "model_not_found")
    assert missing.body == hidden.body.replace(b"other", b"nope")
    assert (await served.get("/v1/models", key="wrong")).status == 401


async def test_the_policys_context_wins(engine: Engine, start: Start) -> None:
    """`context_tokens` of the policy is what clients are told and held to, not the engine's."""
    served = await start(engine, context_tokens=1000)
    assert (await served.get("/v1/models/tiny")).json["max_model_len"] == 1000


async def test_probes(engine: Engine, start: Start) -> None:
    """`/healthz` is 200 while the process serves, `/readyz` while a replica is healthy, with the policies in force;
    neither wants a key."""
    served = await start(engine)
    ready = {"status": "ok", "policy": served.lifecycle.policies.sha256[:12]}
    for path, told in (("/healthz", {"status": "ok"}), ("/readyz", ready)):
        answer = await served.say(f"GET {path} HTTP/1.1\r\n\r\n")
        assert (answer.status, answer.json) == (200, told)
        assert "x-request-id" in answer.headers
    engine.healthy = False
    await served.lifecycle.fleet._probe_all()
    assert (await served.get("/readyz")).status == 503
    assert (await served.get("/healthz")).status == 200


async def test_metrics(engine: Engine, start: Start) -> None:
    """`/metrics` is Prometheus' text and counts the tokens that were billed."""
    engine.script = recording("chat").script()
    served = await start(engine)
    await served.post()
    served.lifecycle.telemetry.metrics.flush()
    answer = await served.say("GET /metrics HTTP/1.1\r\n\r\n")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    output = [line for line in lines if "tokens_total" in line and "output" in line]
    assert [line.rsplit(" ", 1)[1] for line in output if "acme" in line] == ["8.0"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/nothing"),
        ("GET", "/"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/V1/chat/completions"),
        ("POST", "//v1/chat/completions"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/usage/x"),
        ("POST", "/v1/chat/completions%00"),
        ("DELETE", "/v1/files/%c3%a9%ff%0d%0a"),
    ],
)
async def test_an_unknown_path_is_404(engine: Engine, start: Start, method: str, path: str) -> None:
    """In OpenAI's shape; no key is asked for and no engine hears of it."""
    served = await start(engine)
    answer = await served.say(
        f"{method} {path} HTTP/1.1\r\nauthorization: Bearer {served.key}\r\ncontent-length: 0\r\n\r\n"
    )
    assert answer.status == 404
    assert answer.error["code"] in ("unknown_url", "model_not_found")
    assert engine.received == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/responses", "POST"),
        ("PUT", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/v1/usage", "GET"),
        ("DELETE", "/healthz", "GET"),
        ("OPTIONS", CHAT, "POST"),
    ],
)
async def test_a_wrong_method_is_405(engine: Engine, start: Start, method: str, path: str, allowed: str) -> None:
    """It says which method the path takes."""
    served = await start(engine)
    answer = await served.say(f"{method} {path} HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed
    assert allowed in answer.error["message"]


async def test_the_path_counts_not_the_query(engine: Engine, start: Start) -> None:
    """A query string and escaped letters name the same path; so does an absolute URL."""
    engine.script = recording("chat").script()
    served = await start(engine)
    for path in (f"{CHAT}?a=b&c", "/v1/chat/c%6fmpletions", f"http://gateway{CHAT}"):
        assert (await served.post(path=path)).status == 200
        assert engine.received[-1].path == CHAT


async def test_head_has_no_body(engine: Engine, start: Start) -> None:
    """HEAD is GET without the body, and the connection stays in step."""
    served = await start(engine)
    async with served.connect() as client:
        client.send(b"HEAD /healthz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n")
        status, headers = await client.head()
        assert (status, headers["content-length"]) == (200, "15")
        assert (await client.answer()).json == {"status": "ok"}


async def test_usage_is_ones_own(engine: Engine, start: Start) -> None:
    """A tenant reads its own numbers; another tenant's only the administrator does."""
    engine.script = recording("chat").script()
    served = await start(engine)
    await served.post()
    mine = await served.usage()
    assert (mine["object"], mine["tenant"]) == ("usage", "acme")
    assert mine["totals"] == {
        "requests": 1,
        "refused": {},
        "input_tokens": 9,
        "input_cached_tokens": 0,
        "output_tokens": 8,
        "cost_usd": "0.0000125",
    }
    other = await served.get("/v1/usage?tenant=acme", key=key_of("rival"))
    assert (other.status, other.error["code"]) == (403, "admin_key_required")
    seen = await served.get("/v1/usage?tenant=acme", key=ADMIN_KEY)
    assert seen.json["totals"] == mine["totals"]
    assert (await served.get("/v1/usage?tenant=nobody", key=ADMIN_KEY)).status == 404
    assert (await served.get("/v1/usage?bucket=5m")).error["param"] == "bucket"
    assert (await served.get("/v1/usage", key="wrong")).status == 401
