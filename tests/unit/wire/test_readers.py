"""Usage of whole answers, read into one rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import Endpoint, Usage, engine_refusal, read_answer


@pytest.mark.parametrize(
    ("endpoint", "usage", "expected"),
    [
        (Endpoint.CHAT, {"prompt_tokens": 9, "completion_tokens": 8}, Usage(input_tokens=9, output_tokens=8)),
        (Endpoint.CHAT, {"prompt_tokens": 9, "prompt_tokens_details": None}, Usage(input_tokens=9)),
        (
            Endpoint.CHAT,
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}},
            Usage(input_tokens=9, input_cached_tokens=4, output_tokens=1),
        ),
        (
            Endpoint.RESPONSES,
            {"input_tokens": 9, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 4}},
            Usage(input_tokens=9, input_cached_tokens=4, output_tokens=1),
        ),
        (
            Endpoint.MESSAGES,
            {"input_tokens": 5, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 1},
            Usage(input_tokens=10, input_cached_tokens=4, output_tokens=1),
        ),
        (Endpoint.EMBEDDINGS, {"prompt_tokens": 9, "total_tokens": 9}, Usage(input_tokens=9)),
        (Endpoint.CHAT, {"prompt_tokens": 2**62, "completion_tokens": 0}, Usage(input_tokens=2**62)),
        (Endpoint.CHAT, None, None),
        (Endpoint.CHAT, ..., None),
        (Endpoint.TOKENIZE, {"prompt_tokens": 9}, None),
    ],
)
def test_where_usage_stands(endpoint: Endpoint, usage: Any, expected: Usage | None) -> None:
    """Each dialect's own place and names; input has the cached tokens in it; absent is not zero."""
    body = {"id": "x"} | ({} if usage is ... else {"usage": usage})
    assert read_answer(endpoint, json.dumps(body).encode()) == expected


@settings(max_examples=200, deadline=None)
@given(endpoint=st.sampled_from(list(Endpoint)), body=st.binary(max_size=80))
def test_an_answer_of_any_bytes_is_read(endpoint: Endpoint, body: bytes) -> None:
    """What is no answer has no usage, and fails nothing."""
    assert read_answer(endpoint, body) is None or body.lstrip()[:1] == b"{"


@settings(max_examples=300, deadline=None)
@given(
    status=st.integers(400, 599),
    body=st.one_of(
        st.binary(max_size=80),
        st.text(max_size=80).map(lambda text: json.dumps({"error": {"message": text, "param": text}}).encode()),
        st.text(alphabet="'\"\\()msgloc: ,{}validation error", max_size=200).map(
            lambda text: json.dumps({"error": {"message": "1 validation error:\n" + text}}).encode()
        ),
    ),
)
def test_an_error_of_any_bytes_is_told(status: int, body: bytes) -> None:
    """Whatever an engine refuses with becomes an OpenAI error: its 4xx, or 502 for its own failure."""
    refusal = engine_refusal(status, body)
    assert refusal.status == (status if status < 500 else 502)
    error = json.loads(refusal.body())["error"]
    assert error["message"]
    assert len(error["message"]) <= 1000
