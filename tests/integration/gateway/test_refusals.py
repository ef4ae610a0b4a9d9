"""Every row of the refusal table, through real sockets: the answer, what is booked, and that nothing is taken."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.tenants import KeyStore
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import (
    RECORDED,
    Conversation,
    Engine,
    Received,
    as_json,
    dies,
    recording,
    says_nothing,
)
from tests.integration.gateway.serving import ASKED, CHAT, Served, StoppedClock, eventually, key_of
from tests.integration.gateway.wire_client import Answer

LIMITS = {"requests_per_minute": 5, "tokens_per_minute": 5000, "concurrent_requests": 4, "budget_usd": 1}


async def took_nothing(served: Served, *, requests: int = 0) -> None:
    """Every limit of the tenant is whole (but for `requests` of requests/min), and nothing was spent."""
    left = (await served.usage())["limits"]
    assert left["requests_per_minute"]["remaining"] == 5 - requests
    assert left["tokens_per_minute"]["remaining"] == 5000
    assert left["concurrent_requests"]["remaining"] == 4
    assert left["budget_usd"] | {"resets_at": 0} == {
        "limit_usd": "1.00",
        "period": "month",
        "spent_usd": "0.00",
        "reserved_usd": "0.00",
        "remaining_usd": "1.00",
        "resets_at": 0,
    }


async def refused(served: Served, answer: Answer, status: int, code: str, *, model: str = "tiny") -> dict[str, Any]:
    """The refusal's error object. It was booked as one `refused` event with no tokens and no cost."""
    assert (answer.status, answer.error["code"]) == (status, code)
    event = await served.event()
    assert event["status"] == "refused"
    assert event["code"] == code
    assert event["id"] == answer.headers["x-request-id"]
    assert (event["tenant"], event["key"], event["model"]) == ("acme", "acme", model)
    assert "usage" not in event or not any(event["usage"].values())
    assert event.get("cost_nanousd", 0) == 0
    report = await served.usage()
    assert report["totals"]["refused"] == {code: 1}
    assert report["totals"]["requests"] == 0
    return answer.error


# 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "authorization: Bearer\r\n",
        "authorization: Bearer mtok-acme-wrong\r\n",
        f"authorization: Bearer mtok-acme-{'x' * 43}\r\n",
        f"authorization: Basic {key_of('acme')}\r\n",
        "authorization: Bearer \xff\xfe\r\n",
        "x-api-key: nothing\r\n",
    ],
)
async def test_no_key_or_an_unknown_one_is_401(engine: Engine, start: Start, header: str) -> None:
    """Without a known key nothing is read: 401 `invalid_api_key`, and no engine hears of it."""
    served = await start(engine)
    body = json.dumps(ASKED)
    answer = await served.say(
        f"POST {CHAT} HTTP/1.1\r\nhost: g\r\n{header}content-length: {len(body)}\r\n\r\n{body}".encode("latin-1")
    )
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["type"] == "authentication_error"
    assert answer.error["param"] is None
    assert "retry-after" not in answer.headers
    assert engine.received == []


async def test_a_key_works_until_it_is_revoked(engine: Engine, start: Start) -> None:
    """A key made in Redis works at once, under its own id in the events; revoked, it is 401 at once."""
    engine.script = recording("chat").script()
    served = await start(engine)
    keys = KeyStore(served.redis, now_ms=served.gateway.clock.now_ms)
    made = await keys.create("acme", "acme-app")
    assert (await served.post(key=made.key)).status == 200
    assert (await served.event())["key"] == "acme-app"
    await keys.revoke("acme-app")

    async def refused_now() -> Answer | None:
        answer = await served.post(key=made.key)
        return answer if answer.status == 401 else None

    assert (await eventually(refused_now)).error["code"] == "invalid_api_key"


# 404


