"""The scanner: what the client gets is what the engine sent minus what the gateway asked for; what is read is what was
written. For any stream, cut into reads at any bytes."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import Endpoint, RequestView, StreamScanner, Usage, _sse, scanner_for
from tests.unit.wire.streams import TEXTS, Event, Reported, Stream, streams

THOROUGH = settings(max_examples=80, deadline=None)


def scanner(stream: Stream, *, wants_usage: bool = False, wants_running: bool = False) -> StreamScanner:
    view = RequestView(
        endpoint=Endpoint.CHAT,
        model="tiny",
        prompt=b"[]",
        stream=True,
        samples=stream.samples,
        prompts=stream.prompts,
        wants_usage=wants_usage,
        wants_running_usage=wants_running,
    )
    return scanner_for(view)


def fed(scanner: StreamScanner, pieces: list[bytes]) -> bytes:
    return b"".join([*(scanner.feed(piece) for piece in pieces), scanner.finish()])


def remaining(event: Event, *, wants_usage: bool, wants_running: bool) -> bytes:
    """What the client should get of one event, by the rule and not by the code."""
    if event.usage is None:
        return event.encoded()
    if event.final:
        return event.encoded() if wants_usage else b""
    return event.encoded(with_usage=wants_running)


def told(stream: Stream) -> Usage | None:
    """What should have been read, by the rule: the last event's sums, else the sum of what each choice said last."""
    finals = [event.usage for event in stream.events if event.usage and event.final]
    if finals:
        return sums([finals[-1]], [finals[-1]])
    last = {event.index: event.usage for event in stream.events if event.usage}
    if not last:
        return None
    by_prompt = {index // stream.samples: usage for index, usage in last.items()}
    return sums(list(by_prompt.values()), list(last.values()))


def sums(inputs: list[Reported], outputs: list[Reported]) -> Usage:
    return Usage(
        input_tokens=sum(usage.prompt for usage in inputs),
        input_cached_tokens=sum(usage.cached or 0 for usage in inputs),
        output_tokens=sum(usage.completion for usage in outputs),
    )


def normal(data: bytes) -> list[list[str]]:
    """Events line by line as a client reads them: data joined and decoded where it is JSON, other lines as they are.

    Written after the standard's own words, apart from the scanner.
    """
    lines = re.split(r"\r\n|\n|\r", data.decode())
    seen: list[list[str]] = []
    event: list[str] = []
    payload: list[str] = []
    for line in lines:
        if line:
            (payload if line.startswith("data:") else event).append(line)
            continue
        if payload:
            text = "\n".join(one[5:].removeprefix(" ") for one in payload)
            try:
                event.append("data " + json.dumps(json.loads(text)))
            except ValueError:
                event.append("data " + text)
        if event:
            seen.append(event)
        event, payload = [], []
    return seen


@THOROUGH
@given(stream=streams(), wants_usage=st.booleans(), wants_running=st.booleans())
def test_what_the_client_gets_and_what_is_billed(stream: Stream, wants_usage: bool, wants_running: bool) -> None:
    """Whatever the stream and however it is read: the engine's bytes minus the gateway's own wish, and the usage."""
    wants_running = wants_running and wants_usage
    reading = scanner(stream, wants_usage=wants_usage, wants_running=wants_running)
    out = fed(reading, stream.pieces())
    expected = [remaining(event, wants_usage=wants_usage, wants_running=wants_running) for event in stream.events]
    if not any(event.lines and event.usage for event in stream.events):
        assert out == b"".join(expected)
    assert normal(out) == normal(b"".join(expected))
    assert reading.usage() == told(stream)


@THOROUGH
@given(stream=streams(), wants_usage=st.booleans())
def test_reads_do_not_matter(stream: Stream, wants_usage: bool) -> None:
    """One byte at a time, all at once and anything between give the same bytes and the same usage."""
    body = stream.encoded()
    results = set()
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))], stream.pieces()):
        reading = scanner(stream, wants_usage=wants_usage)
        results.add((fed(reading, pieces), reading.usage(), reading.failed))
    assert len(results) == 1


