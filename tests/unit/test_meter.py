"""The meter: what is billed of an answer that was cut, and how far the engine's counters may lie beyond it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.context import ContextLimits, PromptSize
from gateway.meter import CONTEXT_UNKNOWN_TOKENS, NOTHING, Meter, Metered
from gateway.wire import Endpoint, RequestView, scanner_for

LIMITS = ContextLimits(context=4096, input_max=None, output_max=None)
GUESSED = PromptSize(total=25, longest=25, exact=False)


def view(endpoint: Endpoint = Endpoint.CHAT, **changes: object) -> RequestView:
    asked = {"model": "tiny", "prompt": b"x" * 100, "stream": True, "output_tokens": 20} | changes
    return RequestView(endpoint=endpoint, **asked)  # type: ignore[arg-type]


def chunk(index: int, prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return b"data: " + json.dumps({"choices": [{"index": index}], "usage": usage}).encode() + b"\n\n"


def final(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


def cut(asked: RequestView, *events: bytes, limits: ContextLimits = LIMITS, warm_bytes: int = 0) -> Metered:
    """What the meter says of a placed request after these events of its stream."""
    meter = Meter(asked, GUESSED, limits)
    meter.place(warm_bytes, 4096)
    scanner = scanner_for(asked)
    meter.follow(scanner)
    for event in events:
        scanner.feed(event)
    return meter.cut()


def test_nothing_is_used_before_it_is_placed() -> None:
    """Nor by what takes no GPU time, nor after an attempt that has failed."""
    assert Meter(view(), GUESSED, LIMITS).cut() == NOTHING
    meter = Meter(view(Endpoint.TOKENIZE), GUESSED, LIMITS)
    meter.place(0, 4096)
    assert (meter.cut(), meter.attempt_most()) == (NOTHING, (0, 0))
    meter = Meter(view(), GUESSED, LIMITS)
    meter.place(0, 4096)
    assert meter.attempt_most() == (356, 20)
    meter.withdraw()
    assert meter.cut() == NOTHING


@pytest.mark.parametrize(
    ("asked", "limits", "bounds"),
    [
        (view(), LIMITS, (100 + 256, 20)),
        (view(samples=3), LIMITS, (3 * 356, 60)),
        (view(output_tokens=None), LIMITS, (356, 4096)),
        (view(output_tokens=None), ContextLimits(context=4096, input_max=None, output_max=7), (356, 7)),
        (view(prompt=b"x" * 10_000), LIMITS, (4096, 20)),
        (view(prompt=b"x" * 10_000, prompts=2), LIMITS, (2 * 4096, 40)),
        (view(prompt_tokens=9, longest_tokens=5, prompts=2), LIMITS, (9, 40)),
        (view(Endpoint.EMBEDDINGS), LIMITS, (356, 0)),
    ],
)
def test_an_answer_that_has_not_begun(asked: RequestView, limits: ContextLimits, bounds: tuple[int, int]) -> None:
    """Nothing is billed; the engine may have counted every sample's prompt and all that it may generate."""
    meter = Meter(asked, GUESSED, limits)
    meter.place(0, 4096)
    metered = meter.cut()
    assert metered.usage.total_tokens == 0
    assert (metered.undelivered_input_max, metered.undelivered_output_max) == bounds


def test_a_context_nobody_tells() -> None:
    """An engine that does not tell its context may have generated as much as any can."""
    unlimited = ContextLimits(context=None, input_max=None, output_max=None)
    meter = Meter(view(output_tokens=None), PromptSize(total=9, longest=9, exact=True), unlimited)
    meter.place(0, None)
    metered = meter.cut()
    assert (metered.undelivered_input_max, metered.undelivered_output_max) == (9, CONTEXT_UNKNOWN_TOKENS)


def test_the_engine_serves_more_context_than_the_policy_says() -> None:
    """An answer without a bound of its own ends where the engine's context does."""
    meter = Meter(view(output_tokens=None), GUESSED, ContextLimits(context=100, input_max=None, output_max=None))
    meter.place(0, 4096)
    assert meter.cut().undelivered_output_max == 4096


def test_usage_that_has_been_told() -> None:
    """One sample: its prompt is billed, so that only its output is uncertain."""
    metered = cut(view(output_tokens=None), chunk(0, 9, 0), chunk(0, 9, 5))
    assert (metered.usage.input_tokens, metered.usage.output_tokens) == (9, 5)
    assert (metered.undelivered_input_max, metered.undelivered_output_max) == (0, 4096 - 9 - 5)
    assert (metered.estimated, metered.cached_predicted, metered.samples) == (False, True, 1)


def test_the_last_word_has_been_told() -> None:
    """Cut between the last usage and the end: nothing is uncertain."""
    metered = cut(view(samples=2), chunk(0, 9, 5), final(9, 11), warm_bytes=100)
    assert (metered.usage.input_tokens, metered.usage.input_cached_tokens, metered.usage.output_tokens) == (9, 0, 11)
    assert (metered.undelivered_input_max, metered.undelivered_output_max, metered.samples) == (0, 0, 2)
    assert not metered.cached_predicted


@pytest.mark.parametrize(
    ("warm_bytes", "told", "cached"), [(0, None, 0), (50, None, 5), (51, None, 5), (100, None, 9), (50, 2, 2)]
)
def test_cached_share(warm_bytes: int, told: int | None, cached: int) -> None:
    """The predicted share of the prompt, rounded up, never more than the prompt; the engine's own word counts."""
    event = chunk(0, 9, 5)
    if told is not None:
        event = event.replace(b'"usage": {', b'"usage": {"prompt_tokens_details": {"cached_tokens": %d}, ' % told)
    metered = cut(view(), event, warm_bytes=warm_bytes)
    assert metered.usage.input_cached_tokens == cached
    assert metered.cached_predicted == (told is None)


@dataclass
class Counted:
    """An engine's counters as vLLM keeps them: a prompt for each sample that has its first token."""

    prompt: int = 0
    output: int = 0


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    samples=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    context=st.sampled_from([None, 64, 4096]),
)
def test_the_counters_lie_within_the_bounds(
    data: st.DataObject, samples: int, lengths: list[int], context: int | None
) -> None:
    """Whatever sequences have got, whatever of it was delivered, roles without tokens included."""
    answers = samples * len(lengths)
    asked = view(Endpoint.COMPLETIONS, samples=samples, prompts=len(lengths), prompt=b"x" * sum(lengths))
    generated = [data.draw(st.integers(0, 20)) for _ in range(answers)]
    delivered = [data.draw(st.integers(0, most)) for most in generated]
    counted = Counted()
    events = []
    opened = data.draw(st.booleans()) and any(generated)
    for index in range(answers):
        prompt = lengths[index // samples]
        if generated[index]:
            counted.prompt += prompt
            counted.output += generated[index]
        # vLLM opens every sample of a prompt with the first token of one of them.
        if opened and any(generated[i] for i in range(answers) if i // samples == index // samples):
            events.append(chunk(index, prompt, 0))
        if delivered[index]:
            events.append(chunk(index, prompt, delivered[index]))
    limits = ContextLimits(context=context, input_max=None, output_max=None)
    metered = cut(asked, *events, limits=limits)
    least = metered.usage.input_tokens * metered.samples
    assert least <= counted.prompt <= least + metered.undelivered_input_max
    assert metered.usage.output_tokens == sum(delivered)
    assert counted.output <= metered.usage.output_tokens + metered.undelivered_output_max
    assert not metered.estimated