async def test_a_model_that_is_not_there_and_one_that_is_forbidden_are_the_same_answer(
    engine: Engine, start: Start
) -> None:
    """Nobody finds out which models exist: both answers are the same, byte for byte, but for the request's id."""
    served = await start(engine, limits=LIMITS)
    forbidden = await served.post(ASKED | {"model": "other"})
    served_to_rival = await served.post(ASKED | {"model": "tiny"}, key=key_of("rival"))
    missing = await served.post(ASKED | {"model": "nonesuch"})
    assert forbidden.status == missing.status == served_to_rival.status == 404
    assert forbidden.body.replace(b"other", b"nonesuch") == missing.body
    assert sorted(forbidden.headers) == sorted(missing.headers)
    assert missing.error == {
        "message": "The model 'nonesuch' does not exist or you may not use it. GET /v1/models lists yours.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    events = await served.events(at_least=2)
    assert [(event["status"], event["code"], event["model"]) for event in events] == [
        ("refused", "model_not_found", "")
    ] * 2
    assert engine.received == []
    await took_nothing(served)


# 400: what is not a request

DEEP = b"[" * 10_000 + b"]" * 10_000
HI = [{"role": "user", "content": "Hi"}]

WRONG: list[tuple[str, str, bytes | dict[str, Any], str | None]] = [
    ("empty body", CHAT, b"", None),
    ("not JSON", CHAT, b'{"model":', None),
    ("an array", CHAT, b"[]", None),
    ("a string", CHAT, b'"tiny"', None),
    ("null", CHAT, b"null", None),
    ("two objects", CHAT, b'{"model":"tiny","messages":[{}]}{}', None),
    ("NaN", CHAT, b'{"model":"tiny","messages":[{}],"temperature":NaN}', None),
    ("invalid UTF-8", CHAT, b'{"model":"tiny","messages":[{"role":"user","content":"\xff"}]}', None),
    ("a cut UTF-8 sequence", CHAT, b'{"model":"tiny","messages":[{"role":"user","content":"\xe2\x82"}]}', None),
    ("no model", CHAT, {"messages": HI}, "model"),
    ("model a number", CHAT, {"model": 5, "messages": HI}, "model"),
    ("model null", CHAT, {"model": None, "messages": HI}, "model"),
    ("no messages", CHAT, {"model": "tiny"}, "messages"),
    ("empty messages", CHAT, {"model": "tiny", "messages": []}, "messages"),
    ("empty messages with spaces", CHAT, b'{"model":"tiny","messages":[ \n ]}', "messages"),
    ("messages a string", CHAT, {"model": "tiny", "messages": "Hi"}, "messages"),
    ("messages null", CHAT, {"model": "tiny", "messages": None}, "messages"),
    ("max_tokens 0", CHAT, ASKED | {"max_tokens": 0}, "max_tokens"),
    ("max_tokens -1", CHAT, ASKED | {"max_tokens": -1}, "max_tokens"),
    ("max_tokens a string", CHAT, ASKED | {"max_tokens": "5"}, "max_tokens"),
    ("max_tokens a fraction", CHAT, ASKED | {"max_tokens": 1.5}, "max_tokens"),
    ("max_tokens true", CHAT, ASKED | {"max_tokens": True}, "max_tokens"),
    ("max_completion_tokens 0", CHAT, ASKED | {"max_completion_tokens": 0}, "max_completion_tokens"),
    ("n 0", CHAT, ASKED | {"n": 0}, "n"),
    ("n a string", CHAT, ASKED | {"n": "3"}, "n"),
    ("stream a string", CHAT, ASKED | {"stream": "yes"}, "stream"),
    ("stream_options a list", CHAT, ASKED | {"stream": True, "stream_options": []}, "stream_options"),
    ("include_usage 1", CHAT, ASKED | {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ("nested messages", CHAT, b'{"model":"tiny","messages":' + DEEP + b"}", None),
    ("nested elsewhere", CHAT, b'{"model":"tiny","messages":[{}],"metadata":' + DEEP + b"}", None),
    ("nested alone", CHAT, DEEP, None),
    ("nested objects", CHAT, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None),
    ("no prompt", "/v1/completions", {"model": "tiny"}, "prompt"),
    ("prompt null", "/v1/completions", {"model": "tiny", "prompt": None}, "prompt"),
    ("prompt a number", "/v1/completions", {"model": "tiny", "prompt": 5}, "prompt"),
    ("prompt empty list", "/v1/completions", {"model": "tiny", "prompt": []}, "prompt"),
    ("prompt of fractions", "/v1/completions", {"model": "tiny", "prompt": [1.5]}, "prompt"),
    ("prompt mixed", "/v1/completions", {"model": "tiny", "prompt": [[1], "x"]}, "prompt"),
    ("best_of 0", "/v1/completions", {"model": "tiny", "prompt": "x", "best_of": 0}, "best_of"),
    ("no input", "/v1/responses", {"model": "tiny"}, "input"),
    ("input a number", "/v1/responses", {"model": "tiny", "input": 1}, "input"),
    ("input empty", "/v1/responses", {"model": "tiny", "input": []}, "input"),
    ("max_output 0", "/v1/responses", {"model": "tiny", "input": "", "max_output_tokens": 0}, "max_output_tokens"),
    ("no Anthropic messages", "/v1/messages", {"model": "tiny", "max_tokens": 5}, "messages"),
    ("Anthropic max_tokens 0", "/v1/messages", {"model": "tiny", "max_tokens": 0, "messages": HI}, "max_tokens"),
    ("no embeddings input", "/v1/embeddings", {"model": "tiny"}, "input"),
    ("embeddings input null", "/v1/embeddings", {"model": "tiny", "input": None}, "input"),
    ("nothing to tokenize", "/tokenize", {"model": "tiny"}, "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
async def test_a_body_that_is_no_request_is_400(
    engine: Engine, start: Start, path: str, body: bytes | dict[str, Any], param: str | None
) -> None:
    """The answer names the field that is wrong, nothing is taken, and no engine is troubled with it."""
    served = await start(engine, limits=LIMITS)
    answer = await served.post(body, path)
    error = await refused(served, answer, 400, "invalid_request", model="")
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300
    assert "retry-after" not in answer.headers
    assert engine.received == []
    await took_nothing(served)


# 400: too long


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(engine: Engine, start: Start) -> None:
    """The engine's own tokenizer counts where the bytes alone cannot decide."""
    engine.prompt_tokens = 5000
    served = await start(engine, limits=LIMITS)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 2000}]}
    answer = await served.post(body)
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert error["param"] == "messages"
    assert "4096 tokens" in error["message"]
    assert "5000 tokens" in error["message"]
    assert json.loads(engine.tokenized[0].body)["messages"] == body["messages"]
    assert engine.received == []
    await took_nothing(served)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "word " * 2000}, "prompt"),
        ("/v1/completions", {"prompt": ["word", "word " * 2000]}, "prompt"),
        ("/v1/responses", {"input": "word " * 2000, "instructions": "Be brief."}, "input"),
        ("/v1/responses", {"input": [{"role": "user", "content": "word " * 2000}]}, "input"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "word " * 2000}], "system": "Be brief."},
            "messages",
        ),
        ("/v1/embeddings", {"input": "word " * 2000}, "input"),
    ],
)
async def test_every_endpoints_prompt_is_counted(
    engine: Engine, start: Start, path: str, body: dict[str, Any], param: str
) -> None:
    """Whatever form a prompt has, the engine's tokenizer is asked and the refusal names the client's own field."""
    engine.prompt_tokens = 5000
    served = await start(engine, limits=LIMITS)
    answer = await served.post({"model": "tiny", **body}, path)
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert error["param"] == param
    assert "5000 tokens" in error["message"]
    assert engine.received == []
    await took_nothing(served)