def token(text: str, count: int, members: str = "") -> bytes:
    """A token as vLLM writes it, `members` put before its usage."""
    choice = json.dumps({"index": 0, "delta": {"content": text}}, separators=(",", ":"))
    usage = f'"usage":{{"prompt_tokens":9,"completion_tokens":{count}}}'
    return f'data: {{"id":"x","choices":[{choice}]{members},{usage}}}\n\n'.encode()


TOKENS = st.builds(token, TEXTS, st.integers(0, 9))
ODD = st.sampled_from(
    [
        token("a", 7)[:-3] + b',"x":1}\n\n',
        token("a", 7, ',"error":{"message":"x"}'),
        token("a", 7, ',"x":{"usage":{"prompt_tokens":1}}'),
        token("a", 7).replace(b"[{", b'[{"usage":{"prompt_tokens":1},'),
        token("a", 7).replace(b',"usage"', b',"x":{"y":1,"usage"')[:-2] + b"}\n\n",
        token("a", 7)[:-3] + b"\n\n",
        token("a", 7).replace(b"7", b'"7"'),
        token("a", 7).replace(b"7", b"["),
        token("a", 7).partition(b',"usage"')[0] + b"}\n\n",
        token("a", 7).partition(b',"usage"')[0] + b',"usage":null}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":8}}\n\n',
        b"data: [DONE]\n\n",
        b": ping\n\n",
        b"\n\n",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.lists(TOKENS, max_size=6),
    odd=st.lists(st.tuples(st.integers(0, 6), ODD), max_size=2),
    ended=st.booleans(),
    wants_running=st.booleans(),
)
def test_tokens_read_together_are_as_each_alone(
    tokens: list[bytes], odd: list[tuple[int, bytes]], ended: bool, wants_running: bool
) -> None:
    """A read of many tokens in vLLM's own form, others among them, is worth what each would be by itself."""
    for place, event in odd:
        tokens.insert(place, event)
    if ended:
        tokens += [b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9}}\n\n', b"data: [DONE]\n\n"]
    results = []
    for reads in (tokens, [b"".join(tokens)]):
        reading = scanner(Stream((), 1, 1), wants_usage=wants_running, wants_running=wants_running)
        results.append((fed(reading, reads), reading.usage(), reading.failed, reading.ended))
    assert results[0] == results[1]


@settings(max_examples=80, deadline=None)
@given(stream=streams())
def test_only_whole_events_are_let_through(stream: Stream) -> None:
    """After every read what the client has ends at the end of an event, so that an error event can follow."""
    reading = scanner(stream)
    got = b""
    for piece in stream.pieces():
        got += reading.feed(piece)
        assert got == b"" or got.endswith((b"\n\n", b"\r\r", b"\r\n\r\n"))


@settings(max_examples=80, deadline=None)
@given(stream=streams(samples=1, prompts=1), at=st.integers(0, 10_000))
def test_a_cut_anywhere_reads_the_last_whole_report(stream: Stream, at: int) -> None:
    """A stream that breaks off tells what its whole events had told; half an event tells nothing."""
    ends, total = [], 0
    for event in stream.events:
        total += len(event.encoded())
        ends.append(total)
    cut = at % (total + 1)
    whole = Stream(tuple(e for e, end in zip(stream.events, ends, strict=True) if end <= cut), 1, 1)
    reading = scanner(stream)
    reading.feed(stream.encoded()[:cut])
    if not (0 < cut < total and stream.encoded()[cut - 1 : cut] == b"\r"):  # a CR at the end may be half of a CRLF
        assert reading.usage() == told(whole)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_bytes_that_are_no_events_pass(endpoint: Endpoint, data: bytes, cuts: list[int]) -> None:
    """Not a byte is lost and nothing fails, whatever an engine writes into a stream."""
    view = RequestView(endpoint=endpoint, model="tiny", prompt=b"", stream=True)
    places = sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    assert fed(scanner_for(view), pieces) == data


