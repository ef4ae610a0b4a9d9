"""Usage of whole answers, read into one rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engines import engine_refusal
from gateway.wire import Endpoint, Usage, read_answer
from tests.integration.gateway.engine import recording


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
            Usage(input_tokens=10, input_cached_tokens=4, input_cache_write_tokens=1, output_tokens=1),
        ),
        (
            Endpoint.CHAT,
            {
                "prompt_tokens": 90,
                "completion_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 30, "image_tokens": 40},
                "completion_tokens_details": {"reasoning_tokens": 12, "audio_tokens": 5},
            },
            Usage(
                input_tokens=90,
                input_cached_tokens=4,
                input_audio_tokens=30,
                input_image_tokens=40,
                output_tokens=20,
                output_reasoning_tokens=12,
                output_audio_tokens=5,
            ),
        ),
        (
            Endpoint.CHAT,
            {
                "prompt_tokens": 90,
                "completion_tokens": 20,
                "prompt_tokens_details": {
                    "cached_tokens": 4,
                    "created_cache_tokens": 80,
                    "multimodal_tokens": {"image": 40, "audio": 30, "video": 7},
                },
                "completion_tokens_details": None,
            },
            Usage(
                input_tokens=90,
                input_cached_tokens=4,
                input_cache_write_tokens=80,
                input_audio_tokens=30,
                input_image_tokens=40,
                output_tokens=20,
            ),
        ),
        (
            Endpoint.RESPONSES,
            {
                "input_tokens": 9,
                "output_tokens": 8,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
                "output_tokens_details": {"reasoning_tokens": 7, "tool_output_tokens": 0},
            },
            Usage(
                input_tokens=9,
                input_cached_tokens=4,
                input_cache_write_tokens=5,
                output_tokens=8,
                output_reasoning_tokens=7,
            ),
        ),
        (
            Endpoint.EMBEDDINGS,
            {"prompt_tokens": 9, "total_tokens": 9, "prompt_tokens_details": {"multimodal_tokens": {"image": 8}}},
            Usage(input_tokens=9, input_image_tokens=8),
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


@pytest.mark.parametrize(
    ("name", "endpoint", "expected"),
    [
        ("chat", Endpoint.CHAT, Usage(input_tokens=9, output_tokens=8)),
        (
            "chat_long2_cached",
            Endpoint.CHAT,
            Usage(input_tokens=2562, input_cached_tokens=2544, output_tokens=4),
        ),
        ("completions", Endpoint.COMPLETIONS, Usage(input_tokens=2, output_tokens=6)),
        ("responses", Endpoint.RESPONSES, Usage(input_tokens=4, output_tokens=5)),
        ("messages", Endpoint.MESSAGES, Usage(input_tokens=9, output_tokens=5)),
    ],
)
def test_recorded_usage(name: str, endpoint: Endpoint, expected: Usage) -> None:
    """What vLLM 0.24 said of its own answers."""
    assert read_answer(endpoint, recording(name).body) == expected


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