async def test_a_prompt_far_over_the_context_is_refused_uncounted(engine: Engine, start: Start) -> None:
    """A prompt of 4 MB has more than 4096 tokens whatever they are, so nobody is asked to count."""
    served = await start(engine, limits=LIMITS)
    answer = await served.post({"model": "tiny", "messages": [{"role": "user", "content": "word" * 1_000_000}]})
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert "at least 5208 tokens" in error["message"]
    assert engine.tokenized == []


async def test_a_prompt_with_its_answer_over_the_context_says_how_much_fits(engine: Engine, start: Start) -> None:
    """Prompt 7 + max_tokens 4090 is over 4096: the answer says 4089 would do; with 4089 it runs."""
    engine.script = recording("chat").script()
    served = await start(engine, limits=LIMITS)
    answer = await served.post(ASKED | {"max_tokens": 4090})
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert error["param"] == "max_tokens"
    assert "4096 tokens" in error["message"]
    assert "7 tokens" in error["message"]
    assert "4097 in all" in error["message"]
    assert "at most 4089" in error["message"]
    await took_nothing(served)
    assert (await served.post(ASKED | {"max_tokens": 4089})).status == 200


async def test_token_ids_are_counted_exactly_without_a_tokenizer(engine: Engine, start: Start) -> None:
    """4096 token ids leave no room for an answer; 4095 do, for one token."""
    engine.script = recording("completions_token_ids").script()
    served = await start(engine)
    body = {"model": "tiny", "prompt": [500] * 4096, "max_tokens": 1}
    error = await refused(served, await served.post(body, "/v1/completions"), 400, "context_length_exceeded")
    assert error["param"] == "prompt"
    assert "4096 tokens" in error["message"]
    assert (await served.post(body | {"prompt": [500] * 4095}, "/v1/completions")).status == 200
    assert engine.tokenized == []


async def test_the_longest_of_several_prompts_counts_against_the_context(engine: Engine, start: Start) -> None:
    """Many short prompts may be longer together than the context; one of them may not."""
    engine.script = recording("completions_multi").script()
    served = await start(engine)
    fits = {"model": "tiny", "prompt": [[1] * 3000, [2] * 3000], "max_tokens": 4}
    assert (await served.post(fits, "/v1/completions")).status == 200
    answer = await served.post(fits | {"prompt": [[1], [2] * 4094]}, "/v1/completions")
    assert answer.error["code"] == "context_length_exceeded"
    assert "4094 tokens" in answer.error["message"]


async def test_the_tenants_own_input_limit(engine: Engine, start: Start) -> None:
    """`max_input_tokens` refuses with the counted and the allowed number, whatever the context."""
    engine.prompt_tokens = 101
    served = await start(engine, limits=LIMITS | {"max_input_tokens": 100})
    answer = await served.post()
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert error["param"] == "messages"
    assert "101 tokens" in error["message"]
    assert "100 input tokens" in error["message"]
    await took_nothing(served)


