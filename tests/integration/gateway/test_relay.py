"""Bytes: what the engine gets of a request, and what the client gets of an answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway import relay
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, Recording, as_json, as_stream, recording
from tests.integration.gateway.serving import ASKED, CHAT

HI = [{"role": "user", "content": "Hi"}]
USAGE = {"include_usage": True}

# What the engine gets.

EVERYTHING = (
    b'{ "model" : "tiny",\n "messages":[{"role":"user","content":"caf\xc3\xa9 \\u00e9 \\ud83d\\ude00"}],'
    b'"temperature":0.70,"top_p":1e-1,"seed":9007199254740993,"logit_bias":{"50256":-100},"stop":["\\n\\n"],'
    b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"none",'
    b'"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{}}},"user":"someone","extra":null,'
    b'"chat_template_kwargs":{"enable_thinking":false},"priority":5,"cache_salt":"acme","max_tokens":5 }\n'
)
SPLICED = b'{"stream_options":{"include_usage":true,"continuous_usage_stats":true},'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, EVERYTHING),
        ("/v1/completions", b'{"model":"tiny","prompt":"import os","max_tokens":6,"echo":true,"logprobs":1}'),
        ("/v1/responses", b'{"model":"tiny","input":[{"role":"user","content":"x"}],"max_output_tokens":5,"x":false}'),
        ("/v1/messages", b'{"model":"tiny","max_tokens":5,"messages":[{"role":"user","content":"x"}],"system":"y"}'),
        ("/v1/embeddings", b'{"model":"tiny","input":["a","b"],"encoding_format":"base64"}'),
        ("/tokenize", b'{"model":"tiny","prompt":"import os"}'),
        ("/v1/messages/count_tokens", b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}'),
    ],
)  # fmt: skip
async def test_a_body_reaches_the_engine_as_it_was(engine: Engine, start: Start, path: str, body: bytes) -> None:
    """Not one byte of a request that is not streamed is changed."""
    engine.script = as_json({})
    served = await start(engine)
    assert (await served.post(body, path)).status == 200
    assert engine.only.body == body
    assert (engine.only.method, engine.only.path) == ("POST", path)
    assert engine.only.headers["content-type"] == "application/json"
    assert engine.only.headers["content-length"] == str(len(body))


async def test_a_streamed_body_gains_one_member_and_loses_none(engine: Engine, start: Start) -> None:
    """Usage is asked for in front of everything else; the client's bytes follow untouched."""
    body = b'{"stream":true,' + EVERYTHING.lstrip()[1:]
    engine.script = recording("stream_cont").script()
    served = await start(engine)
    assert (await served.post(body)).status == 200
    assert engine.only.body == SPLICED + body[1:]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_dialects_that_always_tell_usage_are_not_asked(engine: Engine, start: Start, path: str) -> None:
    """Responses and Messages report usage by themselves, so that a streamed body stays as it is."""
    body = b'{"model":"tiny","stream":true,"input":"x","messages":[{"role":"user","content":"x"}],"max_tokens":5}'
    engine.script = recording("responses_stream" if path == "/v1/responses" else "messages_stream").script()
    served = await start(engine)
    assert (await served.post(body, path)).status == 200
    assert engine.only.body == body


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, USAGE, {"include_usage": False, "continuous_usage_stats": False}]
)
async def test_the_clients_own_stream_options_are_completed(
    engine: Engine, start: Start, options: dict[str, Any] | None
) -> None:
    """Whatever the client said about usage, the engine is asked for all of it; every other member is the client's."""
    engine.script = recording("stream_cont").script()
    served = await start(engine)
    body = ASKED | {"stream": True, "stream_options": options, "temperature": 0.5}
    assert (await served.post(body)).status == 200
    asked = {"include_usage": True, "continuous_usage_stats": True}
    assert engine.only.json == body | {"stream_options": asked}


