"""Engines other than vLLM, on sockets: asked in their own words, billed what they tell, cut or not."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engines import dialect_of
from gateway.wire import Usage
from tests.conformance.engines.test_dialects import FACTS, Facts
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    Conversation,
    Engine,
    Received,
    as_json,
    as_stream,
    as_stream_cut_after,
    running,
)
from tests.integration.gateway.serving import ASKED, CHAT, PRICE, Served

OTHERS = [engine for engine in FACTS if engine != "vllm"]


class Spoken(Engine):
    """An engine that answers what it is asked about itself as its files say."""

    def __init__(self, name: str, facts: Facts) -> None:
        super().__init__()
        dialect = dialect_of(name)
        self.says: dict[str, bytes] = {}
        if facts.context is not None and dialect.about_path is not None:
            self.says[dialect.about_path] = facts.answer(facts.context).body
        if dialect.health_path is not None:
            self.says[dialect.health_path] = b"{}"

    async def answer(self, talk: Conversation, request: Received) -> None:
        if request.method == "GET" and request.path in self.says:
            await as_json(self.says[request.path])(talk, request)
        elif request.path != CHAT:
            await as_json({"detail": "Not Found"}, status=404)(talk, request)
        else:
            await super().answer(talk, request)


def policy(name: str, engine: Engine) -> dict[str, Any]:
    """The model `tiny`, which the engines call otherwise."""
    model = {"engine": name, "engine_model": "vendor/tiny", "replicas": [{"url": engine.url}], "price": PRICE}
    return {"models": {"tiny": model}}


async def serve(start: Start, name: str, engine: Engine) -> Served:
    return await start(rival_uses="tiny", top=policy(name, engine))


def used(event: dict[str, Any]) -> Usage:
    told = event["usage"]
    return Usage(**{name: told.get(name, 0) for name in ("input_tokens", "input_cached_tokens", "output_tokens")})


@pytest.mark.parametrize("name", OTHERS)
async def test_streams_are_asked_in_its_words_and_billed_what_it_tells(start: Start, name: str) -> None:
    """Once whole, then cut by the engine's death after the second token; the client has not asked for usage, and sees
    none."""
    facts = FACTS[name]
    file, told = next(iter(facts.streams.items()))
    events = [event + b"\n\n" for event in facts.answer(file).body.split(b"\n\n") if event.strip()]
    texts = [at for at, event in enumerate(events) if b'"content":"' in event and b'"content":""' not in event]
    engine = Spoken(name, facts)
    engine.scripts.extend([as_stream(*events), as_stream_cut_after(*events[: texts[1] + 1])])
    async with running(engine):
        served = await serve(start, name, engine)
        whole = await served.post({**ASKED, "stream": True}, CHAT)
        assert whole.status == 200
        assert b'"usage":{' not in whole.body
        assert b'"timings"' not in whole.body
        other = {"messages": [{"role": "user", "content": "Another"}]}  # of which nothing is cached
        cut = await served.post({**ASKED, **other, "stream": True}, CHAT)
        assert b"upstream_lost" in cut.body
        first, second = await served.events(at_least=2)
    asked = engine.received[0].json
    assert asked == {**ASKED, "stream": True, "model": "vendor/tiny", **facts.asked}
    assert (used(first), first.get("estimated", False)) == (told, False)
    assert second["status"] == "upstream_lost"
    if facts.cut is None:
        assert second["estimated"]
        assert used(second).output_tokens == 2
    else:
        assert (used(second), second.get("estimated", False)) == (facts.cut, False)


async def test_an_endpoint_that_the_engine_lacks_is_named(start: Start) -> None:
    """Rather than passed on to be misunderstood: llama.cpp's /tokenize takes other fields, and would count none."""
    engine = Spoken("tgi", FACTS["tgi"])
    async with running(engine):
        served = await serve(start, "tgi", engine)
        answer = await served.post({"model": "tiny", "input": "Hi"}, "/v1/embeddings")
    assert answer.status == 404
    assert "/v1/embeddings" in answer.json["error"]["message"]
    assert engine.received == []


async def test_a_providers_account_is_none_of_the_clients_business(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rate limits and organisation stay here; a key that it refuses is a 502, and is in no log."""
    monkeypatch.setenv("PROVIDER_KEY", "sk-platform-secret")
    facts = FACTS["openai"]
    account = ("x-ratelimit-remaining-tokens: 5", "openai-organization: org-1", "set-cookie: __cf=1")
    engine = Spoken("openai", facts)
    engine.scripts.append(as_json(facts.answer("plain").body, headers=account))
    engine.scripts.append(as_json(facts.answer("bad_key").body, status=401))
    async with running(engine):
        model = policy("openai", engine)["models"]["tiny"] | {"api_key_env": "PROVIDER_KEY"}
        served = await start(rival_uses="tiny", top={"models": {"tiny": model}})
        answer = await served.post(ASKED, CHAT)
        refused = await served.post(ASKED, CHAT)
    assert answer.status == 200
    assert not {"x-ratelimit-remaining-tokens", "openai-organization", "set-cookie"} & set(answer.headers)
    assert engine.received[0].headers["authorization"] == "Bearer sk-platform-secret"
    assert (refused.status, refused.json["error"]["code"]) == (502, "engine_error")
    assert b"sk-plat" not in refused.body
    assert "sk-platform-secret" not in caplog.text