async def test_the_tenants_own_output_limit(engine: Engine, start: Start) -> None:
    """`max_output_tokens` refuses a larger `max_tokens`, and bounds a request that named none."""
    engine.script = recording("chat").script()
    served = await start(engine, limits=LIMITS | {"max_output_tokens": 50})
    answer = await served.post(ASKED | {"max_tokens": 51})
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert error["param"] == "max_tokens"
    assert "51 output tokens" in error["message"]
    assert "at most 50" in error["message"]
    await took_nothing(served)
    assert (await served.post({"model": "tiny", "messages": HI})).status == 200
    assert engine.only.json == {"model": "tiny", "messages": HI, "max_tokens": 50}


async def test_a_tokenizer_that_cannot_tell_leaves_the_limit_to_the_engine(engine: Engine, start: Start) -> None:
    """Between its bounds and without a count the prompt is let through; the engine says if it is too long."""
    engine.prompt_tokens = None
    engine.script = recording("err_toolong").script()
    served = await start(engine, limits=LIMITS)
    answer = await served.post({"model": "tiny", "messages": [{"role": "user", "content": "word " * 2000}]})
    error = await refused(served, answer, 400, "context_length_exceeded")
    assert "131072" in error["message"]
    assert "140000" in error["message"]
    await took_nothing(served)


async def test_a_picture_is_held_at_the_context_and_not_counted(engine: Engine, start: Start) -> None:
    """No tokenizer tells a picture's tokens: the engine decides, and dollars are reserved for all it may take."""
    engine.script = recording("chat").script()
    served = await start(engine, limits=LIMITS | {"concurrent_tokens": 4096 + 20})
    parts = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 20}
    assert (await served.post(body)).status == 200
    assert engine.tokenized == []
    assert (await served.post(body | {"max_tokens": 21})).error["code"] != "context_length_exceeded"
    assert len(engine.received) == 1


# 413 and 408


async def test_a_body_that_announces_too_much_is_413_unread(engine: Engine, start: Start) -> None:
    """The answer comes before the first byte of the body."""
    served = await start(engine, limits=LIMITS, settings={"max_body_bytes": 1000})
    answer = await served.say(
        f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {served.key}\r\ncontent-length: 1001\r\n\r\n"
    )
    error = await refused(served, answer, 413, "request_too_large", model="")
    assert "1000 bytes" in error["message"]
    await took_nothing(served)


async def test_a_client_that_waits_for_100_continue_is_told_413_instead(engine: Engine, start: Start) -> None:
    """`Expect: 100-continue` is answered with the refusal, so the body never travels; what fits is continued."""
    engine.script = recording("chat").script()
    served = await start(engine, settings={"max_body_bytes": 1000})
    head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {served.key}\r\nexpect: 100-continue\r\n"
    assert (await served.say(f"{head}content-length: 1001\r\n\r\n")).status == 413
    body = json.dumps(ASKED).encode()
    async with served.connect() as client:
        client.send(f"{head}content-length: {len(body)}\r\n\r\n".encode())
        assert (await client.head())[0] == 100
        client.send(body)
        assert (await client.answer()).status == 200


async def test_a_chunked_body_without_end_is_413_and_read_no_further(engine: Engine, start: Start) -> None:
    """Once the limit is passed the gateway answers and takes at most the linger's 1 MiB more, then hangs up."""
    served = await start(engine, limits=LIMITS, settings={"max_body_bytes": 100_000})
    async with served.connect() as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {served.key}\r\n"
            "transfer-encoding: chunked\r\n\r\n".encode()
        )
        reading = asyncio.create_task(client.answer())
        sent = 0
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        while not client.writer.is_closing() and sent < 64 * 1024 * 1024:
            client.send(chunk)
            sent += len(chunk)
            try:
                await client.writer.drain()
            except ConnectionError:
                break
        answer = await reading
        assert sent < 16 * 1024 * 1024, "the gateway went on reading"
    await refused(served, answer, 413, "request_too_large", model="")
    await took_nothing(served)


async def test_a_body_at_the_limit_is_read(engine: Engine, start: Start) -> None:
    """The limit is the largest size that is served; one byte more is not."""
    engine.script = recording("chat").script()
    body = json.dumps(ASKED).encode()
    served = await start(engine, settings={"max_body_bytes": len(body)})
    assert (await served.post(body)).status == 200
    assert (await served.post(body + b" ")).status == 413


