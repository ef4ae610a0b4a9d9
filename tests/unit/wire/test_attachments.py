"""What of a prompt is no text: found however it is written, and nothing else is taken for it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import Endpoint, RequestView, parse

PICTURE = "data:image/png;base64," + "A" * 4000


def chat(content: Any, **fields: Any) -> RequestView:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
    return parse(Endpoint.CHAT, json.dumps(body).encode())


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"image_url": {"url": PICTURE}},
        {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "data": PICTURE}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"data": PICTURE}}]},
        {"type": "document", "source": {"data": PICTURE}},
        {"type": "video_url", "video_url": {"url": PICTURE}},
        {"type": "image_embeds", "image_embeds": PICTURE},
    ],
)
def test_parts_of_every_api(part: dict[str, Any]) -> None:
    """One attachment of about its base64's length, also behind a text and without a `type`."""
    view = chat([{"type": "text", "text": "What is this?"}, part])
    assert view.attachments == 1
    assert len(PICTURE) <= view.attachment_bytes <= len(PICTURE) + 40
    assert chat(["What is this?", part, part]).attachments == 2


@pytest.mark.parametrize(
    "content",
    [
        '[{"type": "image_url"}] "image_url"',
        [{"type": "text", "text": '{"type": "image_url", "image_url": 1}'}],
        [{"type": "text", "text": "a"}, {"type": "tool_use", "name": "open", "input": {"file": "a", "type": "image"}}],
        [{"type": "something_new", "text": "a"}],
        [],
        None,
    ],
)
def test_texts_are_no_attachments(content: Any) -> None:
    """What a text talks about, and what a model gave to its tools, is text."""
    view = chat(content, tools=[{"type": "function", "function": {"name": "image", "parameters": {"type": "image"}}}])
    assert (view.attachments, view.attachment_bytes) == (0, 0)


@given(kind=st.sampled_from(["image_url", "input_audio", "video_url"]), escaped=st.sets(st.integers(0, 20)))
def test_escaped_letters_hide_nothing(kind: str, escaped: set[int]) -> None:
    """JSON may write any letter as an escape, in names and values alike."""
    raw = json.dumps([{"role": "user", "content": [{"type": kind, kind: {"url": "http://h/x"}}]}])
    at = {match.start() for match in re.finditer("[a-z_]", raw)}
    letters = {place for number, place in enumerate(sorted(at)) if number % 21 in escaped}
    hidden = "".join(f"\\u{ord(letter):04x}" if place in letters else letter for place, letter in enumerate(raw))
    assert json.loads(hidden) == json.loads(raw)
    assert parse(Endpoint.CHAT, b'{"model":"tiny","messages":%b}' % hidden.encode()).attachments == 1


def test_responses_items_and_messages_blocks() -> None:
    """The other endpoints' forms, a tool's output of pictures among them."""
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://h/x.png"}]}]
    outputs = [{"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": "x"}]}]
    for given_items, expected in ((items, 1), (outputs, 1), (items + outputs, 2), ("[{}] image_url", 0)):
        view = parse(Endpoint.RESPONSES, json.dumps({"model": "tiny", "input": given_items}).encode())
        assert view.attachments == expected
    blocks = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://h/x"}}]}]
    assert parse(Endpoint.MESSAGES, json.dumps({"model": "tiny", "messages": blocks}).encode()).attachments == 1


def test_documents_and_a_clients_own_template() -> None:
    """Both put more into a prompt than its messages hold; `null` is none."""
    assert chat("x", documents=[{"text": "a"}]).attachments == 1
    assert chat("x", documents=None, chat_template=None, chat_template_kwargs=None) == chat("x")
    assert chat("x", chat_template="{% for i in range(9999) %}x{% endfor %}").open_ended


@pytest.mark.parametrize(
    ("template_kwargs", "open_ended"),
    [
        ({"enable_thinking": False, "thinking_budget": 1000, "reasoning_effort": "high"}, False),
        ({"date_string": "26 Jul 2025"}, False),
        ({"date_string": "x" * 5000}, True),
        ({"custom_tools": ["x"]}, True),
        ({f"switch_{number}": True for number in range(99)}, True),
    ],
)
def test_texts_for_the_template_are_bounded_by_nothing(template_kwargs: dict[str, Any], open_ended: bool) -> None:
    """Switches are no texts. A template may write a text wherever and as often as it likes."""
    assert chat("x", chat_template_kwargs=template_kwargs).open_ended is open_ended
    for endpoint, field, prompt in (
        (Endpoint.RESPONSES, "input", "x"),
        (Endpoint.MESSAGES, "messages", [{"role": "user", "content": "x"}]),
    ):
        body = {"model": "tiny", field: prompt, "chat_template_kwargs": template_kwargs}
        assert parse(endpoint, json.dumps(body).encode()).open_ended is open_ended


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (Endpoint.RESPONSES, {"previous_response_id": "resp_1"}),
        (Endpoint.RESPONSES, {"previous_input_messages": [{"role": "user", "content": "x"}]}),
        (Endpoint.EMBEDDINGS, {"messages": [{"role": "user", "content": "x" * 99}]}),
        (Endpoint.EMBEDDINGS, {"padding": "max_length"}),
    ],
)
def test_what_the_engine_adds_is_bounded_by_nothing(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    """Earlier turns that it kept, and padding."""
    assert not parse(endpoint, b'{"model": "tiny", "input": "x"}').open_ended
    assert not parse(endpoint, json.dumps({"model": "tiny", "input": "x", **dict.fromkeys(fields)}).encode()).open_ended
    view = parse(endpoint, json.dumps({"model": "tiny", "input": "x", **fields}).encode())
    assert view.open_ended
    assert view.prompt_tokens is None


def test_a_hostile_nesting_costs_no_more_than_it_is_long() -> None:
    """Indenting these would make gigabytes; what is too long to be measured is bounded by nothing."""
    nested = "[" * 900 + "]" * 900
    few = chat("x", tools=json.loads(f"[{nested}]"))
    assert few.added_bytes > 4 * 900 * 900
    assert not few.open_ended
    many = b",".join([nested.encode()] * 1000)
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"tools":[%b]}' % many
    assert parse(Endpoint.CHAT, body).open_ended
    parts = b",".join([b"[]"] * 99_999)
    body = b'{"model":"tiny","messages":[{"role":"user","content":["x",%b]}]}' % parts
    assert parse(Endpoint.CHAT, body).attachments == 1
