"""One test that every engine's dialect passes: out of what the engine says, in its own words, come the same values.

What is recorded of a real engine and what is written after its documentation: `README.md` beside this file. Of the
written ones every prompt has 9 tokens, 4 of them cached where the engine tells that, and every answer 8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.engines import DIALECTS, Dialect, Question, dialect_of, engine_body
from gateway.fleet import read_counters
from gateway.wire import Endpoint, Usage, in_band_error, parse
from tests.conformance.simulator.recordings import Answer
from tests.conformance.simulator.recordings import parse as parse_answer

HERE = Path(__file__).parent
TOLD = Usage(input_tokens=9, input_cached_tokens=4, output_tokens=8)
NO_CACHED = Usage(input_tokens=9, output_tokens=8)
VLLM_ONLY = ("priority", "cache_salt", "return_token_ids")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """An engine's files and what they say. `cut` is what is known of a stream that is cut after its second token,
    `asked` what its stream's body holds beyond the client's, `gauges` running and waiting sequences, the used part of
    the KV cache and its size, `counters` tokens of prompts, cached ones and generated ones."""

    directory: str
    plain: str = "plain"
    plain_usage: Usage = TOLD
    streams: dict[str, Usage] = field(default_factory=lambda: {"stream": TOLD})
    cut: Usage | None = None
    asked: dict[str, Any] = field(default_factory=lambda: {"stream_options": {"include_usage": True}})
    too_long: str = "too_long"
    full: str | None = "full"
    full_stream: str | None = None
    failed: str | None = None
    metrics: str | None = "metrics"
    gauges: tuple[int, int, float, int] = (3, 1, 0.5, 16_384)
    counters: dict[str, int] = field(default_factory=lambda: {"prompt": 900, "cached": 400, "generation": 800})
    tokenize: Sequence[str] = ("tokenize",)
    tokens: int | None = 9
    context: str | None = "models"
    context_tokens: int = 2048

    def answer(self, name: str) -> Answer:
        return parse_answer((HERE / self.directory / f"{name}.http").read_bytes())


RUNNING = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
FACTS = {
    "vllm": Facts(
        directory="vllm-0.24.0-h200",
        plain="chat_long2_cached",
        plain_usage=Usage(input_tokens=2562, input_cached_tokens=2544, output_tokens=4),
        streams={"stream_cont": Usage(input_tokens=9, output_tokens=5)},
        cut=Usage(input_tokens=9, output_tokens=2),
        asked=RUNNING,
        too_long="err_ctx",
        full=None,
        metrics="metrics_after_recording",
        gauges=(0, 0, 0.0, 381_536),
        counters={"prompt": 10_427, "cached": 5_088, "generation": 125},
        tokenize=("tokenize_chat",),
        context_tokens=131_072,
    ),
    "sglang": Facts(
        directory="sglang",
        cut=Usage(input_tokens=9, output_tokens=2),
        asked=RUNNING,
        full_stream="full_stream",
        tokens=None,
    ),
    "tgi": Facts(
        directory="tgi",
        plain_usage=NO_CACHED,
        streams={"stream": NO_CACHED, "stream_2.0": NO_CACHED},
        full_stream="full_stream",
        failed="failed",
        gauges=(3, 1, 0.0, 0),
        counters={"prompt": 900, "generation": 800, "requests": 100},
        context="info",
    ),
    "tensorrt-llm": Facts(
        directory="tensorrt-llm",
        cut=Usage(input_tokens=9, input_cached_tokens=4, output_tokens=2),
        asked=RUNNING,
        tokens=None,
        context=None,
    ),
    "llamacpp": Facts(
        directory="llamacpp",
        plain="chat_again_cached",
        plain_usage=Usage(input_tokens=8, input_cached_tokens=7, output_tokens=8),
        streams={
            "stream_timings": Usage(input_tokens=8, input_cached_tokens=3, output_tokens=8),
            "stream": Usage(input_tokens=4, input_cached_tokens=3, output_tokens=5),
            "stream_usage": Usage(input_tokens=4, input_cached_tokens=3, output_tokens=5),
        },
        cut=Usage(input_tokens=8, input_cached_tokens=3, output_tokens=2),
        asked={"stream_options": {"include_usage": True}, "timings_per_token": True},
        full=None,
        metrics="metrics_after",
        gauges=(0, 0, 0.0, 0),
        counters={"prompt": 26, "cached": 13, "generation": 31},
        tokenize=("apply_template", "tokenize_chat"),
        tokens=8,
        context="v1_models",
    ),
    "triton": Facts(
        directory="triton",
        plain_usage=NO_CACHED,
        streams={"stream": NO_CACHED},
        counters={},
        tokens=None,
        context=None,
    ),
    "openai": Facts(
        directory="openai",
        streams={
            "stream": TOLD,
            "stream_together": NO_CACHED,
            "stream_fireworks": TOLD,
            "stream_groq": TOLD,
            "stream_groq_asked": TOLD,
            "stream_deepinfra": TOLD,
            "stream_cerebras": TOLD,
            "stream_bedrock": NO_CACHED,
            "stream_vertex": NO_CACHED,
        },
        metrics=None,
        tokens=None,
        context=None,
    ),
}

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Count"}], "max_tokens": 8}
ENGINES = pytest.mark.parametrize("engine", FACTS)


def streamed(**more: Any) -> bytes:
    return json.dumps({**CHAT, "stream": True, **more}).encode()


def told(dialect: Dialect, stream: bytes, *, piece: int, **more: Any) -> tuple[Usage | None, bytes]:
    """What is known of a stream that comes in pieces, and what of it goes to the client."""
    scanner = dialect.scanner(parse(Endpoint.CHAT, streamed(**more)))
    out = b"".join(scanner.feed(stream[at : at + piece]) for at in range(0, len(stream), piece))
    return scanner.usage(), out + scanner.finish()


def test_every_engine_of_the_policies_is_here() -> None:
    assert list(FACTS) == list(DIALECTS)


@ENGINES
def test_usage_of_a_whole_answer(engine: str) -> None:
    facts = FACTS[engine]
    assert (
        dialect_of(engine).usage(parse(Endpoint.CHAT, json.dumps(CHAT).encode()), facts.answer(facts.plain).body)
        == facts.plain_usage
    )


@pytest.mark.parametrize(
    ("engine", "name"), [(engine, name) for engine, facts in FACTS.items() for name in facts.streams]
)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_usage_of_a_stream(engine: str, name: str, piece: int) -> None:
    """Whatever it was read in; and a client that did not ask for usage sees the same text without it."""
    facts, dialect = FACTS[engine], dialect_of(engine)
    stream = facts.answer(name).body
    usage, out = told(dialect, stream, piece=piece)
    assert usage == facts.streams[name]
    assert said(out) == said(stream)
    assert b'"usage":{' not in out.partition(b'"x_groq":')[0]
    assert b'"choices":[]' not in out
    assert out.endswith(b"data: [DONE]\n\n")
    usage, out = told(dialect, stream, piece=piece, stream_options={"include_usage": True})
    assert usage == facts.streams[name]
    assert (b'"choices":[],' in stream) == (b'"choices":[],' in out), "a client that asked gets the last event"


@ENGINES
def test_what_is_known_of_a_stream_that_is_cut(engine: str) -> None:
    """After its second token: what the engine has told by then; where it has told nothing, that there were two."""
    facts = FACTS[engine]
    name = next(iter(facts.streams))
    events = facts.answer(name).body.split(b"\n\n")
    texts = [at for at, event in enumerate(events) if said(event)]
    scanner = dialect_of(engine).scanner(parse(Endpoint.CHAT, streamed()))
    scanner.feed(b"\n\n".join(events[: texts[1] + 1]) + b"\n\n")
    assert scanner.usage() == facts.cut
    assert not scanner.usage_is_final
    if facts.cut is None:
        assert scanner.output_events == 2


def test_what_llama_cpp_says_of_several_answers() -> None:
    """In a stream each ends with a last event of its own, and all together are the request's usage; a whole answer
    tells the usage of one, which is none of the request's."""
    facts, dialect = FACTS["llamacpp"], dialect_of("llamacpp")
    asked = parse(Endpoint.CHAT, streamed(n=2))
    scanner = dialect.scanner(asked)
    out = scanner.feed(facts.answer("stream_n2").body) + scanner.finish()
    assert scanner.usage() == Usage(input_tokens=8, input_cached_tokens=7, output_tokens=6)
    assert scanner.usage_is_final
    assert b"timings" not in out
    assert dialect.usage(asked, facts.answer("chat_n2").body) is None


