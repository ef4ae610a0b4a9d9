"""A stream of two replicas is read as one: what goes to the client, what is kept, what is counted."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import ContinuableScanner, Continuation, Endpoint, RequestView, Usage, parse, scanner_for
from tests.integration.gateway.engine import recording

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
DONE = b"data: [DONE]\n\n"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def view_of(**fields: Any) -> RequestView:
    return parse(Endpoint.CHAT, json.dumps(CHAT | fields).encode())


def event(choice: dict[str, Any] | None, prompt: int, output: int, **rest: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
    body = HEAD | {"choices": [] if choice is None else [{"index": 0, **choice}], "usage": usage} | rest
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":")).encode()


def role(prompt: int = 3, ids: list[int] | None = None) -> bytes:
    choice = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return event(choice, prompt, 0, prompt_token_ids=ids)


def said(text: str, count: int, ids: list[int] | None = None, end: str | None = None, **delta: Any) -> bytes:
    return event({"delta": {"content": text, **delta}, "finish_reason": end, "token_ids": ids}, 3, count)


def completed(text: str, prompt: int, count: int, ids: list[int], end: str | None = None) -> bytes:
    """What a text completion says."""
    choice = {"text": text, "logprobs": None, "finish_reason": end, "token_ids": ids}
    return event(choice, prompt, count, id="cmpl-2", object="text_completion", created=9)


def lost_after(*events: bytes, by_ids: bool = True, **fields: Any) -> tuple[ContinuableScanner, bytes, RequestView]:
    """A scanner that has read these events, what it let pass, and the view of its request."""
    view = view_of(**fields)
    scanner = ContinuableScanner(view, by_ids=by_ids)
    return scanner, b"".join(map(scanner.feed, events)), view


def read(events: bytes) -> list[dict[str, Any]]:
    return [json.loads(one[6:]) for one in events.removesuffix(DONE).split(b"\n\n")[:-1]]


def chosen(scanner: ContinuableScanner, **fields: Any) -> Continuation:
    found = scanner.continuation(json.dumps(CHAT | fields).encode())
    assert found is not None
    return found


WITH_IDS = role(ids=[1, 2, 3]) + b"".join(said(f" w{n}", n, [500 + n]) for n in range(1, 40)) + DONE
WITHOUT = WITH_IDS.replace(b"[1,2,3]", b"null")
for _n in range(1, 40):
    WITHOUT = WITHOUT.replace(b"[%d]" % (500 + _n), b"null")


@settings(max_examples=25)
@given(st.lists(st.integers(1, len(WITH_IDS) - 1), max_size=12).map(sorted), st.booleans())
def test_ids_that_were_not_asked_for_leave_no_trace(cuts: list[int], wants_usage: bool) -> None:
    """However the bytes come: the client gets what it would have got of an engine that was not asked for ids."""
    view = view_of(stream_options={"include_usage": wants_usage})
    scanner, plain = ContinuableScanner(view, by_ids=True), scanner_for(view)
    edges = [0, *cuts, len(WITH_IDS)]
    got = b"".join(scanner.feed(WITH_IDS[start:end]) for start, end in pairwise(edges))
    got += scanner.finish()
    assert got == plain.feed(WITHOUT) + plain.finish()
    assert scanner.ended
    assert scanner.usage() == plain.usage()
    assert scanner.delivered().id_count == 39


def test_the_recorded_stream_with_ids() -> None:
    """vLLM 0.24's own bytes: ids become the nulls that it writes when it is not asked."""
    scanner = ContinuableScanner(view_of(), by_ids=True)
    got = scanner.feed(recording("stream_token_ids").body) + scanner.finish()
    assert b'"prompt_token_ids":null' in got
    assert got.count(b'"token_ids":null') == 3
    assert b"7728" not in got
    assert chosen_prompt(scanner) is None  # it ended by itself
    assert scanner.delivered().ids == b"7728,114820,120921"


def chosen_prompt(scanner: ContinuableScanner) -> Any:
    found = scanner.continuation(json.dumps(CHAT).encode())
    return None if found is None else json.loads(found.body)["prompt"]


