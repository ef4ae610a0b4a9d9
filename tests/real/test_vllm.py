"""The gateway in front of real vLLM: what is billed is what the engines counted, whatever clients do.

In the order in which they run: the last test kills a replica.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

import openai
import pytest

from gateway.metering import UsageEvent
from gateway.wire import NO_USAGE
from tests.real.conftest import Counters, Served
from tests.real.workload import Ask, Told, ask_all, ask_one, draw

SEED = 20_261
FINISHED, CUT_TOGETHER, CUT_ALONE = 400, 60, 40
AT_ONCE = 16


def connected(served: Served, tenant: str) -> openai.AsyncOpenAI:
    """OpenAI's SDK with a tenant's key; what fails is not tried again."""
    return openai.AsyncOpenAI(base_url=served.base_url, api_key=served.keys[tenant], max_retries=0)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """A tenant without limits."""
    async with connected(served, "plain") as client:
        yield client


def counted(served: Served) -> dict[str, Counters]:
    """Every engine's counters, once it is idle."""
    return {engine.name: engine.idle_counters() for engine in served.engines}


def since(served: Served, before: dict[str, Counters]) -> dict[str, Counters]:
    """How much every engine has counted since."""
    return {name: counters - before[name] for name, counters in counted(served).items()}


async def test_finished_requests_are_billed_what_the_engines_counted(served: Served) -> None:
    """400 mixed requests: no wrong answer, and the sums of events, `/v1/usage` and the engines' counters are equal.

    vLLM counts a prompt once for each of its samples; OpenAI's usage counts it once.
    """
    before = counted(served)
    asks = draw(SEED, FINISHED, cut=False, prefix="finished")
    async with connected(served, "exact") as client:
        told = await ask_all(client, asks, at_once=AT_ONCE)
    counts = since(served, before)
    events = served.events("exact")

    problems = [problem for one in told for problem in one.problems]
    problems += [problem for one in told for problem in compared(one, events.get(one.ask.id))]
    assert not problems, "\n".join(problems[:20])
    assert set(events) == {ask.id for ask in asks}

    by_id = {ask.id: ask for ask in asks}
    billed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for event in events.values():
        billed[event.replica][0] += event.usage.input_tokens * by_id[event.id].samples
        billed[event.replica][1] += event.usage.output_tokens
    print(f"\n{FINISHED} finished requests{'':<12} prompt (billed, counted)   generated (billed, counted)")
    for name, count in counts.items():
        print(f"  {name:<32} {billed[name][0]:>9} {count.prompt:>9} {billed[name][1]:>19} {count.generation:>9}")
    assert billed == {name: [count.prompt, count.generation] for name, count in counts.items()}

    totals = served.usage_totals("exact")
    assert totals["requests"] == FINISHED
    assert totals["output_tokens"] == sum(count.generation for count in counts.values())
    assert totals["input_tokens"] == sum(event.usage.input_tokens for event in events.values())
    assert not any(event.estimated for event in events.values())


def compared(told: Told, event: UsageEvent | None) -> list[str]:
    """What differs between the usage in an answer and in its event."""
    if event is None:
        return [f"{told.ask.id}: no event"]
    usage = (event.usage.input_tokens, event.usage.output_tokens)
    wrong = [] if event.status == "ok" else [f"{told.ask.id}: status {event.status}"]
    if told.usage is not None and told.usage != usage:
        wrong.append(f"{told.ask.id} ({told.ask.label}): the answer said {told.usage}, the event {usage}")
    return wrong


async def test_cut_requests_are_never_billed_more_than_was_generated(served: Served) -> None:
    """60 requests cut at random among each other: together they are billed at most what the engines counted.

    Of a prompt with several samples vLLM counts those that have reached their first token; OpenAI's usage has it once.
    """
    before = counted(served)
    asks = draw(SEED + 1, CUT_TOGETHER, cut=True, prefix="together")
    async with connected(served, "cut") as client:
        told = await ask_all(client, asks, at_once=AT_ONCE)
    counts = since(served, before)
    assert not [problem for one in told for problem in one.problems]
    events = served.events("cut")
    assert {one.ask.id for one in told if one.events} <= set(events), "an answer that began has no event"
    wrong = [event for event in events.values() if event.status not in ("ok", "client_gone")]
    assert not wrong, "a client that left is no fault of an engine"
    for name, count in counts.items():
        here = [event.usage for event in events.values() if event.replica == name]
        assert sum(usage.output_tokens for usage in here) <= count.generation
        assert sum(usage.input_tokens for usage in here) <= count.prompt


async def test_each_cut_request_is_billed_at_most_its_own(served: Served) -> None:
    """40 cut requests, one after the other, so that each one's own count is known; the difference is printed."""
    asks = draw(SEED + 2, CUT_ALONE, cut=True, prefix="alone")
    rows: list[tuple[Ask, Told, Counters, UsageEvent | None]] = []
    async with connected(served, "cut") as client:
        before = counted(served)
        for ask in asks:
            told = await ask_one(client, ask)
            assert not told.problems
            after = counted(served)
            used = sum((after[name] - before[name] for name in after), start=Counters(0, 0, 0, 0))
            rows.append((ask, told, used, served.events("cut").get(ask.id)))
            before = after
    print(f"\n{'cut request':<38} {'events read':>11} {'prompt: billed, counted':>25} {'output: billed, counted':>25}")
    wrong = []
    for ask, told, used, event in rows:
        usage = event.usage if event else NO_USAGE
        status = (f"{event.status}{', estimated' if event.estimated else ''}") if event else "never arrived"
        line = f"{ask.label:<38} {told.events:>11} {usage.input_tokens:>17} {used.prompt:>7}"
        line += f" {usage.output_tokens:>17} {used.generation:>7}  {status}"
        print(line)
        if usage.input_tokens > used.prompt or usage.output_tokens > used.generation or (used.prompt and not event):
            wrong.append(line)
    generated = sum(used.generation for _, _, used, _ in rows)
    billed = sum(event.usage.output_tokens for *_, event in rows if event)
    print(
        f"of {generated} tokens generated {generated - billed} are not billed: {(generated - billed) / generated:.1%}"
    )
    assert not wrong, "billed more than was counted, or not recorded:\n" + "\n".join(wrong)