@ENGINES
def test_what_an_engine_is_asked(engine: str) -> None:
    """Its own name for the model, the bound, and usage as far as it tells it; none of another engine's words, even
    where the client sent some."""
    facts, dialect = FACTS[engine], dialect_of(engine)
    body = streamed()
    asked = json.loads(
        engine_body(dialect, parse(Endpoint.CHAT, body), body, model="vendor/tiny", bound=5, priority=None)
    )
    assert asked == {**CHAT, "stream": True, "model": "vendor/tiny", "max_tokens": 5, **facts.asked}
    assert not set(VLLM_ONLY) & set(asked)
    body = streamed(stream_options={"include_usage": False, "continuous_usage_stats": True})
    asked = json.loads(engine_body(dialect, parse(Endpoint.CHAT, body), body, model="tiny", bound=None, priority=2))
    assert asked["stream_options"] == facts.asked["stream_options"]
    assert asked.get("priority") == (2 * dialect.priority_sign or None)


@ENGINES
def test_a_prompt_that_is_too_long_is_one_refusal(engine: str) -> None:
    facts = FACTS[engine]
    answer = facts.answer(facts.too_long)
    refusal = dialect_of(engine).refusal(int(answer.status.split()[1]), answer.body)
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    assert refusal.message


@ENGINES
def test_an_engine_that_is_full_says_so(engine: str) -> None:
    """By a status that moves no breaker, or in a stream's first event after 200."""
    facts, dialect = FACTS[engine], dialect_of(engine)
    if facts.full is not None:
        assert int(facts.answer(facts.full).status.split()[1]) in dialect.full
    if facts.full_stream is not None:
        error = in_band_error(facts.answer(facts.full_stream).body)
        assert error is not None
        assert error.status in dialect.full
    assert not {200, 400, 404, 422, 500, 502} & dialect.full