async def test_stream_options_we_do_not_know_reach_the_engine(engine: Engine, start: Start) -> None:
    """An option of a newer engine is not dropped when usage is asked for beside it."""
    engine.script = recording("stream_cont").script()
    served = await start(engine)
    options = {"include_usage": True, "include_obfuscation": False, "later": {"a": [1.50]}}
    assert (await served.post(ASKED | {"stream": True, "stream_options": options})).status == 200
    assert engine.only.json["stream_options"] == options | {"continuous_usage_stats": True}


async def test_a_field_hidden_in_escapes_is_still_that_field(engine: Engine, start: Start) -> None:
    """`"stre\\u0061m_options"` is `stream_options`: the engine gets one of them, and it asks for usage."""
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":true,'
        b'"stre\\u0061m_options":{"include_usage":false}}'
    )
    engine.script = recording("stream_cont").script()
    served = await start(engine)
    assert (await served.post(body)).status == 200
    pairs = json.loads(engine.only.body, object_pairs_hook=list)
    assert [name for name, _ in pairs].count("stream_options") == 1
    assert engine.only.json["stream_options"]["include_usage"] is True


async def test_a_member_that_stands_twice_counts_as_the_engine_counts_it(engine: Engine, start: Start) -> None:
    """The last one: limits cannot be passed by a small `max_tokens` in front of a large one."""
    served = await start(engine, limits={"max_output_tokens": 50})
    twice = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":5,"max_tokens":51}'
    assert (await served.post(twice)).error["code"] == "context_length_exceeded"


async def test_an_alias_becomes_the_models_own_name(engine: Engine, start: Start) -> None:
    """The engine knows the model by one name; nothing else of the body changes, and the event has that name."""
    engine.script = recording("chat").script()
    served = await start(engine)
    body = EVERYTHING.replace(b'"tiny"', b'"small"')
    assert (await served.post(body)).status == 200
    assert engine.only.json == json.loads(EVERYTHING)
    assert b"9007199254740993" in engine.only.body
    assert b"0.70" in engine.only.body
    assert (await served.event())["model"] == "tiny"


async def test_the_tenants_output_limit_stands_in_the_body(engine: Engine, start: Start) -> None:
    """A client that names no bound gets its tenant's, in the field its endpoint has for it."""
    engine.script = as_json({})
    served = await start(engine, limits={"max_output_tokens": 50})
    for path, body in (
        (CHAT, {"messages": HI}),
        (CHAT, {"messages": HI, "max_tokens": None}),
        ("/v1/messages", {"messages": HI}),
        ("/v1/completions", {"prompt": "x", "max_tokens": None}),
    ):
        await served.post({"model": "tiny", **body}, path)
        assert engine.received[-1].json == {"model": "tiny", **body, "max_tokens": 50}
    await served.post({"model": "tiny", "input": "x"}, "/v1/responses")
    assert engine.received[-1].json == {"model": "tiny", "input": "x", "max_output_tokens": 50}
    await served.post({"model": "tiny", "input": "x"}, "/v1/embeddings")
    assert engine.received[-1].json == {"model": "tiny", "input": "x"}


async def test_too_long_an_answer_is_cut_in_the_clients_own_field(engine: Engine, start: Start) -> None:
    """`on_excess: cap` writes the smaller bound where the client wrote the larger; all else stays, in its order."""
    engine.script = as_json({})
    served = await start(engine, limits={"max_output_tokens": 50}, tenant={"context": {"on_excess": "cap"}})
    for path, body, field in (
        (CHAT, {"messages": HI, "max_tokens": 51}, "max_tokens"),
        (CHAT, {"messages": HI, "max_tokens": 7, "max_completion_tokens": 51, "n": 2}, "max_completion_tokens"),
        ("/v1/messages", {"messages": HI, "max_tokens": 9000}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 51}, "max_tokens"),
        ("/v1/responses", {"max_output_tokens": 51, "input": "x"}, "max_output_tokens"),
    ):
        assert (await served.post({"model": "tiny", **body}, path)).status == 200
        assert list(engine.received[-1].json.items()) == list({"model": "tiny", **body, field: 50}.items())
        within = {"model": "tiny", **body, field: 50}
        await served.post(within, path)
        assert engine.received[-1].json == within


