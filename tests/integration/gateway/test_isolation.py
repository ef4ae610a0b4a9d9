"""Tenants whose cached prompts are their own: what salts the engine is sent, whoever asks for what."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, as_json
from tests.integration.gateway.serving import ASKED, CHAT, Served, key_of

PROMPTS = {
    CHAT: ASKED,
    "/v1/completions": {"model": "tiny", "prompt": "Hi", "max_tokens": 5},
    "/v1/responses": {"model": "tiny", "input": "Hi", "max_output_tokens": 5},
}
MESSAGES = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
ISOLATED: dict[str, Any] = {"cache_isolation": "tenant", "rival_uses": "tiny"}


async def salt(served: Served, engine: Engine, tenant: str = "acme", body: Any = ASKED, path: str = CHAT) -> Any:
    """The `cache_salt` that the engine got with a tenant's request."""
    answer = await served.post(body, path, key=key_of(tenant))
    assert answer.status == 200, answer.body
    return engine.received[-1].json.get("cache_salt")


async def test_a_tenants_salt_is_its_own_and_the_same_at_every_gateway_and_endpoint(
    engine: Engine, start: Start
) -> None:
    engine.script = as_json({})
    gateways = [await start(engine, **ISOLATED), await start(engine, **ISOLATED)]
    salts = {
        tenant: {
            await salt(served, engine, tenant, body, path) for served in gateways for path, body in PROMPTS.items()
        }
        for tenant in ("acme", "rival")
    }
    assert [len(of_tenant) for of_tenant in salts.values()] == [1, 1], "all gateways agree"
    assert salts["acme"] != salts["rival"]
    assert all(len(of_one) == 43 for of_tenant in salts.values() for of_one in of_tenant)


async def test_no_salt_is_sent_where_caches_are_shared(engine: Engine, start: Start) -> None:
    engine.script = as_json({})
    served = await start(engine, rival_uses="tiny")
    assert await salt(served, engine) is None
    assert await salt(served, engine, body=ASKED | {"cache_salt": "mine"}) == "mine", "a client's own passes"


FORGERIES = [
    b'{"cache_salt":"STOLEN",ASKED}',
    b'{ASKED,"cache_salt":"STOLEN"}',
    b'{"cache_salt":"x",ASKED,"cache_salt":"STOLEN"}',
    b'{"cache\\u005fsalt":"STOLEN",ASKED}',
    b'{ASKED,"cache\\u005fsalt":"STOLEN"}',
    b'{"cache_salt":"x",ASKED,"cache\\u005fsalt":"STOLEN"}',
    b'{ASKED,"cache_salt":null,"cache_salt":"STOLEN"}',
    b'{ASKED,"cache_salt":"STOLEN","cache_salt":null}',
    b'{ASKED,"metadata":{"cache_salt":"}","x":{}},"cache_salt":"STOLEN"}  \n',
]


async def test_no_client_reaches_another_tenants_cache(engine: Engine, start: Start) -> None:
    """A rival who has somehow learnt acme's salt sends it, in every way JSON has: the engine reads another."""
    engine.script = as_json({})
    served = await start(engine, **ISOLATED)
    stolen = (await salt(served, engine)).encode()
    for forgery in FORGERIES:
        for stream in (b"false", b"true"):
            asked = json.dumps(ASKED).encode()[1:-1] + b',"stream":%b' % stream
            body = forgery.replace(b"STOLEN", stolen).replace(b"ASKED", asked)
            assert await salt(served, engine, "rival", body) not in (stolen.decode(), "x", None), body
            names = [name for name, _ in json.loads(engine.received[-1].body, object_pairs_hook=list)]
            assert names.count("cache_salt") == 1 or names[-1] == "cache_salt", "whichever of two a reader takes"


async def test_a_clients_own_salt_parts_its_tenants_cache_further(engine: Engine, start: Start) -> None:
    engine.script = as_json({})
    served = await start(engine, **ISOLATED)
    salts = {
        await salt(served, engine, tenant, ASKED | own)
        for tenant in ("acme", "rival")
        for own in ({}, {"cache_salt": "a"}, {"cache_salt": "b"})
    }
    assert len(salts) == 6
    assert await salt(served, engine, body=ASKED | {"cache_salt": "a"}) in salts, "the same every time"


async def test_a_tenants_own_word_goes_before_its_models(engine: Engine, start: Start) -> None:
    engine.script = as_json({})
    served = await start(engine, rival_uses="tiny", tenant={"cache_isolation": "tenant"})
    assert len(await salt(served, engine)) == 43
    assert await salt(served, engine, "rival") is None


def describing(*schemas: str) -> dict[str, Any]:
    """The description of an engine at whose /v1/messages a request has these forms."""
    forms = [{"$ref": f"#/components/schemas/{name}"} for name in schemas]
    content = {"application/json": {"schema": forms[0] if len(forms) == 1 else {"anyOf": forms}}}
    salted = {"properties": {"model": {}, "cache_salt": {"type": "string"}}}
    return {
        "paths": {"/v1/messages": {"post": {"requestBody": {"content": content}}}, "/health": {"get": {}}},
        "components": {"schemas": {"Salted": salted, "Plain": {"properties": {"model": {}}}}},
    }


@pytest.mark.parametrize("openapi", [None, describing("Salted", "Plain")])
async def test_where_an_engine_knows_no_salt_nothing_runs(engine: Engine, start: Start, openapi: Any) -> None:
    """vLLM 0.24 leaves it unread at /v1/messages: the prompt would be in everybody's cache."""
    engine.script, engine.openapi = as_json({}), openapi
    served = await start(engine, **ISOLATED)
    answer = await served.post(MESSAGES, "/v1/messages")
    assert (answer.status, answer.json["error"]["code"]) == (400, "cache_not_isolated")
    assert engine.received == []


async def test_while_an_engine_has_not_said_whether_it_knows_the_salt_nothing_runs(
    engine: Engine, start: Start
) -> None:
    engine.script, engine.openapi = as_json({}), "no description"
    served = await start(engine, **ISOLATED)
    answer = await served.post(MESSAGES, "/v1/messages")
    assert (answer.status, answer.json["error"]["code"]) == (503, "isolation_unknown")
    engine.openapi = describing("Salted")
    assert len(await salt(served, engine, body=MESSAGES, path="/v1/messages")) == 43, "it is asked again"


async def test_where_an_engine_says_it_knows_the_salt_it_gets_it(engine: Engine, start: Start) -> None:
    engine.script, engine.openapi = as_json({}), describing("Salted")
    served = await start(engine, **ISOLATED)
    assert len(await salt(served, engine, body=MESSAGES, path="/v1/messages")) == 43


async def test_no_client_fetches_cached_blocks_by_their_numbers(engine: Engine, start: Start) -> None:
    engine.script = as_json({})
    served = await start(engine, **ISOLATED)
    fetching = ASKED | {"kv_transfer_params": {"do_remote_prefill": True, "remote_block_ids": [1, 2, 3]}}
    answer = await served.post(fetching)
    assert (answer.status, answer.json["error"]["param"]) == (400, "kv_transfer_params")
    assert engine.received == []