@pytest.mark.parametrize("wants_usage", [True, False])
def test_two_replicas_are_one_stream(wants_usage: bool) -> None:
    """A text completion's events come as the chat's that the client reads: id, time, model, one role, one end, and the
    usage of one answer to the prompt that it sent."""
    scanner, before, _ = lost_after(
        role(ids=[1, 2, 3]), said(" a", 1, [11]), said(" b", 2, [12]), stream_options={"include_usage": wants_usage}
    )
    found = chosen(scanner)
    assert json.loads(found.body)["prompt"] == [1, 2, 3, 11, 12]
    assert scanner.continue_by(found, cached_tokens=2) == Usage(input_tokens=3, output_tokens=2)
    after = scanner.feed(completed(" c", 5, 1, [13]) + completed(" d", 5, 2, [14], end="stop"))
    assert scanner.usage() == Usage(input_tokens=3, output_tokens=4)
    after += scanner.feed(event(None, 5, 2, id="cmpl-2") + DONE) + scanner.finish()
    events = read(before + after)
    assert all({name: one[name] for name in HEAD} == HEAD for one in events)
    choices = [one["choices"][0] for one in events if one["choices"]]
    assert "".join(choice["delta"]["content"] for choice in choices) == " a b c d"
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]
    usages = [one["usage"] for one in events if not one["choices"]]
    total = {
        "prompt_tokens": 3,
        "total_tokens": 7,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert usages == [total] * wants_usage
    assert scanner.usage() == Usage(input_tokens=3, input_cached_tokens=2, output_tokens=4)
    assert scanner.ended
    assert b'"token_ids":null' in after
    assert b"[13]" not in after


def test_events_that_are_there_for_their_ids_alone_do_not_pass() -> None:
    """A parser that holds a token back makes vLLM send an empty delta if ids are asked for, and nothing if they are
    not. Its usage counts all the same."""
    silent = event({"delta": {}, "logprobs": None, "finish_reason": None, "token_ids": [12]}, 3, 2)
    scanner, passed, _ = lost_after(role(ids=[1]), said(" a", 1, [11]) + silent + said(" b", 3, [13]))
    assert [one["choices"][0]["delta"].get("content") for one in read(passed)] == ["", " a", " b"]
    assert scanner.usage() == Usage(input_tokens=3, output_tokens=3)
    assert chosen_prompt(scanner) == [1, 11, 12, 13]


def test_text_that_an_engine_holds_back_is_made_again() -> None:
    """Half a character: its tokens are told, its text is not. The next replica goes on before them, and they are billed
    once, when they come."""
    scanner, _, _ = lost_after(role(ids=[1, 2, 3]), said(" a", 1, [11]), said("", 2, [12]), said("", 3, [13]))
    assert chosen_prompt(scanner) == [1, 2, 3, 11]
    assert scanner.continue_by(chosen(scanner), cached_tokens=0).output_tokens == 1
    assert scanner.feed(completed("", 4, 1, [12])) == b""
    scanner.feed(completed("é", 4, 3, [13, 14]))
    assert scanner.usage() == Usage(input_tokens=3, output_tokens=4)
    assert chosen_prompt(scanner) == [1, 2, 3, 11, 12, 13, 14]


def test_three_replicas() -> None:
    """The second one is lost too, at once and then after a word: ids and counts add up from the first on."""
    scanner, _, _ = lost_after(role(ids=[1, 2, 3]), said(" a", 1, [11]))
    scanner.continue_by(chosen(scanner), cached_tokens=0)
    assert chosen_prompt(scanner) == [1, 2, 3, 11]
    assert scanner.continue_by(chosen(scanner), cached_tokens=0).output_tokens == 1
    scanner.feed(completed(" b", 4, 1, [12]))
    assert chosen_prompt(scanner) == [1, 2, 3, 11, 12]
    assert scanner.continue_by(chosen(scanner), cached_tokens=0) == Usage(input_tokens=3, output_tokens=2)
    events = read(scanner.feed(completed(" c", 5, 1, [13], end="length")))
    assert events[0]["choices"][0]["delta"]["content"] == " c"
    assert scanner.usage() == Usage(input_tokens=3, output_tokens=3)
    assert scanner.continued == 3


def test_by_text_the_engines_own_count_says_what_was_delivered() -> None:
    """The first engine had counted one token more than the client had the text of: it is not billed twice."""
    scanner, _, _ = lost_after(role(), said(" a", 1), said(" b ", 4), by_ids=False, stop=["END"])
    found = chosen(scanner, stop=["END"])
    assert json.loads(found.body)["messages"][-1]["content"] == " a b"
    assert scanner.continue_by(found, cached_tokens=0).output_tokens == 4
    assert scanner.feed(role(prompt=6)) == b""
    events = read(scanner.feed(event({"delta": {"content": " c"}, "finish_reason": None}, 6, 1)))
    assert events[0]["choices"][0]["delta"]["content"] == "c"  # the space was there
    assert scanner.usage() == Usage(input_tokens=3, output_tokens=3 + 1)


def test_an_error_is_held_back_while_another_could_go_on() -> None:
    """An engine that dies behind its API server says so in the stream; what it said before has passed."""
    error = b'data: {"error":{"message":"EngineCore died","code":500}}\n\n'
    scanner, passed, _ = lost_after(role(ids=[1]) + said(" a", 1, [11]) + error + DONE)
    assert scanner.failed
    assert scanner.error_event == error
    assert passed.endswith(DONE)
    assert b"EngineCore" not in passed
    scanner.continue_by(chosen(scanner), cached_tokens=0)
    assert not scanner.failed
    assert not scanner.ended


def test_an_answer_that_began_anew_keeps_the_clients_id() -> None:
    """Only the role had been said: all that comes is the next replica's own, tools and all, under the first id."""
    scanner, before, _ = lost_after(role(ids=[1, 2, 3]))
    found = chosen(scanner)
    assert (found.by, found.endpoint) == ("anew", Endpoint.CHAT)
    assert scanner.continue_by(found, cached_tokens=0) == Usage()
    assert scanner.usage() is None
    other = b'"id":"chatcmpl-1"', b'"id":"chatcmpl-2"'
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}
    after = scanner.feed(role(ids=[1, 2, 3]).replace(*other) + said("", 1, [11], **call).replace(*other))
    after += scanner.feed(event(None, 3, 1).replace(*other) + DONE)
    events = read(before + after)
    assert [one["id"] for one in events] == ["chatcmpl-1"] * 2
    assert events[1]["choices"][0]["delta"]["tool_calls"] == call["tool_calls"]
    assert b"[11]" not in after
    assert scanner.usage() == Usage(input_tokens=3, output_tokens=1)
    assert scanner.continued == 0


