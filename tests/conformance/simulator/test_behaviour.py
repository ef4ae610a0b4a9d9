"""What a gateway leans on: usage in every shape, clients that hang up, faults, embeddings, tools, speed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator import PROFILES, StepTimes
from tests.conformance.simulator.conftest import PROFILE, serving
from tests.conformance.simulator.recordings import USAGE, Answer, Call, ask, chat, completion, get, post, stream

# Steps of 5 ms: long enough to hang up between two tokens.
SLOW = replace(PROFILES["tiny"], model="llama-8b", steps=StepTimes(events_per_s=1e9))


@pytest.fixture(scope="module")
def slow_port() -> Iterator[int]:
    """A replica with real steps and a control endpoint."""
    with serving(SLOW, control=True, embeddings=True) as port:
        yield port


def chunks(answer: Answer) -> list[dict[str, Any]]:
    """The JSON of a stream's events."""
    return [json.loads(event[6:]) for event in answer.events() if event != b"data: [DONE]"]


def metric(port: int, name: str) -> float:
    """One of the engine's unlabelled series."""
    for line in ask(port, get("/metrics")).body.decode().splitlines():
        if line.startswith(f"vllm:{name}{{"):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(name)


def wait_until(port: int, name: str, value: float) -> None:
    """Until a gauge has that value, for at most five seconds."""
    deadline = time.monotonic() + 5
    while metric(port, name) != value:
        assert time.monotonic() < deadline, f"{name} never became {value}"


def begin(port: int, call: Call) -> socket.socket:
    """Send a request and read the first bytes of its answer, if it streams."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    head = f"POST {call[1]} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(call[3])}\r\n\r\n"
    connection.sendall(head.encode() + call[3])
    if b'"stream": true' in call[3]:
        while b"data: " not in connection.recv(1 << 16):
            pass
    return connection


def test_running_usage_counts_one_sample_and_the_last_one_all(port: int) -> None:
    """With n=2 each chunk's usage is that sample's alone; the final chunk's is the sum, and the prompt counts once."""
    answer = chunks(ask(port, stream(n=2, stream_options={**USAGE, "continuous_usage_stats": True})))
    last: dict[int, int] = {}
    for chunk in answer[:-1]:
        assert chunk["usage"]["total_tokens"] == chunk["usage"]["prompt_tokens"] + chunk["usage"]["completion_tokens"]
        last[chunk["choices"][0]["index"]] = chunk["usage"]["completion_tokens"]
    assert last == {0: 5, 1: 5}
    assert answer[-1]["choices"] == []
    assert answer[-1]["usage"]["completion_tokens"] == 10
    assert answer[-1]["usage"]["prompt_tokens"] == answer[0]["usage"]["prompt_tokens"]


def test_several_prompts_in_one_completion(port: int) -> None:
    """Each chunk tells its own prompt's tokens, the final one the sum over prompts."""
    call = completion(
        prompt=["one", "one two three"], stream=True, stream_options={**USAGE, "continuous_usage_stats": True}
    )
    answer = chunks(ask(port, call))
    prompts = {chunk["choices"][0]["index"]: chunk["usage"]["prompt_tokens"] for chunk in answer[:-1]}
    assert prompts[0] < prompts[1]
    assert answer[-1]["usage"]["prompt_tokens"] == sum(prompts.values())
    assert answer[-1]["usage"]["completion_tokens"] == 8


def test_usage_is_the_number_of_token_ids_however_events_are_cut(port: int) -> None:
    """An event may hold several tokens; the running usage is always that of the ids sent so far."""
    call = stream(max_tokens=300, return_token_ids=True, stream_options={**USAGE, "continuous_usage_stats": True})
    seen = 0
    for chunk in chunks(ask(port, call))[:-1]:
        seen += len(chunk["choices"][0].get("token_ids") or [])
        assert chunk["usage"]["completion_tokens"] == seen
    assert seen == 300