async def test_a_cut_answer_is_held_at_what_it_can_be(engine: Engine, start: Start) -> None:
    """Tokens are reserved by the bound the engine gets, once for each of `n` samples."""
    engine.script = recording("chat").script()
    served = await start(
        engine, limits={"tokens_per_minute": 1000}, key={"context": {"max_output_tokens": 50, "on_excess": "cap"}}
    )
    answer = await served.post({"model": "tiny", "messages": HI, "max_tokens": 4000, "n": 3})
    assert answer.status == 200
    prompt = len(json.dumps(HI, separators=(",", ":"))) // 4
    assert 1000 - int(answer.headers["x-ratelimit-remaining-tokens"]) in (prompt + 150, prompt + 151)


async def test_prompt_and_answer_share_a_total(engine: Engine, start: Start) -> None:
    """The answer gets what the counted prompt leaves of `max_total_tokens`, whether its client named more or none."""
    engine.script = as_json({})
    engine.prompt_tokens = 60
    served = await start(
        engine, service={"context": {"max_total_tokens": 100, "on_excess": "cap"}}, context={"max_output_tokens": 80}
    )
    for asked in ({}, {"max_tokens": 41}, {"max_tokens": 80}):
        assert (await served.post({"model": "tiny", "messages": HI, **asked})).status == 200
        assert engine.received[-1].json["max_tokens"] == 40
    engine.prompt_tokens = 100
    answer = await served.post({"model": "tiny", "messages": HI, "max_tokens": 5})
    assert answer.status == 400
    assert (
        "The limit of class 'service' is 100 tokens in all, but your prompt has 100 tokens" in answer.error["message"]
    )
    assert answer.error["param"] == "messages"
    answer = await served.post({"model": "tiny", "messages": HI, "max_tokens": 81})
    assert "the limit of model 'tiny' is 80" in answer.error["message"]


async def test_the_context_cuts_where_its_model_caps(engine: Engine, start: Start) -> None:
    """An answer that the context has no room for is cut to the room there is, by the engine's count."""
    engine.script = as_json({})
    engine.prompt_tokens = 7
    served = await start(engine, context={"on_excess": "cap"})
    assert (await served.post({"model": "tiny", "messages": HI, "max_tokens": 1_000_000})).status == 200
    assert engine.received[-1].json["max_tokens"] == 4096 - 7


async def test_completions_keep_the_engines_own_default_of_16_tokens(engine: Engine, start: Start) -> None:
    """A completions request without `max_tokens` is one for 16 (OpenAI's and vLLM's default), not for the limit."""
    engine.script = recording("completions").script()
    served = await start(engine, limits={"max_output_tokens": 50, "tokens_per_minute": 1000})
    body = b'{"model":"tiny","prompt":"import os"}'
    answer = await served.post(body, "/v1/completions")
    assert answer.status == 200
    assert engine.only.body == body
    held = 1000 - int(answer.headers["x-ratelimit-remaining-tokens"])
    assert held == len('"import os"') // 4 + 16


async def test_what_the_engine_hears_of_the_client(engine: Engine, start: Start) -> None:
    """Tracing headers and the load format pass; the key, cookies and addresses do not."""
    engine.script = recording("chat").script()
    served = await start(engine)
    await served.post(
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate="a=b",
        endpoint_load_metrics_format="TEXT",
        cookie="session=1",
        x_forwarded_for="10.0.0.1",
        accept_encoding="gzip",
        x_api_key="secret",
    )
    headers = engine.only.headers
    assert headers["traceparent"] == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert headers["tracestate"] == "a=b"
    assert headers["endpoint-load-metrics-format"] == "TEXT"
    for name in ("authorization", "x-api-key", "cookie", "x-forwarded-for", "accept-encoding"):
        assert name not in headers
    assert not any(served.key in value for value in headers.values())


@pytest.mark.parametrize("request_id", ["req-1", "a" * 128, "A.b_c:d-9"])
async def test_a_sane_request_id_is_everywhere_the_same(engine: Engine, start: Start, request_id: str) -> None:
    """The client's id is the engine's, the answer's and the event's."""
    engine.script = recording("chat").script()
    served = await start(engine)
    answer = await served.post(x_request_id=request_id)
    assert answer.headers["x-request-id"] == request_id
    assert engine.only.headers["x-request-id"] == request_id
    assert (await served.event())["id"] == request_id