@pytest.mark.parametrize(
    "start_of_request",
    ["POST /v1/cha", f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nx-slow: 1"],
)
async def test_headers_that_trickle_in_are_408(engine: Engine, start: Start, start_of_request: str) -> None:
    """A request whose headers are not there by the deadline is answered 408 and closed, however busily it trickles."""
    served = await start(engine, settings={"read_timeout_s": 0.3})
    began = asyncio.get_running_loop().time()
    async with served.connect() as client:
        client.send(start_of_request.encode())
        answering = asyncio.create_task(client.answer())
        while not answering.done():
            client.send(b"a")
            await asyncio.wait([answering], timeout=0.02)
        answer = await answering
        await client.ended()
    took_s = asyncio.get_running_loop().time() - began
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert "0.3 s" in answer.error["message"]
    assert answer.headers["connection"] == "close"
    assert 0.25 < took_s < 2


@pytest.mark.parametrize("lines", [f"x-large: {'a' * 70_000}\r\n", "a: b\r\n" * 12_000, "x" * 70_000])
async def test_headers_without_end_are_431(engine: Engine, start: Start, lines: str) -> None:
    """Headers are bounded as bodies are: 64 KiB, whether one is too long or there are too many."""
    served = await start(engine)
    async with served.connect() as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: g\r\n{lines}".encode())
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert "65536 bytes" in answer.error["message"]
        await client.ended()


async def test_a_body_that_trickles_in_is_408(engine: Engine, start: Start) -> None:
    """A body that is not complete by the deadline is answered 408; the engine never hears of it."""
    served = await start(engine, limits=LIMITS, settings={"read_timeout_s": 0.3})
    async with served.connect() as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {served.key}\r\n"
            "content-length: 5000\r\n\r\n{".encode()
        )
        answering = asyncio.create_task(client.answer())
        while not answering.done():
            client.send(b" ")
            await asyncio.wait([answering], timeout=0.02)
        answer = await answering
        await client.ended()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert engine.received == []
    await took_nothing(served)


# 429


async def test_requests_per_minute(engine: Engine, start: Start) -> None:
    """The sixth request of five a minute is refused until one refills, and the headers count down to that."""
    engine.script = recording("chat").script()
    served = await start(engine, limits=LIMITS, clock=StoppedClock())
    for left in range(4, -1, -1):
        answer = await served.post()
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "5"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    answer = await served.post()
    assert answer.status == 429
    error = answer.error
    assert (error["code"], error["type"], error["param"]) == ("rate_limit_exceeded", "rate_limit_error", None)
    assert "5 requests per minute" in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 12
    assert 0 < int(answer.headers["retry-after-ms"]) <= 12_000
    assert -(-int(answer.headers["retry-after-ms"]) // 1000) == int(answer.headers["retry-after"])
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert answer.headers["x-ratelimit-limit-tokens"] == "5000"
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(5000 - 5 * 17)
    assert "x-should-retry" not in answer.headers
    events = await served.events(at_least=6)
    assert [event["status"] for event in events] == ["ok"] * 5 + ["refused"]
    assert events[5]["code"] == "rate_limit_exceeded"
    assert len(engine.received) == 5
    assert (await served.usage())["limits"]["tokens_per_minute"]["remaining"] >= 5000 - 5 * 17


async def test_tokens_per_minute(engine: Engine, start: Start) -> None:
    """What a request may use is held against tokens/min: 4000 of 5000 once, and not twice at the same time."""
    engine.scripts.append(says_nothing)
    served = await start(engine, limits=LIMITS)
    async with served.connect() as client:
        client.post(CHAT, ASKED | {"max_tokens": 4000}, key=served.key)
        await eventually(lambda: engine.received)
        answer = await served.post(ASKED | {"max_tokens": 4000})
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert "5000 tokens per minute" in answer.error["message"]
        assert 30_000 < int(answer.headers["retry-after-ms"]) <= 40_000
        assert 980 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 1000
        assert (await served.usage())["limits"]["concurrent_requests"]["remaining"] == 3
    assert (await served.events())[0]["status"] == "refused"


async def test_a_request_larger_than_the_minute_is_not_worth_a_retry(engine: Engine, start: Start) -> None:
    """Tokens/min that can never hold the request: 429 without `Retry-After`, and `x-should-retry: false`."""
    served = await start(engine, limits=LIMITS | {"tokens_per_minute": 1000}, context_tokens=100_000)
    answer = await served.post(ASKED | {"max_tokens": 1001})
    await refused(served, answer, 429, "rate_limit_exceeded")
    assert "can ever hold" in answer.error["message"]
    assert "retry-after" not in answer.headers
    assert answer.headers["x-should-retry"] == "false"
    assert (await served.usage())["limits"]["requests_per_minute"]["remaining"] == 5


async def test_a_wait_over_a_minute_is_not_worth_a_retry(engine: Engine, start: Start) -> None:
    """A refusal that passes only after more than 60 s says so, and tells SDKs not to spend their retries on it."""
    usage = {"prompt_tokens": 10, "completion_tokens": 2500, "total_tokens": 2510}
    engine.script = as_json({"object": "chat.completion", "choices": [{"index": 0}], "usage": usage})
    served = await start(engine, limits={"tokens_per_minute": 1000})
    assert (await served.post()).status == 200
    answer = await served.post(ASKED | {"max_tokens": 100})
    assert answer.status == 429
    assert int(answer.headers["retry-after-ms"]) > 60_000
    assert int(answer.headers["retry-after"]) > 60
    assert answer.headers["x-should-retry"] == "false"


async def test_a_request_without_max_tokens_does_not_take_the_whole_minute(engine: Engine, start: Start) -> None:
    """No whole-headroom reservation: an answer that nobody bounded holds a usual one's tokens, not the context."""
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    engine.script = as_json({"object": "chat.completion", "choices": [{"index": 0}], "usage": usage})
    served = await start(engine, limits={"output_tokens_per_minute": 2000}, context_tokens=100_000)
    assert (await served.post()).status == 200
    cut = await start(engine, limits={"output_tokens_per_minute": 100}, context_tokens=100_000)
    assert (await cut.post()).status == 200


async def test_tokens_per_day_hold_the_most_a_request_can_use(engine: Engine, start: Start) -> None:
    """Of a day, prompt and max_tokens are taken before the request runs: what could overrun it is refused by name."""
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    engine.script = as_json({"object": "chat.completion", "choices": [{"index": 0}], "usage": usage})
    served = await start(engine, limits={"tokens_per_day": 1000, "concurrent_tokens": 5000}, context_tokens=100_000)
    answer = await served.post(ASKED | {"max_tokens": 1000})
    await refused(served, answer, 429, "rate_limit_exceeded")
    assert "1000 tokens per day" in answer.error["message"]
    left = (await served.usage())["limits"]
    assert (left["tokens_per_day"]["remaining"], left["concurrent_tokens"]["remaining"]) == (1000, 5000)
    assert (await served.post(ASKED | {"max_tokens": 500})).status == 200
    left = (await served.usage())["limits"]
    assert left["tokens_per_day"]["remaining"] == 970
    assert left["concurrent_tokens"]["remaining"] == 5000


async def test_concurrent_requests(engine: Engine, start: Start) -> None:
    """One of one runs: the next is refused, and runs once the first has ended."""
    engine.scripts.append(says_nothing)
    engine.script = recording("chat").script()
    served = await start(engine, limits={"concurrent_requests": 1})
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key)
        await eventually(lambda: engine.received)
        answer = await served.post()
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert "1 request may run at the same time" in answer.error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert "x-should-retry" not in answer.headers
    assert [event["status"] for event in await served.events(at_least=2)] == ["refused", "client_gone"]
    assert (await served.post()).status == 200