def test_the_same_request_gives_the_same_answer(port: int) -> None:
    """Answers hang on prompt and seed alone."""
    texts = [
        json.loads(ask(port, chat(seed=seed, max_tokens=20)).body)["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_hangs_up_stops_its_generation(slow_port: int, streamed: bool) -> None:
    """Running falls to 0 and blocks are freed, streamed or not; tokens made until then stay counted, no success is."""
    ended = metric(slow_port, "request_generation_tokens_count")
    made = metric(slow_port, "generation_tokens_total")
    connection = begin(slow_port, chat(max_tokens=3000, **({"stream": True} if streamed else {})))
    wait_until(slow_port, "num_requests_running", 1)
    connection.close()
    wait_until(slow_port, "num_requests_running", 0)
    assert metric(slow_port, "kv_cache_usage_perc") == 0
    assert metric(slow_port, "request_generation_tokens_count") == ended
    assert made <= metric(slow_port, "generation_tokens_total") < made + 2000


def test_load_counts_what_is_being_answered(slow_port: int) -> None:
    """`/load` is 1 while one stream is open."""
    with closing(begin(slow_port, stream(max_tokens=3000))):
        assert json.loads(ask(slow_port, get("/load")).body) == {"server_load": 1}
    wait_until(slow_port, "num_requests_running", 0)


def fault(port: int, **fields: Any) -> None:
    """Make the replica ill, or well without fields."""
    assert ask(port, post("/simulator/faults", fields)).status == "HTTP/1.1 200 OK"


def raw(port: int, call: Call) -> bytes:
    """All bytes of an answer, however the connection ends."""
    connection = begin(port, (call[0], call[1], {}, call[3].replace(b'"stream": true', b'"stream":true')))
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
            if data.endswith(b"0\r\n\r\n"):
                break
    except ConnectionResetError:
        pass
    connection.close()
    return data


def test_faults(slow_port: int) -> None:
    """Each fault strikes as often as it was told to, and the replica is well afterwards."""
    fault(slow_port, kind="status", status=503, times=1)
    assert ask(slow_port, chat()).status == "HTTP/1.1 503 Service Unavailable"
    assert ask(slow_port, chat()).status == "HTTP/1.1 200 OK"
    fault(slow_port, kind="reset", times=1)
    assert raw(slow_port, chat()) == b""
    fault(slow_port, kind="die", after_chunks=3, times=1)
    cut = raw(slow_port, stream(max_tokens=50))
    assert (cut.count(b"data: "), b"[DONE]" in cut) == (3, False)
    fault(slow_port, kind="error_event", after_chunks=2, times=1)
    broken = raw(slow_port, stream(max_tokens=50))
    assert broken.count(b"data: ") == 4
    assert b'data: {"error":{"message":' in broken
    fault(slow_port)
    wait_until(slow_port, "num_requests_running", 0)


def test_a_replica_that_hangs_answers_nothing(slow_port: int) -> None:
    """No byte comes, and its health is still fine."""
    fault(slow_port, kind="hang", times=1)
    with closing(begin(slow_port, chat())) as connection:
        assert ask(slow_port, get("/health")).status == "HTTP/1.1 200 OK"
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_faults_need_the_control_endpoint(port: int) -> None:
    """Without `control` there is no such path."""
    assert ask(port, post("/simulator/faults", {})).status == "HTTP/1.1 404 Not Found"


def test_embeddings_where_they_are_served(slow_port: int) -> None:
    """One vector for each input, and usage with prompt tokens only."""
    answer = json.loads(
        ask(slow_port, post("/v1/embeddings", {"model": "llama-8b", "input": ["one", "two three"]})).body
    )
    counts = [
        json.loads(ask(slow_port, post("/tokenize", {"prompt": text})).body)["count"] for text in ("one", "two three")
    ]
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(counts)


GENERATING = [
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    *("/v1/messages/count_tokens", "/tokenize", "/detokenize"),
]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_a_forced_tool_is_called(port: int, choice: object) -> None:
    """The message holds one call of it with JSON arguments, streamed or not."""
    message = json.loads(ask(port, chat(tools=TOOLS, tool_choice=choice)).body)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "look_up"
    ended = json.loads(ask(port, chat(tools=TOOLS, tool_choice=choice, max_tokens=900, ignore_eos=False)).body)
    assert ended["choices"][0]["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
    assert list(json.loads(message["tool_calls"][0]["function"]["arguments"])) == ["text"]
    arguments, names = "", []
    for chunk in chunks(ask(port, stream(tools=TOOLS, tool_choice=choice))):
        for call in chunk["choices"][0]["delta"].get("tool_calls", []):
            arguments += call["function"]["arguments"]
            names += [call["function"]["name"]] if "name" in call["function"] else []
    assert names == ["look_up"]
    assert list(json.loads(arguments)) == ["text"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xfe", 400),
        (b"[" * 10_000, 400),
        (b'{"messages": []}', 200),
        (b'{"messages": [1]}', 400),
        (b'{"messages": [{"role": "user", "content": 5}], "max_tokens": 3}', 200),
        (b'{"messages": "x", "stream": "perhaps"}', 400),
        (b'{"messages": [{"role": "user"}], "max_tokens": "many"}', 400),
        (b"null", 400),
    ],
)
def test_nothing_a_client_sends_is_a_500(port: int, body: bytes, status: int) -> None:
    """Whatever the body is, it is answered."""
    answer = ask(port, post("/v1/chat/completions", body))
    assert answer.status.startswith(f"HTTP/1.1 {status} ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    *("model", "messages", "prompt", "input", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"),
    *("n", "seed", "temperature", "top_p", "stream", "stream_options", "stop", "stop_token_ids", "logprobs"),
    *("top_logprobs", "prompt_logprobs", "echo", "ignore_eos", "cache_salt", "tools", "tool_choice", "system"),
    *("return_token_ids", "stop_sequences", "instructions", "metadata", "user", "tokens"),
)
fields = st.sampled_from(FIELDS)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(GENERATING), st.dictionaries(fields, json_values, max_size=3))
def test_no_value_of_any_field_is_a_500(port: int, path: str, changes: dict[str, Any]) -> None:
    """A sound request with a few fields replaced by anything is answered, and never by 500."""
    sound: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "prompt": "hi",
        "input": "hi",
        "max_tokens": 3,
    }
    body = json.dumps({"model": "llama-8b", "tokens": [500], **sound, **changes}).encode()
    status = ask(port, ("POST", path, {}, body)).status.split()[1]
    assert status in ("200", "400", "404"), (path, body)


def test_a_conversation_finds_its_own_answers_in_the_cache(port: int) -> None:
    """The second turn's cached tokens reach into the first turn's answer."""
    messages = [{"role": "user", "content": "tell me of the sea " * 20}]
    first = json.loads(ask(port, chat(messages=messages, max_tokens=100)).body)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "and of the shore"}]
    usage = json.loads(ask(port, chat(messages=messages)).body)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > first["usage"]["prompt_tokens"] + 60


def test_the_model_name_and_limits_are_the_profiles(port: int) -> None:
    """`/v1/models` says what the profile says."""
    model = json.loads(ask(port, get("/v1/models")).body)["data"][0]
    assert (model["id"], model["max_model_len"]) == (PROFILE.model, PROFILE.max_model_len)