@settings(max_examples=100, deadline=None)
@given(
    prefix=st.sampled_from([b"data: ", b"event: x\ndata: ", b""]),
    body=st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.floats(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["usage", "choices", "error", "type", "response", "message", "index", "tokens"]), inner
        ),
    ),
)  # fmt: skip
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_json_of_any_shape_is_survived(endpoint: Endpoint, prefix: bytes, body: object) -> None:
    """Members of the right name and the wrong type neither fail nor lose the event."""
    view = RequestView(
        endpoint=endpoint, model="tiny", prompt=b"", stream=True, wants_usage=True, wants_running_usage=True
    )
    event = prefix + json.dumps(body).encode() + b"\n\n"
    reading = scanner_for(view)
    assert fed(reading, [event]) == event
    reading.usage()


def test_an_event_too_long_to_hold_passes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: an event without end is let through as it comes, and what follows is read again."""
    monkeypatch.setattr(_sse, "MAX_EVENT_BYTES", 1000)
    reading = scanner(Stream((), 1, 1))
    endless = b"data: " + b"x" * 5000
    got = b""
    for position in range(0, len(endless), 100):
        got += reading.feed(endless[position : position + 100])
        assert position - len(got) <= 1100
    chunk = b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    got += reading.feed(b"\n\n" + chunk) + reading.finish()
    assert got == endless + b"\n\n" + b'data: {"choices":[{"index":0}]}\n\n'
    assert reading.usage() == Usage(input_tokens=3, output_tokens=2)


def test_a_usage_of_zero_is_not_absent() -> None:
    """0 tokens reported are 0 tokens; nothing reported is None."""
    reading = scanner(Stream((), 1, 1))
    reading.feed(b'data: {"choices":[{"index":0}]}\n\n')
    assert reading.usage() is None
    reading.feed(b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n')
    assert reading.usage() == Usage()


def test_the_error_event_is_noticed_and_passed() -> None:
    """An engine's error in the stream marks it as failed; an `error: null` does not."""
    reading = scanner(Stream((), 1, 1))
    fine = b'data: {"choices":[],"error":null}\n\n'
    assert reading.feed(fine) == fine
    assert not reading.failed
    error = b'data: {"error":{"message":"x","code":500}}\n\n'
    assert reading.feed(error) == error
    assert reading.failed


@pytest.mark.parametrize("text", ["response.output_text.delta", '"type":"response.output_text.delta"', "x.delta"])
def test_a_text_that_names_an_event_is_no_event(text: str) -> None:
    """A final Responses event is read whatever the model wrote into it, and counts as no delta."""
    view = RequestView(endpoint=Endpoint.RESPONSES, model="tiny", prompt=b"", stream=True)
    reading = scanner_for(view)
    delta = {"type": "response.output_text.delta", "delta": text}
    done = {"type": "response.output_text.done", "text": text}
    completed = {
        "type": "response.completed",
        "response": {"output": text, "usage": {"input_tokens": 5, "output_tokens": 2}},
    }
    for event in (delta, done, completed):
        reading.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert reading.output_events == 1
    assert reading.usage() == Usage(input_tokens=5, output_tokens=2)
    assert reading.ended


def test_messages_add_up() -> None:
    """Anthropic's input leaves the cached tokens out: ours has them in. Output is the last one told, not a sum."""
    view = RequestView(endpoint=Endpoint.MESSAGES, model="tiny", prompt=b"", stream=True)
    reading = scanner_for(view)
    started = {"input_tokens": 10, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 2, "output_tokens": 1}
    for event in (
        {"type": "message_start", "message": {"usage": started}},
        {"type": "content_block_delta", "delta": {"text": "message_stop"}},
        {"type": "message_delta", "usage": {"output_tokens": 7}},
        {"type": "message_delta", "usage": {"output_tokens": 9}},
    ):
        reading.feed(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n")
    assert reading.usage() == Usage(
        input_tokens=42, input_cached_tokens=30, input_cache_write_tokens=2, output_tokens=9
    )
    assert not reading.ended
    reading.feed(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert reading.ended