@pytest.mark.parametrize("request_id", ["", "a" * 129, "with space", "semi;colon", "caf\xe9", "../../etc", "a\tb"])
async def test_another_id_takes_the_place_of_an_insane_one(engine: Engine, start: Start, request_id: str) -> None:
    """An id that could not be logged, stored or sent as it is gets replaced, in all places by the same."""
    engine.script = recording("chat").script()
    served = await start(engine)
    body = json.dumps(ASKED)
    answer = await served.say(
        f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {served.key}\r\nx-request-id: {request_id}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode("latin-1")
    )
    given = answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", given)
    assert engine.only.headers["x-request-id"] == given
    assert (await served.event())["id"] == given


# What the client gets.

RECORDED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (CHAT, {"messages": HI})
        for name in (
            *("chat", "chat_long1", "chat_long2_cached", "chat_long3_cache_salt", "chat_max_completion_tokens"),
            *("chat_priority", "chat_request_id", "orca_chat_text"),
        )
    },
    **{
        name: ("/v1/completions", {"prompt": "import os", "n": 1})
        for name in (
            *("completions", "completions_best_of_echo", "completions_multi", "completions_n2"),
            *("completions_token_ids", "orca_json", "orca_text"),
        )
    },
    **{
        name: (CHAT, {"messages": HI, "stream": True, "stream_options": USAGE})
        for name in ("stream", "stream_usage", "stream_stop", "chat_long4_stream_cached", "stream_token_ids")
    },
    "stream_logprobs": (CHAT, {"messages": HI, "stream": True, "logprobs": True}),
    "stream_n2": (CHAT, {"messages": HI, "stream": True, "n": 2, "stream_options": USAGE}),
    "stream_cont": (CHAT, {"messages": HI, "stream": True, "stream_options": USAGE | {"continuous_usage_stats": True}}),
    "orca_stream_text": (CHAT, {"messages": HI, "stream": True}),
    "completions_stream": ("/v1/completions", {"prompt": "x", "stream": True, "stream_options": USAGE}),
    "responses": ("/v1/responses", {"input": "import os"}),
    "responses_stream": ("/v1/responses", {"input": "import os", "stream": True}),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": 5}),
    "messages_stream": ("/v1/messages", {"messages": HI, "max_tokens": 5, "stream": True}),
    "messages_count_tokens": ("/v1/messages/count_tokens", {"messages": HI}),
    "tokenize": ("/tokenize", {"prompt": "import os"}),
    "tokenize_chat": ("/tokenize", {"messages": HI}),
}


def told_usage(answer: Recording) -> dict[str, int] | None:
    """What a recorded answer says was used, read without the gateway's own readers."""
    told = (
        re.findall(rb'"(?:prompt|input)_tokens":(\d+)', answer.body),
        re.findall(rb'"(?:completion|output)_tokens":(\d+)', answer.body),
    )
    cached = re.findall(rb'"(?:cached_tokens|cache_read_input_tokens)":(\d+)', answer.body)
    if not all(told):
        return None
    return {
        "input_tokens": int(told[0][-1]),
        "input_cached_tokens": int(cached[-1]) if cached else 0,
        "output_tokens": int(told[1][-1]),
    }


@pytest.mark.parametrize("name", RECORDED)
async def test_recorded_answers_arrive_byte_for_byte(engine: Engine, start: Start, name: str) -> None:
    """What vLLM said is what the client reads, and what vLLM counted is what the event says."""
    path, asked = RECORDED[name]
    said = recording(name)
    engine.script = said.script()
    served = await start(engine)
    answer = await served.post({"model": "tiny", **asked}, path)
    assert answer.complete
    assert answer.status == 200
    assert answer.body == said.body
    assert answer.headers["content-type"] == said.headers["content-type"]
    event = await served.event()
    assert (event["status"], event["endpoint"], event["replica"]) == ("ok", path, engine.name)
    expected = told_usage(said)
    if expected is not None:
        assert event["usage"] == expected
        assert not event.get("estimated")