@ENGINES
def test_an_engine_that_failed_or_refuses_our_key_is_no_fault_of_the_client(engine: str) -> None:
    facts, dialect = FACTS[engine], dialect_of(engine)
    told = [(500, b"{}"), (401, b'{"error":{"message":"Incorrect API key provided: sk-plat"}}')]
    if facts.failed is not None:
        answer = facts.answer(facts.failed)
        told.append((int(answer.status.split()[1]), answer.body))
    for status, body in told:
        refusal = dialect.refusal(status, body)
        assert (refusal.status, refusal.code) == (502, "engine_error")
        assert "sk-plat" not in refusal.message


@ENGINES
def test_its_metrics_are_one_reading(engine: str) -> None:
    facts, dialect = FACTS[engine], dialect_of(engine)
    assert (facts.metrics is None) == (dialect.metrics is None)
    if facts.metrics is None or dialect.metrics is None:
        return
    reading = read_counters(facts.answer(facts.metrics).body, dialect.metrics, asked_ms=1, answered_ms=2)
    assert (reading.running, reading.waiting, reading.kv_usage, reading.kv_tokens) == facts.gauges
    assert {name: reading.counters.get(name) for name in facts.counters} == facts.counters
    assert dialect.metrics.counts_tokens == ("generation" in facts.counters)


@ENGINES
def test_its_tokenizer_counts_a_chat(engine: str) -> None:
    """Question by question until there is a count; none where it has no tokenizer for chats."""
    facts, dialect = FACTS[engine], dialect_of(engine)
    body = json.dumps(CHAT).encode()
    questions = dialect.questions(parse(Endpoint.CHAT, body), body, "tiny")
    assert len(questions) == (facts.tokens is not None)
    for question in questions:
        asked: int | Question | None = question
        for name in facts.tokenize:
            assert isinstance(asked, Question)
            assert json.loads(asked.body)
            asked = asked.read(facts.answer(name).body)
        assert asked == facts.tokens


@ENGINES
def test_it_tells_its_context(engine: str) -> None:
    facts, dialect = FACTS[engine], dialect_of(engine)
    if facts.context is not None:
        assert dialect.about(facts.answer(facts.context).body).context_tokens == facts.context_tokens


def said(stream: bytes) -> str:
    """The text in a stream's events."""
    events = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