async def test_a_request_that_could_cost_more_than_is_left_does_not_run(engine: Engine, start: Start) -> None:
    """The budget is hard: what the request can cost at most has to fit before it runs. 7 tokens of prompt and 200
    of answer cost up to $0.0002035."""
    served = await start(engine, limits={"budget_usd": 0.0002})
    answer = await served.post(ASKED | {"max_tokens": 200})
    error = await refused(served, answer, 429, "insufficient_quota")
    assert error["type"] == "insufficient_quota"
    assert "$0.0002 " in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    budget = (await served.usage())["limits"]["budget_usd"]
    assert (budget["spent_usd"], budget["reserved_usd"]) == ("0.00", "0.00")
    assert engine.received == []


async def test_a_prompt_is_counted_where_only_its_bound_does_not_fit(engine: Engine, start: Start) -> None:
    """Its bytes could be 300 tokens and are 7: a budget that holds those lets it run."""
    engine.script = as_json({"object": "chat.completion", "choices": [{"index": 0}], "usage": {"prompt_tokens": 7}})
    served = await start(engine, limits={"budget_usd": 0.0001})
    assert (await served.post()).status == 200
    assert len(engine.tokenized) == 1
    assert (await served.post(ASKED | {"max_tokens": 200})).status == 429
    assert len(engine.tokenized) == 1, "no count would have helped"


async def test_a_budget_used_up(engine: Engine, start: Start) -> None:
    """Once it is spent nothing runs until the next period, and the answer says when that is."""
    usage = {"prompt_tokens": 0, "completion_tokens": 1000, "total_tokens": 1000}
    engine.script = as_json({"object": "chat.completion", "choices": [{"index": 0}], "usage": usage})
    served = await start(engine, limits={"budget_usd": 0.001})
    assert (await served.post()).status == 200
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (429, "insufficient_quota")
    assert "used up the budget of $0.001" in answer.error["message"]
    assert "UTC" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert (await served.usage())["totals"]["cost_usd"] == "0.001"
    assert len(engine.received) == 1