@pytest.mark.parametrize("delta", [{"reasoning": "hm"}, {"tool_calls": [{"index": 0}]}, {"refusal": "no"}])
@pytest.mark.parametrize("by_ids", [True, False])
def test_thoughts_and_calls_are_not_gone_on_from(delta: dict[str, Any], by_ids: bool) -> None:
    scanner, _, _ = lost_after(role(ids=[1]), said("", 1, [11], **delta), by_ids=by_ids)
    assert scanner.continuation(json.dumps(CHAT).encode()) is None


def test_after_its_thoughts_an_answer_goes_on_by_ids_only() -> None:
    """The ids hold the thoughts, a text does not."""
    thought, word = said("", 1, [11], reasoning="hm"), said(" a", 2, [12])
    by_ids, _, _ = lost_after(role(ids=[1]), thought, word)
    assert chosen_prompt(by_ids) == [1, 11, 12]
    by_text, _, _ = lost_after(role(), thought, word, by_ids=False)
    assert by_text.continuation(json.dumps(CHAT).encode()) is None


@pytest.mark.parametrize("told", [True, False])
def test_only_the_end_was_missing(told: bool) -> None:
    """The answer has ended; its usage, where it was asked for and not told, and `[DONE]` are added."""
    end = [said(" a", 1, [11], end="stop"), *([event(None, 3, 1)] if told else [])]
    scanner, passed, _ = lost_after(role(ids=[1]), *end, stream_options={"include_usage": True})
    assert scanner.delivered().ended
    events = read(passed + scanner.close(cached_tokens=1))
    assert [one["usage"]["completion_tokens"] for one in events if not one["choices"]] == [1]


def test_a_long_stream_is_kept_small() -> None:
    """By ids about a dozen bytes a token; by text what is unread has a bound."""
    scanner, _, _ = lost_after(role(ids=[1]), by_ids=False)
    for n in range(1, 700):
        scanner.feed(said(" w", n))
    assert scanner._keeper._unread_bytes < 70_000  # type: ignore[attr-defined]
    assert scanner.delivered().text == " w" * 699