async def test_embeddings(engine: Engine, start: Start) -> None:
    """An embedding's prompt tokens are billed, and it has no output."""
    content = {
        "object": "list",
        "model": "tiny",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.125, -0.5]}],
        "usage": {"prompt_tokens": 1000, "total_tokens": 1000, "completion_tokens": 0, "prompt_tokens_details": None},
    }
    engine.script = as_json(content)
    served = await start(engine)
    answer = await served.post({"model": "tiny", "input": "hello"}, "/v1/embeddings")
    assert answer.json == content
    event = await served.event()
    assert event["usage"] == {"input_tokens": 1000, "input_cached_tokens": 0, "output_tokens": 0}
    assert event["cost_nanousd"] == 500_000  # 1000 tokens at $1 x 0.5 a million


async def test_headers_of_the_engine_that_are_the_clients(engine: Engine, start: Start) -> None:
    """Load metrics that the client asked for pass; what belongs to the engine's own connection does not."""
    extra = ("endpoint-load-metrics: kv=0.5", "server: uvicorn", "keep-alive: timeout=5", "x-request-id: engines-own")
    engine.script = as_json(recording("chat").body, headers=extra)
    served = await start(engine)
    answer = await served.post(x_request_id="mine", endpoint_load_metrics_format="TEXT")
    assert answer.headers["endpoint-load-metrics"] == "kv=0.5"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["content-length"] == str(len(answer.body))
    for name in ("server", "keep-alive", "transfer-encoding"):
        assert name not in answer.headers


# What the gateway asked for is taken out again.


async def test_an_engine_is_asked_for_its_load_and_work_that_no_gateway_told_of_counts(
    engine: Engine, start: Start
) -> None:
    """Seven requests wait in the engine, and none is known of. The client did not ask, and is not told."""
    said = "endpoint-load-metrics: TEXT named_metrics.num_requests_waiting=7.0, named_metrics.kv_cache_usage_perc=0.5"
    engine.script = as_json(recording("chat").body, headers=(said,))
    served = await start(engine)
    answer = await served.post()
    assert engine.only.headers["endpoint-load-metrics-format"] == "TEXT"
    assert "endpoint-load-metrics" not in answer.headers
    load = served.lifecycle.routers.loads.of(engine.name)
    assert load.beside == (7000 - 1000, 6), "the answer's own request had not ended when it was heard"


RUNNING_USAGE = re.compile(rb',"usage":\{[^}]*\}')


@pytest.mark.parametrize("options", [..., None, {"include_usage": False}])
async def test_a_stream_without_usage_is_the_plain_stream(engine: Engine, start: Start, options: Any) -> None:
    """A client that did not ask for usage sees what vLLM sends when nobody asks, and is billed exactly all the same."""
    said = recording("stream_cont")
    engine.script = said.script()
    served = await start(engine)
    body = ASKED | {"stream": True} | ({} if options is ... else {"stream_options": options})
    answer = await served.post(body)
    *chunks, _, done = said.events
    assert answer.body == b"".join(RUNNING_USAGE.sub(b"", chunk) for chunk in chunks) + done
    assert b"usage" not in answer.body
    assert [shape(event) for event in events_of(answer.body)] == [shape(event) for event in recording("stream").events]
    event = await served.event()
    assert event["usage"] == {"input_tokens": 9, "input_cached_tokens": 0, "output_tokens": 5}
    assert event["status"] == "ok"
    assert not event.get("estimated")


def events_of(body: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in body.removesuffix(b"\n\n").split(b"\n\n")]


def shape(event: bytes) -> Any:
    """An event without what differs from call to call. vLLM puts `system_fingerprint` into the last event it sends
    (0.24), which is the one with the usage once somebody asks."""
    if event == b"data: [DONE]\n\n":
        return event
    content = json.loads(event.removeprefix(b"data: "))
    content.pop("system_fingerprint", None)
    content["id"] = ""
    for choice in content["choices"]:
        choice["delta"]["content"] = ""
    return [*content, *content["choices"], content["object"], content["model"]]