async def test_a_budget_reserved_by_what_runs_is_worth_waiting_for(engine: Engine, start: Start) -> None:
    """Money that is reserved and not spent comes back: `rate_limit_exceeded` with `Retry-After`, not a spent quota."""
    engine.scripts.append(says_nothing)
    served = await start(engine, limits={"budget_usd": 0.001})
    async with served.connect() as client:
        client.post(CHAT, ASKED | {"max_tokens": 800}, key=served.key)
        await eventually(lambda: engine.received)
        answer = await served.post(ASKED | {"max_tokens": 800})
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert "reserved, not spent" in answer.error["message"]
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("field", ["n", "best_of"])
@pytest.mark.parametrize("count", [2**31, 2**53, 2**62])
async def test_absurd_numbers_are_refused_not_failed_on(engine: Engine, start: Start, field: str, count: int) -> None:
    """A number of answers that nobody could pay is a refusal, whatever it multiplies to."""
    served = await start(engine, limits={"budget_usd": 1, "tokens_per_minute": 1_000_000})
    answer = await served.post({"model": "tiny", "prompt": "x", "max_tokens": 10, field: count}, "/v1/completions")
    assert answer.status in (400, 429)
    assert answer.error["code"] in ("insufficient_quota", "rate_limit_exceeded", "invalid_request")
    assert engine.received == []


# 503 and 502


async def test_no_healthy_replica(engine: Engine, start: Start) -> None:
    """Nobody is there to serve: 503 with `Retry-After`, `/readyz` says so too, and nothing was taken."""
    engine.healthy = False
    served = await start(engine, limits=LIMITS)
    answer = await served.post()
    error = await refused(served, answer, 503, "no_healthy_replica")
    assert error["type"] == "service_unavailable_error"
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["retry-after-ms"] == "2000"
    assert (await served.get("/readyz")).status == 503
    await took_nothing(served)


async def test_replicas_that_refuse_connections(engine: Engine, second: Engine, start: Start) -> None:
    """All replicas gone since the last probe: 503, after each was tried once, and they are avoided from now on."""
    served = await start(engine, second, limits=LIMITS)
    await engine.refuse()
    await second.refuse()
    answer = await served.post()
    await refused(served, answer, 503, "no_healthy_replica")
    assert [served.replica(engine).healthy, served.replica(second).healthy] == [False, False]
    await took_nothing(served)


async def test_every_replica_busy(engine: Engine, second: Engine, start: Start) -> None:
    """Engines that answer 503 or 429 are asked in turn; when all do, the client is told when to come back."""
    engine.script = as_json({"detail": "overloaded"}, status=503)
    second.script = as_json({"detail": "slow down"}, status=429)
    served = await start(engine, second, limits=LIMITS)
    answer = await served.post()
    await refused(served, answer, 503, "replicas_busy")
    assert answer.headers["retry-after"] == "1"
    assert len(engine.received) == len(second.received) == 1
    await took_nothing(served)


async def test_died_everywhere_before_the_first_byte(engine: Engine, second: Engine, start: Start) -> None:
    """Each replica was tried once and died: 502, tokens and dollars given back, and the event says what happened."""
    engine.script = second.script = dies
    served = await start(engine, second, limits=LIMITS)
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (502, "upstream_lost")
    assert answer.error["type"] == "upstream_error"
    assert len(engine.received) == len(second.received) == 1
    event = await served.event()
    assert (event["status"], event["code"]) == ("upstream_lost", "upstream_lost")
    assert event.get("cost_nanousd", 0) == 0
    await took_nothing(served, requests=1)


@pytest.mark.parametrize("death", ["at once", "after the head", "in the head", "garbage"])
async def test_the_first_replica_dead_the_second_answers(
    engine: Engine, second: Engine, start: Start, death: str
) -> None:
    """Until a body byte has come another replica may answer; the event names the one that did."""

    dead: list[str] = []

    async def die_first(talk: Conversation, request: Received) -> None:
        if dead:
            await recording("chat").script()(talk, request)
            return
        dead.append(f"127.0.0.1:{talk.transport.get_extra_info('sockname')[1]}")
        if death == "after the head":
            talk.stream()
            await talk.room()
        elif death == "in the head":
            talk.write(b"HTTP/1.1 200 OK\r\ncontent-type: te")
        elif death == "garbage":
            talk.write(b"220 smtp.example ready\r\n")
            return
        talk.close()

    engine.script = second.script = die_first
    served = await start(engine, second, limits=LIMITS)
    answer = await served.post()
    assert (answer.status, answer.body) == (200, recording("chat").body)
    event = await served.event()
    assert event["status"] == "ok"
    assert event["usage"]["output_tokens"] == 8
    assert {event["replica"], *dead} == {engine.name, second.name}


