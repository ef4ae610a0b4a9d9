"""The end of a stream that its budget ended: what an SDK reads as an answer that reached its `max_tokens`."""

from __future__ import annotations

import json

import pytest

from gateway.wire import Endpoint, Usage, length_end, parse

EVENT = b'data: {"id":"chatcmpl-1","object":"o","created":7,"model":"m","choices":[{"index":0}]}\n\n'


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
@pytest.mark.parametrize("wants_usage", [True, False])
def test_it_is_the_same_answers_last_events(endpoint: Endpoint, wants_usage: bool) -> None:
    """Same id, model and time; `length`; the usage if it was asked for; and the end of all."""
    prompt = {"prompt": "x"} if endpoint is Endpoint.COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": wants_usage}, **prompt}
    ending = length_end(parse(endpoint, json.dumps(body).encode()), EVENT, Usage(input_tokens=3, output_tokens=4))
    *events, done, rest = ending.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    end, *usage = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert {name: end[name] for name in ("id", "created", "model")} == {"id": "chatcmpl-1", "created": 7, "model": "m"}
    assert end["choices"][0]["finish_reason"] == "length"
    assert ("text" if endpoint is Endpoint.COMPLETIONS else "delta") in end["choices"][0]
    told = [one["usage"] for one in usage]
    assert told == [{"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}] * wants_usage


@pytest.mark.parametrize("event", [b"", b"data: [DONE]\n\n", b": comment\n\n"])
def test_without_an_event_to_follow_it_ends_all_the_same(event: bytes) -> None:
    """Nothing is made up that the engine has not said."""
    view = parse(Endpoint.CHAT, b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}')
    first, done = length_end(view, event, Usage()).split(b"\n\n")[:2]
    assert json.loads(first.removeprefix(b"data: ")).keys() == {"choices"}
    assert done == b"data: [DONE]"
