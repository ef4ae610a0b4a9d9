"""Errors that engines tell in the first event of a stream, under a 200."""

from __future__ import annotations

import json

import pytest

from gateway.engines import engine_refusal
from gateway.wire import first_event_is_whole, in_band_error
from tests.integration.gateway.engine import recording


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b'data: {"error": {"object": "error", "message": "full", "type": "x", "param": null, "code": 503}}\n\n', 503),
        (b'data: {"error":{"message":"?","type":"BadRequestError","code":400}}\n\ndata: [DONE]\n\n', 400),
        (b'data: {"error":{"message":"later","type":"rate_limit_error"}}\n\n', 429),
        (b'data: {"error":{"message":"?","code":"400"}}\r\n\r\n', 400),
        (b'data: {"error":{"message":"?","code":"overloaded_error"}}\n\n', 503),
        (b'data: {"error":{"message":"?","code":99}}\n\n', 500),
        (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"full"}}\n\n', 503),
        (b'event: error\ndata: {"type":"error","code":"server_error","message":"?","error":null}\n\n', 500),
    ],
)  # fmt: skip
def test_an_error_in_the_first_event(data: bytes, status: int) -> None:
    """Each engine's way to say it means a status; its body reads as an HTTP error answer's would."""
    found = in_band_error(data)
    assert found is not None
    assert found.status == status
    assert isinstance(json.loads(found.body)["error"], dict)


def test_the_client_reads_the_engines_message() -> None:
    """What the engine says of a bad request reaches the client as if it had come with a 400."""
    found = in_band_error(b'data: {"error":{"message":"max_tokens is too large","code":400,"param":"max_tokens"}}\n\n')
    assert found is not None
    refusal = engine_refusal(found.status, found.body)
    assert (refusal.status, refusal.message, refusal.param) == (400, "max_tokens is too large", "max_tokens")


@pytest.mark.parametrize("name", ["stream", "stream_cont", "completions_stream", "responses_stream", "messages_stream"])
def test_recorded_streams_begin_well(name: str) -> None:
    """No first event of a good answer is taken for an error."""
    assert in_band_error(recording(name).body) is None


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"choices":[{"delta":{"content":"\\"error\\": {\\"code\\": 503}"}}]}\n\n',
        b'data: {"choices":[],"error":null}\n\n',
        b'data: {"choices":[]}\n\ndata: {"error":{"code":503}}\n\n',
        b'data: "error"\n\n',
        b'data: {"error"\n\n',
    ],
)
def test_what_only_looks_like_an_error(data: bytes) -> None:
    """Text, nulls, later events and what is no JSON are passed on as they are."""
    assert in_band_error(data) is None


def test_an_event_is_whole_at_its_empty_line() -> None:
    assert not first_event_is_whole(b'data: {"error"')
    assert first_event_is_whole(b"data: x\n\n")
    assert first_event_is_whole(b"data: x\r\n\r\n")
