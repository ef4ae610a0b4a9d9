"""The simulated replica answers as vLLM 0.24 did on the H200: every recorded request again, compared byte by byte where
bytes do not depend on weights, clock or chance."""

from __future__ import annotations

import json
import re

import pytest

from tests.conformance.simulator.recordings import CALLS, RECORDED, ask, chat, event_shapes, recorded, shape, stream

EXACT = sorted(name for name in CALLS if name.startswith("err_") or name in ("embeddings", "version", "load"))
STREAMS = sorted(name for name in CALLS if b"text/event-stream" in (RECORDED / f"{name}.http").read_bytes())
PLAIN = [name for name in CALLS if name not in STREAMS and name not in ("health", "ping")]


def test_every_recorded_answer_is_compared() -> None:
    """No recording of an answer is left out; the one with its chunk framing has a test of its own."""
    names = {path.stem for path in RECORDED.glob("*.http")}
    assert names - set(CALLS) - {"metrics_idle", "metrics_after_recording", "stream_raw_framing"} == set()


@pytest.mark.parametrize("name", CALLS)
def test_status_and_headers(port: int, name: str) -> None:
    """Status line and header names, in their order, and every header that is not a length, a date or a load."""
    ours, theirs = ask(port, CALLS[name]), recorded(name)
    assert ours.status == theirs.status
    assert ours.header_names == theirs.header_names
    for (key, mine), (_, wanted) in zip(ours.headers, theirs.headers, strict=True):
        if key not in ("date", "content-length"):
            assert mine == wanted


@pytest.mark.parametrize("name", EXACT)
def test_refusals_are_equal_to_the_byte(port: int, name: str) -> None:
    """What holds nothing random is exactly what vLLM said, its source paths included."""
    assert ask(port, CALLS[name]).body == recorded(name).body


@pytest.mark.parametrize("name", PLAIN)
def test_plain_answers_have_the_same_keys_and_values(port: int, name: str) -> None:
    """Keys in their order, and all values that neither weights nor chance decide."""
    ours = ask(port, CALLS[name]).body
    assert shape(json.loads(ours)) == shape(json.loads(recorded(name).body))
    if not name.startswith(("err_", "completions_best")):
        assert json.dumps(json.loads(ours), separators=(",", ":"), ensure_ascii=False).encode() == ours


@pytest.mark.parametrize("name", STREAMS)
def test_streams_have_the_same_events(port: int, name: str) -> None:
    """The same kinds of events in the same order, fields and framing included."""
    ours = ask(port, CALLS[name])
    assert event_shapes(ours) == event_shapes(recorded(name))
    for event in ours.events():
        for line in event.decode().split("\n"):
            data = line.partition(": ")[2]
            if data.startswith("{"):
                assert json.dumps(json.loads(data), separators=(",", ":"), ensure_ascii=False) == data


def test_each_event_is_one_http_chunk(port: int) -> None:
    """vLLM writes one event per chunk of the transfer encoding; so do we."""
    raw = (RECORDED / "stream_raw_framing.http").read_bytes()
    assert re.search(rb"\ndf\r?\ndata: ", raw), "the recording shows one event in a chunk of its own"
    answer = ask(port, stream(max_tokens=3))
    assert [chunk.rstrip(b"\n") for chunk in answer.chunks] == answer.events()
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"}\n\n") for chunk in answer.chunks[:-1])


def test_the_clients_request_id_is_the_answers(port: int) -> None:
    """`X-Request-Id: req-abc` gives `chatcmpl-req-abc`."""
    assert json.loads(ask(port, CALLS["chat_request_id"]).body)["id"] == "chatcmpl-req-abc"


def test_cached_tokens_are_whole_blocks_below_the_prompts_length(port: int) -> None:
    """A repeated prompt reports the largest multiple of 16 below its length; a salt hides it."""
    ask(port, CALLS["chat_long1"])
    usage = json.loads(ask(port, CALLS["chat_long2_cached"]).body)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == (usage["prompt_tokens"] - 1) // 16 * 16
    salted = chat(cache_salt="never seen", messages=[{"role": "user", "content": "some words to fill blocks " * 400}])
    assert json.loads(ask(port, salted).body)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