async def test_the_answer_names_the_replica_that_gave_it(engine: Engine, second: Engine, start: Start) -> None:
    """One replica dead for certain, the other alive: the event carries the living one's name, and is one."""
    engine.script = dies
    second.script = recording("chat").script()
    served = await start(engine, second)
    while not engine.received:  # until placement sends a new prefix to the dead one
        number = len(second.received)
        answer = await served.post(ASKED | {"messages": [{"role": "user", "content": f"prompt {number}"}]})
        assert answer.status == 200
        assert answer.body == recording("chat").body
    events = await served.events(at_least=len(second.received))
    assert {event["replica"] for event in events} == {second.name}
    assert len(events) == len(second.received)
    assert second.received[-1].body == engine.received[0].body
    assert second.received[-1].headers["x-request-id"] == engine.received[0].headers["x-request-id"]


# the engine's own refusals

ERRORS = sorted(path.stem for path in RECORDED.glob("err_*.http"))
EXPECTED: dict[str, tuple[int, str, str | None, str]] = {
    "err_ctx": (
        400,
        "context_length_exceeded",
        "max_tokens",
        "max_tokens=9999999 cannot be greater than max_model_len=max_total_tokens=131072. Please request fewer output "
        "tokens.",
    ),
    "err_empty_body": (400, "invalid_request", None, "Field required"),
    "err_json": (400, "invalid_request", "9", "9: JSON decode error"),
    "err_method": (405, "method_not_allowed", None, "Method Not Allowed"),
    "err_model": (404, "not_found", "model", "The model `nope` does not exist."),
    "err_n_zero": (400, "invalid_request", None, "n must be at least 1, got 0."),
    "err_neg": (400, "invalid_request", "max_tokens", "max_tokens must be at least 1, got -1."),
    "err_no_messages": (400, "invalid_request", "messages", "messages: Field required"),
    "err_path": (404, "not_found", None, "Not Found"),
    "err_stream_options_without_stream": (
        400,
        "invalid_request",
        "stream_options",
        "Stream options can only be defined when `stream=True`.",
    ),
    "err_temperature": (400, "invalid_request", "temperature", "temperature must be non-negative, got -3.0."),
    "err_token_id_out_of_range": (400, "invalid_request", None, "Token id 999999 is out of vocabulary"),
    "err_tool_choice_auto": (
        400,
        "invalid_request",
        None,
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ),
    "err_toolong": (
        400,
        "context_length_exceeded",
        "input_tokens",
        "This model's maximum context length is 131072 tokens. However, you requested 4 output tokens and your prompt "
        "contains 140000 input tokens, for a total of 140004 tokens. Please reduce the length of the input prompt or "
        "the number of requested output tokens.",
    ),
    "err_type": (400, "invalid_request", "messages", "messages: Input should be a valid list"),
    "err_zero_max": (400, "invalid_request", "max_tokens", "max_tokens must be at least 1, got 0."),
}
EXPECTED["err_toolong_stream"] = EXPECTED["err_toolong"]


def test_every_recorded_error_is_here() -> None:
    """A new recording wants its row."""
    assert sorted(EXPECTED) == ERRORS


@pytest.mark.parametrize("name", ERRORS)
async def test_an_engines_refusal_is_told_in_openais_shape(engine: Engine, start: Start, name: str) -> None:
    """Its status and its sentence, without source paths or excerpts of the request; nothing is billed."""
    status, code, param, message = EXPECTED[name]
    engine.script = recording(name).script()
    served = await start(engine, limits=LIMITS)
    answer = await served.post()
    error = await refused(served, answer, status, code)
    assert (error["param"], error["message"]) == (param, message)
    assert error["type"] == "invalid_request_error"
    for secret in (b"File ", b".py", b"/srv", b"'input'", b"pydantic", b"VLLMValidationError"):
        assert secret not in answer.body
    await took_nothing(served)


async def test_an_engines_500_is_502_without_its_insides(engine: Engine, start: Start) -> None:
    """What went wrong in the engine is not the client's to read, and not its to pay for."""
    told = {"error": {"message": "EngineDeadError at /srv/v/site/x.py", "type": "InternalServerError", "code": 500}}
    engine.script = as_json(told, status=500)
    served = await start(engine, limits=LIMITS)
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (502, "engine_error")
    assert b"EngineDead" not in answer.body
    event = await served.event()
    assert (event["status"], event["code"], event["replica"]) == ("engine_error", "engine_error", engine.name)
    await took_nothing(served, requests=1)


@pytest.mark.parametrize("body", [b"", b"<html>nope</html>", b"[1]", b'{"error": "text"}', b"[" * 20_000, b"\xff"])
async def test_an_engines_refusal_of_any_shape(engine: Engine, start: Start, body: bytes) -> None:
    """Whatever stands in an engine's 4xx, the client gets that status with an OpenAI error."""
    engine.script = as_json(body, status=418)
    served = await start(engine)
    answer = await served.post()
    error = await refused(served, answer, 418, "engine_418")
    assert error["message"]
