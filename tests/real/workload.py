"""Requests of mixed kinds, drawn from a seed, asked through OpenAI's SDK, each answer held to what it must be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import openai

from tests.real.conftest import MODEL

Kind = Literal["chat", "completions", "responses"]
Wish = Literal["unsaid", "wanted", "running", "unwanted"]

_WORDS = (
    "import",
    "self",
    "return",
    "token",
    "for",
    "value",
    "class",
    "raise",
    "list",
    "naïve",
    "日本",
    "🙂",
    "{",
    "\n",
)
_SYSTEM = "You are a careful assistant. " * 20


@dataclass(frozen=True)
class Ask:
    """One request. `cut_after` says where its client hangs up: so many events into a stream, or so many seconds into
    an answer that is not streamed or has not begun; None: never."""

    id: str
    kind: Kind
    stream: bool
    usage: Wish
    samples: int
    prompts: int
    body: dict[str, Any]
    cut_after_events: int | None = None
    cut_after_s: float | None = None

    @property
    def is_cut(self) -> bool:
        return self.cut_after_events is not None or self.cut_after_s is not None

    @property
    def label(self) -> str:
        """What the table calls it."""
        streamed = "streamed" if self.stream else "whole"
        many = f" n={self.samples}" if self.samples > 1 else ""
        return f"{self.kind} {streamed}{many}{' several prompts' if self.prompts > 1 else ''}"


@dataclass
class Told:
    """What the client got: usage if any was shown, the texts, and whatever was wrong."""

    ask: Ask
    usage: tuple[int, int] | None = None
    events: int = 0
    was_cut: bool = False
    texts: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    problems: list[str] = field(default_factory=list)

    def expect(self, condition: object, problem: str) -> None:
        """Writes down a problem unless `condition`."""
        if not condition:
            self.problems.append(f"{self.ask.id} ({self.ask.label}, usage {self.ask.usage}): {problem}")


def draw(seed: int, count: int, *, cut: bool, prefix: str) -> list[Ask]:
    """`count` requests, the same for the same seed."""
    rng = random.Random(seed)
    return [_draw_one(rng, f"{prefix}-{seed}-{number}", cut=cut) for number in range(count)]


def _draw_one(rng: random.Random, request_id: str, *, cut: bool) -> Ask:
    kind: Kind = rng.choices(("chat", "completions", "responses"), (5, 3, 2))[0]
    stream = rng.random() < 0.6
    usage: Wish = rng.choice(("unsaid", "wanted", "running", "unwanted"))
    samples = rng.choice((1, 1, 1, 2, 3)) if kind != "responses" else 1
    prompts = rng.choice((1, 1, 2, 3)) if kind == "completions" else 1
    bound = rng.randint(40, 200) if cut else rng.choice((1, 2, 5, 20, 60))
    text = " ".join(rng.choices(_WORDS, k=rng.randint(1, 250)))
    body: dict[str, Any] = {"temperature": rng.choice((0, 1.0)), "extra_body": {}}
    if samples > 1:
        body |= {"n": samples, "temperature": 1.0}  # vLLM refuses several samples of greedy decoding
    if rng.random() < 0.2:
        body["extra_body"]["priority"] = rng.randint(-1, 1)
    match kind:
        case "chat":
            system = [{"role": "system", "content": _SYSTEM}] if rng.random() < 0.5 else []
            body["messages"] = [*system, {"role": "user", "content": text}]
            body[rng.choice(("max_tokens", "max_completion_tokens"))] = bound
            if rng.random() < 0.2:
                body |= {"logprobs": True, "top_logprobs": 2}
        case "completions":
            texts = [f"{number} {text}" for number in range(prompts)]
            as_ids = rng.random() < 0.2
            body["prompt"] = [[rng.randint(10, 7000) for _ in range(30)] for _ in texts] if as_ids else texts
            if prompts == 1 and rng.random() < 0.5:
                body["prompt"] = body["prompt"][0]
            body["max_tokens"] = bound
            if rng.random() < 0.2:
                body["logprobs"] = 1
        case "responses":
            body["input"] = text if rng.random() < 0.5 else [{"role": "user", "content": text}]
            body["max_output_tokens"] = bound
            if rng.random() < 0.3:
                body["instructions"] = _SYSTEM
    if kind != "responses" and not cut and rng.random() < 0.2:
        body["stop"] = [rng.choice("aeiou")]
    if stream and kind != "responses" and usage != "unsaid":
        body["stream_options"] = {
            "include_usage": usage != "unwanted",
            **({"continuous_usage_stats": True} if usage == "running" else {}),
        }
    by_events = cut and stream and rng.random() < 0.8
    return Ask(
        id=request_id,
        kind=kind,
        stream=stream,
        usage=usage,
        samples=samples,
        prompts=prompts,
        body=body,
        cut_after_events=rng.choice((0, 1, 2, rng.randint(3, 30))) if by_events else None,
        cut_after_s=rng.uniform(0.0, 0.4) if cut and not by_events else None,
    )


async def ask_all(client: openai.AsyncOpenAI, asks: list[Ask], *, at_once: int) -> list[Told]:
    """All of them, `at_once` at a time, in order of their beginning."""
    gate = asyncio.Semaphore(at_once)

    async def one(ask: Ask) -> Told:
        async with gate:
            return await ask_one(client, ask)

    return list(await asyncio.gather(*(one(ask) for ask in asks)))


async def ask_one(client: openai.AsyncOpenAI, ask: Ask) -> Told:
    """One request to its end, or to where its client hangs up."""
    told = Told(ask)
    try:
        async with asyncio.timeout(ask.cut_after_s if ask.is_cut else 120):
            await _converse(client, ask, told)
    except TimeoutError:
        told.was_cut = True
        told.expect(ask.is_cut, "no answer within 120 s")
    except openai.OpenAIError as error:
        told.expect(False, f"{type(error).__name__}: {error}")
    return told


async def _converse(client: openai.AsyncOpenAI, ask: Ask, told: Told) -> None:
    create = {
        "chat": client.chat.completions.create,
        "completions": client.completions.create,
        "responses": client.responses.create,
    }[ask.kind]
    answer: Any = await create(model=MODEL, stream=ask.stream, extra_headers={"x-request-id": ask.id}, **ask.body)  # type: ignore[operator]
    if not ask.stream:
        _check_whole(told, answer)
        return
    _expect_id(told, answer.response.headers["x-request-id"])
    events = []
    async with answer:
        if ask.cut_after_events == 0:
            told.was_cut = True
            return
        async for event in answer:
            events.append(event)
            told.events += 1
            if told.events == ask.cut_after_events:
                told.was_cut = True
                return
    if ask.kind == "responses":
        _check_response_events(told, events)
    else:
        _check_chunks(told, events)


def _expect_id(told: Told, request_id: str | None) -> None:
    told.expect(request_id == told.ask.id, f"the answer's request id is {request_id}")


def _check_whole(told: Told, answer: Any) -> None:
    _expect_id(told, answer._request_id)
    if told.ask.kind == "responses":
        told.usage = (answer.usage.input_tokens, answer.usage.output_tokens)
        told.expect(answer.status in ("completed", "incomplete"), f"status {answer.status}")
        return
    told.usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    indexes = sorted(choice.index for choice in answer.choices)
    told.expect(indexes == list(range(told.ask.samples * told.ask.prompts)), f"choices {indexes}")
    told.expect(all(choice.finish_reason for choice in answer.choices), "a choice without a finish reason")


def _check_chunks(told: Told, chunks: list[Any]) -> None:
    """Choices in every chunk but the usage chunk; each choice ends once and says nothing after; usage as asked."""
    ask = told.ask
    finished: Counter[int] = Counter()
    wants = ask.usage in ("wanted", "running")
    for position, chunk in enumerate(chunks):
        last = position == len(chunks) - 1
        if not chunk.choices:
            told.expect(wants and last, "a chunk without choices")
            told.expect(chunk.usage, "the last chunk has no usage")
            if chunk.usage:
                told.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            continue
        shown = "usage" in chunk.model_fields_set and chunk.usage is not None
        told.expect(shown == (ask.usage == "running"), f"a chunk {'with' if shown else 'without'} running usage")
        for choice in chunk.choices:
            told.expect(not finished[choice.index], f"choice {choice.index} goes on after its end")
            text = choice.delta.content if ask.kind == "chat" else choice.text
            told.texts[choice.index] += text or ""
            finished[choice.index] += choice.finish_reason is not None
    told.expect(wants == (told.usage is not None), "usage at the end is not what was asked for")
    told.expect(dict(finished) == dict.fromkeys(range(ask.samples * ask.prompts), 1), f"ends: {dict(finished)}")


def _check_response_events(told: Told, events: list[Any]) -> None:
    """Created first, completed last, numbered without gaps, the deltas making the final text."""
    told.expect(events and events[0].type == "response.created", "does not begin with response.created")
    last = events[-1] if events else None
    if last is None or last.type not in ("response.completed", "response.incomplete"):
        told.expect(False, f"ends with {last and last.type}")
        return
    told.usage = (last.response.usage.input_tokens, last.response.usage.output_tokens)
    told.expect([event.sequence_number for event in events] == list(range(len(events))), "events are missing")
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    told.texts[0] = deltas
    told.expect(deltas == last.response.output_text, "the deltas are not the final text")