async def test_a_client_that_asks_for_usage_gets_the_last_event_only(engine: Engine, start: Start) -> None:
    """`include_usage: true` without `continuous_usage_stats`: usage once, in the event with empty `choices`."""
    said = recording("stream_cont")
    engine.script = said.script()
    served = await start(engine)
    answer = await served.post(ASKED | {"stream": True, "stream_options": USAGE})
    *chunks, final, done = said.events
    assert answer.body == b"".join(RUNNING_USAGE.sub(b"", chunk) for chunk in chunks) + final + done


def chunk(index: int, text: str, prompt: int, completion: int) -> bytes:
    """A chunk as vLLM writes it with `continuous_usage_stats`: each choice counts for itself."""
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    content = {"id": "c", "choices": [{"index": index, "delta": {"content": text}}], "usage": usage}
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def final(prompt: int, completion: int) -> bytes:
    """vLLM's last event, with the sums."""
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return b"data: " + json.dumps({"id": "c", "choices": [], "usage": usage}, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def test_three_answers_in_one_stream(engine: Engine, start: Start) -> None:
    """`n: 3` is billed as the last event sums it: the prompt once, every answer's tokens."""
    chunks = [chunk(i, "x", 9, count) for count in (1, 2, 3) for i in range(3)]
    engine.script = as_stream(*chunks, final(9, 9), DONE)
    served = await start(engine)
    answer = await served.post(ASKED | {"stream": True, "n": 3})
    assert answer.body == b"".join(RUNNING_USAGE.sub(b"", one) for one in chunks) + DONE
    assert (await served.event())["usage"] == {"input_tokens": 9, "input_cached_tokens": 0, "output_tokens": 9}


async def test_several_prompts_in_one_stream(engine: Engine, start: Start) -> None:
    """Two prompts of 3 and 5 tokens, two samples each, are 8 tokens of input."""
    body = {"model": "tiny", "prompt": ["a b", "c d e"], "n": 2, "stream": True}
    engine.script = as_stream(chunk(0, "x", 3, 1), chunk(2, "x", 5, 1), final(8, 4), DONE)
    served = await start(engine)
    assert (await served.post(body, "/v1/completions")).complete
    assert (await served.event())["usage"] == {"input_tokens": 8, "input_cached_tokens": 0, "output_tokens": 4}


async def test_tool_calls_reasoning_and_logprobs_pass_untouched(engine: Engine, start: Start) -> None:
    """Whatever stands in a choice, only the root's usage is taken out: not the word, not one of a tool's arguments."""
    deltas = [
        {"reasoning": 'thinking about "usage"'},
        {"tool_calls": [{"index": 0, "function": {"name": "usage", "arguments": '{"usage":{"a":1}}'}}]},
        {"content": 'data: {"choices":[],"usage":{}}\n\n'},
        {"usage": {"prompt_tokens": 1}},
    ]
    kept, said = [], []
    for count, delta in enumerate(deltas, 1):
        choice = {"index": 0, "delta": delta, "logprobs": {"content": [{"token": "usage", "bytes": [1]}]}}
        usage = {"prompt_tokens": 9, "completion_tokens": count}
        for members, into in (({"usage": usage}, said), ({}, kept)):
            content = {"choices": [choice], **members}
            into.append(b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n")
    engine.script = as_stream(*said, final(9, 4), DONE)
    served = await start(engine)
    answer = await served.post(ASKED | {"stream": True})
    assert answer.body == b"".join(kept) + DONE
    assert (await served.event())["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
async def test_comments_line_ends_and_lines_of_data(engine: Engine, start: Start, line_end: str) -> None:
    """Any line end, comments between and in events, data in several lines: usage goes, the rest stays."""
    head = ": keep-alive\n\nid: 7\nretry: 10\n"
    said = 'data: {"choices":[{"index":0}],\ndata:"usage":{"prompt_tokens":9,"completion_tokens":1},\ndata: "x":1}\n\n'
    kept = 'data: {"choices":[{"index":0}],\ndata: "x":1}\n\n'
    rest = 'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
    end = ": bye\n\ndata: [DONE]\n\n"
    engine.script = as_stream((head + said + rest + end).replace("\n", line_end).encode())
    served = await start(engine)
    answer = await served.post(ASKED | {"stream": True})
    assert answer.body.decode() == (head + kept + end).replace("\n", line_end)
    assert (await served.event())["usage"]["output_tokens"] == 2


@pytest.mark.parametrize("step", [1, 7, 61])
async def test_a_stream_in_any_pieces(engine: Engine, start: Start, step: int) -> None:
    """However the engine's bytes are cut into reads, the client gets the same ones."""
    body = recording("stream_cont").body

    async def drip(talk: Conversation, _: Received) -> None:
        talk.stream()
        for position in range(0, len(body), step):
            talk.chunk(body[position : position + step])
            await talk.room()
        talk.end()

    engine.script = drip
    served = await start(engine)
    answer = await served.post(ASKED | {"stream": True})
    *chunks, _, done = recording("stream_cont").events
    assert answer.body == b"".join(RUNNING_USAGE.sub(b"", chunk) for chunk in chunks) + done
    assert (await served.event())["usage"]["output_tokens"] == 5


async def test_text_that_looks_like_an_event_name(engine: Engine, start: Start) -> None:
    """The usage of a Responses stream is read even when the model writes about deltas."""
    body = recording("responses_stream").body.replace(b" w102021", b" x.delta")
    engine.script = as_stream(*events_of(body))
    served = await start(engine)
    answer = await served.post({"model": "tiny", "input": "x", "stream": True}, "/v1/responses")
    assert answer.body == body
    event = await served.event()
    assert event["usage"] == told_usage(Recording(200, {}, body))
    assert not event.get("estimated")


async def test_an_answer_too_long_to_hold(engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 16 MiB (here 64 KiB) an answer is relayed as it comes, and its usage is read from its end."""
    monkeypatch.setattr(relay, "MAX_WHOLE_BYTES", 65536)
    usage = {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}
    content = {"data": [{"embedding": "x" * 300_000}, {"usage": "no"}], "usage": usage}
    engine.script = as_json(content)
    served = await start(engine)
    answer = await served.post({"model": "tiny", "input": "x"}, "/v1/embeddings")
    assert answer.json == content
    assert answer.headers["transfer-encoding"] == "chunked"
    assert (await served.event())["usage"]["input_tokens"] == 12


async def test_an_engine_that_ends_its_answer_by_closing(engine: Engine, start: Start) -> None:
    """Neither length nor chunks: the end of the connection is the end of the answer, as HTTP/1.0 has it."""
    body = recording("chat").body

    async def script(talk: Conversation, _: Received) -> None:
        talk.write(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
        await talk.room()
        talk.close()

    engine.script = script
    served = await start(engine)
    answer = await served.post()
    assert (answer.status, answer.body, answer.complete) == (200, body, True)
    assert (await served.event())["usage"]["output_tokens"] == 8


async def test_an_engine_that_says_100_first(engine: Engine, start: Start) -> None:
    """Interim answers are the engine's and the gateway's affair; the client reads the final one."""
    body = recording("chat").body

    async def script(talk: Conversation, _: Received) -> None:
        talk.write(b"HTTP/1.1 100 Continue\r\nx-interim: 1\r\n\r\n")
        talk.head(200, "content-type: application/json", f"content-length: {len(body)}")
        talk.write(body)

    engine.script = script
    served = await start(engine)
    answer = await served.post()
    assert (answer.status, answer.body) == (200, body)
    assert "x-interim" not in answer.headers


async def test_an_engine_that_tells_no_usage_is_estimated(engine: Engine, start: Start) -> None:
    """A stream without usage is counted with the engine's tokenizer, and the event says so."""
    said = recording("stream")
    engine.script = said.script()
    served = await start(engine)
    answer = await served.post(ASKED | {"stream": True})
    assert answer.body == said.body
    event = await served.event()
    assert event["estimated"] is True
    assert event["usage"]["input_tokens"] == 7
