"""The request view: what is read of a body, and that nothing a client sends is more than a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Refusal, Refused
from gateway.wire import Endpoint, RequestView, parse

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["tiny", "\ud800", "[", ""]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("n", "best_of", "instructions", "tools", "system", "max_output_tokens", "prompt_embeds", "include_usage"),
        *("user", "safety_identifier", "metadata", "user_id"),
    ]
)


def parsed(endpoint: Endpoint, body: bytes) -> tuple[RequestView | None, Refusal | None]:
    try:
        return parse(endpoint, body), None
    except Refused as refused:
        return None, refused.refusal


@settings(max_examples=400, deadline=None)
@given(
    endpoint=st.sampled_from(list(Endpoint)),
    body=st.one_of(st.dictionaries(NAMES, VALUES, max_size=6).map(json.dumps).map(str.encode), st.binary(max_size=60)),
)
def test_any_body_is_a_view_or_a_refusal(endpoint: Endpoint, body: bytes) -> None:
    """Parsing has two ends: a view whose numbers make sense, or a 400 that can be sent."""
    view, refusal = parsed(endpoint, body)
    if refusal is not None:
        assert refusal.status == 400
        assert json.loads(refusal.body())["error"]["message"]
        return
    assert view is not None
    assert view.prompts >= 1
    assert view.samples >= 1
    assert view.output_tokens is None or view.output_tokens >= 1
    assert (view.prompt_tokens is None) == (view.longest_tokens is None)


def view(endpoint: Endpoint, **body: Any) -> RequestView:
    return parse(endpoint, json.dumps({"model": "tiny", **body}).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts", "total", "longest"),
    [
        ("one", 1, None, None),
        (["one", "two"], 2, None, None),
        ([1, 2, 3], 1, 3, 3),
        ([[1], [1, 2, 3]], 2, 4, 3),
        ([[]], 1, 0, 0),
    ],
)
def test_prompts_are_counted(prompt: Any, prompts: int, total: int | None, longest: int | None) -> None:
    """Strings, lists of strings, token ids and lists of token ids: how many, and how long where that is known."""
    for endpoint, name in ((Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")):
        seen = view(endpoint, **{name: prompt})
        assert (seen.prompts, seen.prompt_tokens, seen.longest_tokens) == (prompts, total, longest)


def test_what_the_client_said_about_usage() -> None:
    """Running usage is for those who ask for `include_usage` too, as vLLM has it."""
    wishes = {}
    for options in (None, {}, {"include_usage": True}, {"continuous_usage_stats": True}):
        seen = view(Endpoint.CHAT, messages=[{}], stream=True, stream_options=options)
        wishes[json.dumps(options)] = (seen.sent_stream_options, seen.wants_usage, seen.wants_running_usage)
    assert wishes == {
        "null": (True, False, False),
        "{}": (True, False, False),
        '{"include_usage": true}': (True, True, False),
        '{"continuous_usage_stats": true}': (True, False, False),
    }


def test_the_answers_bound() -> None:
    """The newer name wins; completions have OpenAI's default of 16 unless null is said; best_of counts as samples."""
    assert view(Endpoint.CHAT, messages=[{}], max_tokens=5, max_completion_tokens=7).output_tokens == 7
    assert view(Endpoint.CHAT, messages=[{}]).output_tokens is None
    assert view(Endpoint.COMPLETIONS, prompt="x").output_tokens == 16
    assert view(Endpoint.COMPLETIONS, prompt="x", max_tokens=None).output_tokens is None
    assert view(Endpoint.COMPLETIONS, prompt=["x", "y"], n=2, best_of=3).answers == 6


def test_the_prompt_begins_with_what_stays_the_same() -> None:
    """Tools and system texts come before messages, since conversations share them: the prefix chain begins there."""
    chat = view(Endpoint.CHAT, messages=[{"a": 1}], tools=[{"b": 2}])
    assert chat.prompt == b'[{"b": 2}][{"a": 1}]'
    messages = view(Endpoint.MESSAGES, messages=[1], system="s", tools=[2])
    assert messages.prompt == b'[2]"s"[1]'
    assert view(Endpoint.RESPONSES, input="x", instructions="i").prompt == b'"i""x"'


@pytest.mark.parametrize(
    ("endpoint", "body", "user", "metadata"),
    [
        (Endpoint.CHAT, {"messages": [{}], "user": "ann"}, b'"ann"', b""),
        (Endpoint.CHAT, {"messages": [{}], "user": None, "safety_identifier": "ann"}, b'"ann"', b""),
        (Endpoint.COMPLETIONS, {"prompt": "x", "user": "ann", "safety_identifier": "bob"}, b'"ann"', b""),
        (Endpoint.RESPONSES, {"input": "x", "metadata": {"team": "a"}}, b"", b'{"team": "a"}'),
        (Endpoint.EMBEDDINGS, {"input": "x", "user": 7, "metadata": 8}, b"7", b"8"),
        (Endpoint.MESSAGES, {"messages": [1], "metadata": {"user_id": "ann"}}, b'"ann"', b'{"user_id": "ann"}'),
        (Endpoint.MESSAGES, {"messages": [1], "metadata": [7]}, b"", b"[7]"),
        (Endpoint.MESSAGES, {"messages": [1], "metadata": None}, b"", b"null"),
        (Endpoint.CHAT, {"messages": [{}]}, b"", b""),
    ],
)
def test_what_a_request_says_of_itself(endpoint: Endpoint, body: Any, user: bytes, metadata: bytes) -> None:
    """`user`, else `safety_identifier`, Anthropic's `metadata.user_id`; raw, so that no value of theirs is refused."""
    seen = view(endpoint, **body)
    assert (seen.user, seen.metadata) == (user, metadata)
