"""The requests behind the recordings, and what of an answer must equal the recorded one."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[1] / "engines" / "vllm-0.24.0-h200"

Call = tuple[str, str, dict[str, str], bytes]

# Values that depend on weights, tokenizer, clock or chance. What is not named here must be equal.
FREE = {
    *("id", "created", "created_at", "item_id", "content", "text", "delta", "token", "tokens", "bytes", "root"),
    *("prompt_tokens", "total_tokens", "completion_tokens", "input_tokens", "original_input_tokens", "count"),
    *("prompt_token_ids", "token_ids", "text_offset", "arguments", "cached_tokens"),
    *("top_logprobs", "prompt_logprobs", "prompt", "token_logprobs", "logprob"),
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer as it was on the wire, chunk framing removed."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    chunks: tuple[bytes, ...] = ()
    """What each chunk of the transfer encoding carried, the last and empty one left out."""

    @property
    def header_names(self) -> list[str]:
        return [name for name, _ in self.headers]

    def events(self) -> list[bytes]:
        """Events of a stream, each without its blank line."""
        assert self.body.endswith(b"\n\n")
        return self.body.rstrip(b"\n").split(b"\n\n")


def parse(raw: bytes) -> Answer:
    """From the bytes of a connection, or of a recording (whose chunk framing is gone already)."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if not _:
        head, _, body = raw.partition(b"\n\n")
    lines = head.decode().splitlines()
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
    return Answer(lines[0], headers, body)


def recorded(name: str) -> Answer:
    """A recording by its file's name."""
    return parse((RECORDED / f"{name}.http").read_bytes())


def ask(port: int, call: Call) -> Answer:
    """Send one request on a connection of its own, as the recordings were made."""
    method, path, headers, body = call
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        raw = b""
        while part := connection.recv(1 << 16):
            raw += part
    answer = parse(raw)
    if ("transfer-encoding", "chunked") in answer.headers:
        chunks = _unchunk(answer.body)
        return Answer(answer.status, answer.headers, b"".join(chunks), tuple(chunks))
    return answer


def _unchunk(body: bytes) -> list[bytes]:
    chunks: list[bytes] = []
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return chunks
        chunks.append(rest[:length])
        body = rest[length + 2 :]


