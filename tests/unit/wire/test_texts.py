"""Generated text, kept to be counted: bounded, and never a reason to fail."""

from __future__ import annotations

import json
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import Endpoint, answer_texts
from gateway.wire._texts import TEXT_MAX_CHARS, StreamTexts


def chunk(index: int, text: str) -> bytes:
    return json.dumps({"choices": [{"index": index, "delta": {"content": text}}]}).encode()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=8)), max_size=20))
def test_each_sequence_has_its_text(parts: list[tuple[int, str]]) -> None:
    """Put together in order; events without text are no events."""
    texts = StreamTexts()
    for index, text in parts:
        texts.add_choices(chunk(index, text.encode("utf-8", "replace").decode()))
    whole = {i: "".join(t.encode("utf-8", "replace").decode() for j, t in parts if j == i) for i in range(3)}
    assert sorted(texts.texts()) == sorted(text for text in whole.values() if text)
    assert texts.events == sum(bool(text) for _, text in parts)
    assert texts.uncounted == 0


def test_a_long_stream_is_not_kept() -> None:
    """Beyond the bound an event is a token."""
    texts = StreamTexts()
    payload = chunk(0, "x" * 1000)
    tracemalloc.start()
    for _ in range(10_000):
        texts.add_choices(payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = TEXT_MAX_CHARS // 1000
    assert sum(len(text) for text in texts.texts()) == kept * 1000
    assert (texts.events, texts.uncounted) == (10_000, 10_000 - kept)
    assert peak < 2 * TEXT_MAX_CHARS


@settings(max_examples=200, deadline=None)
@given(endpoint=st.sampled_from(list(Endpoint)), body=st.binary(max_size=80))
def test_any_bytes(endpoint: Endpoint, body: bytes) -> None:
    """What cannot be read holds no text."""
    assert answer_texts(endpoint, body) == []
    texts = StreamTexts()
    texts.add_choices(body)
    texts.add_message_delta(body)
    texts.set_response(body)
    assert texts.texts() == []