def post(path: str, body: dict[str, Any] | bytes, **headers: str) -> Call:
    """A POST with JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return "POST", path, {name.replace("_", "-"): value for name, value in headers.items()}, raw


def get(path: str) -> Call:
    """A GET."""
    return "GET", path, {}, b""


MESSAGES = [{"role": "user", "content": "def hello(world): return"}]
LONG = [{"role": "user", "content": "some words to fill blocks " * 400}]
USAGE = {"include_usage": True}


def chat(**fields: Any) -> Call:
    """A chat completion of the model, whose answer only a limit ends."""
    body = {"model": "llama-8b", "messages": MESSAGES, "max_tokens": 5, "ignore_eos": True, **fields}
    return post("/v1/chat/completions", {name: value for name, value in body.items() if value is not None})


def completion(**fields: Any) -> Call:
    """A completion, likewise."""
    body = {"model": "llama-8b", "prompt": "import os", "max_tokens": 4, "ignore_eos": True, **fields}
    return post("/v1/completions", body)


def stream(**fields: Any) -> Call:
    """A streamed chat completion."""
    return chat(stream=True, **fields)


def with_header(call: Call, **headers: str) -> Call:
    """The same with headers."""
    return call[0], call[1], {name.replace("_", "-"): value for name, value in headers.items()}, call[3]


_STREAMED = {"model": "llama-8b", "max_tokens": 5, "stream": True}
_LOAD = "endpoint_load_metrics_format"

CALLS: dict[str, Call] = {
    "chat": chat(max_tokens=8),
    "chat_long1": chat(messages=LONG, max_tokens=4),
    "chat_long3_cache_salt": chat(messages=LONG, max_tokens=4, cache_salt="acme"),
    "chat_long2_cached": chat(messages=LONG, max_tokens=4),
    "chat_long4_stream_cached": stream(messages=LONG, max_tokens=4, stream_options=USAGE),
    "chat_max_completion_tokens": chat(max_tokens=None, max_completion_tokens=3),
    "chat_priority": chat(max_tokens=2, priority=5),
    "chat_request_id": with_header(chat(max_tokens=2), x_request_id="req-abc"),
    "completions": completion(max_tokens=6),
    "completions_best_of_echo": completion(max_tokens=2, echo=True, logprobs=1),
    "completions_multi": completion(prompt=["import os", "def f(x): return"]),
    "completions_n2": completion(n=2),
    "completions_stream": completion(stream=True, stream_options=USAGE),
    "completions_token_ids": completion(prompt=[500, 501, 502, 503]),
    "detokenize": post("/detokenize", {"model": "llama-8b", "tokens": [783, 599]}),
    "embeddings": post("/v1/embeddings", {"model": "llama-8b", "input": "hello"}),
    "err_ctx": chat(max_tokens=9_999_999),
    "err_empty_body": post("/v1/chat/completions", b""),
    "err_json": post("/v1/chat/completions", b'{"model":}'),
    "err_method": get("/v1/chat/completions"),
    "err_model": chat(model="nope"),
    "err_n_zero": chat(n=0),
    "err_neg": chat(max_tokens=-1),
    "err_no_messages": post("/v1/chat/completions", {"model": "llama-8b"}),
    "err_path": get("/v1/nothing"),
    "err_stream_options_without_stream": chat(max_tokens=8, stream_options=USAGE),
    "err_temperature": chat(temperature=-3),
    "err_token_id_out_of_range": completion(prompt=[999_999]),
    "err_tool_choice_auto": chat(
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], tool_choice="auto"
    ),
    "err_toolong": completion(prompt=[500] * 140_000),
    "err_toolong_stream": completion(prompt=[500] * 140_000, stream=True),
    "err_type": post("/v1/chat/completions", {"model": "llama-8b", "messages": "x"}),
    "err_zero_max": chat(max_tokens=0),
    "health": get("/health"),
    "load": get("/load"),
    "messages": post("/v1/messages", {"model": "llama-8b", "max_tokens": 5, "messages": MESSAGES}),
    "messages_count_tokens": post("/v1/messages/count_tokens", {"model": "llama-8b", "messages": MESSAGES}),
    "messages_stream": post("/v1/messages", {**_STREAMED, "messages": MESSAGES}),
    "models": get("/v1/models"),
    "orca_chat_text": with_header(chat(max_tokens=2), **{_LOAD: "TEXT"}),
    "orca_json": with_header(completion(), **{_LOAD: "JSON"}),
    "orca_stream_text": with_header(stream(max_tokens=2), **{_LOAD: "TEXT"}),
    "orca_text": with_header(completion(), **{_LOAD: "TEXT"}),
    "ping": get("/ping"),
    "responses": post("/v1/responses", {"model": "llama-8b", "input": "import os", "max_output_tokens": 5}),
    "responses_stream": post(
        "/v1/responses", {"model": "llama-8b", "input": "import os", "max_output_tokens": 5, "stream": True}
    ),
    "stream": stream(),
    "stream_cont": stream(stream_options={**USAGE, "continuous_usage_stats": True}),
    "stream_logprobs": stream(max_tokens=2, logprobs=True, top_logprobs=1),
    "stream_n2": stream(max_tokens=3, n=2, stream_options=USAGE),
    "stream_stop": stream(stop=["a", "e", "i", "o", "u"], stream_options=USAGE),
    "stream_token_ids": stream(max_tokens=3, return_token_ids=True),
    "stream_usage": stream(stream_options=USAGE),
    "tokenize": post("/tokenize", {"model": "llama-8b", "prompt": "import os"}),
    "tokenize_chat": post("/tokenize", {"model": "llama-8b", "messages": MESSAGES}),
    "version": get("/version"),
}
"""One request for each recording, in an order in which cached prompts have come before."""


def shape(value: Any, name: str = "") -> Any:
    """A value with what is free taken out; objects become lists of pairs, so that the order of keys counts."""
    if isinstance(value, dict):
        return [(key, shape(one, key)) for key, one in value.items()]
    if name == "stop_reason" and isinstance(value, str):
        return "str"
    if name in FREE and value is not None and not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return type(value).__name__
    if isinstance(value, list):
        return [shape(one, name) for one in value]
    return value


def event_shapes(answer: Answer) -> list[Any]:
    """The different shapes of a stream's events, in order of first appearance: an event may hold several tokens."""
    shapes: list[Any] = []
    for event in answer.events():
        one: list[Any] = []
        for line in event.decode().split("\n"):
            field, _, data = line.partition(": ")
            one.append((field, shape(json.loads(data)) if data.startswith("{") else data))
        numberless = json.loads(json.dumps(one))
        _forget_numbers(numberless)
        if numberless not in shapes:
            shapes.append(numberless)
    return shapes


def _forget_numbers(value: Any) -> None:
    if isinstance(value, list):
        if len(value) == 2 and value[0] == "sequence_number":
            value[1] = "number"
        for one in value:
            _forget_numbers(one)
