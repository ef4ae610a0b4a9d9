"""The clients: what each asks, drawn from the seed, and what each has seen of its answer."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import httptools

MODEL: Final = "tiny"
SILENCE_S: Final = 90.0
CONNECT_S: Final = 10.0

Outcome = Literal["complete", "failed", "refused", "cut", "left", "unsent"]
"""complete  the whole answer, with its usage
failed    a stream that came to its end with an error in it
refused   a whole answer with an error status
cut       the connection broke, or nothing came, before the answer's end
left      the client hung up
unsent    no connection: nobody can know of the request"""

_USAGE: Final = re.compile(rb'"usage":\s*\{')
_WORDS: Final = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Usage as a client is told it."""

    input: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `leaves_after` is how many bytes of its answer a client waits for before it hangs up."""

    id: str
    tenant: str
    body: bytes
    output_most: int
    leaves_after: int | None = None


@dataclass(slots=True)
class Seen:
    """What a client knows of its request at the end, `took_s` after it began; `streamed_s` of these came after the
    first piece of a stream."""

    question: Question
    outcome: Outcome = "unsent"
    status: int = 0
    code: str = ""
    tokens: Tokens | None = None
    took_s: float = 0.0
    streamed_s: float = 0.0


def draw(seed: int, number: int, tenants: Mapping[str, int]) -> Question:
    """Request `number` of this seed. `tenants` have weights."""
    dice = random.Random(f"{seed}.{number}")  # noqa: S311 - a draw to repeat, not a secret
    (tenant,) = dice.choices(list(tenants), list(tenants.values()))
    words = ["system"] * 40 if dice.random() < 0.4 else []
    words += dice.choices(_WORDS, k=dice.randint(1, 40))
    output = dice.randint(200, 600) if dice.random() < 0.03 else dice.randint(1, 16)
    samples = dice.choice((2, 3)) if dice.random() < 0.1 else 1
    body: dict[str, object] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": " ".join(words)}],
        "max_tokens": output,
        "ignore_eos": True,
    }
    if samples > 1:
        body["n"] = samples
    leaves_after = None
    if dice.random() < 0.6:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if dice.random() < 0.12:
            leaves_after = dice.choice((0, 1, 400, 1500))
    match dice.randrange(60):
        case 0:
            body["model"] = "nobody-serves-this"
        case 1:
            body["max_tokens"] = 1_000_000
        case 2:
            body["temperature"] = -1
    return Question(f"r{number}-{seed:x}", tenant, json.dumps(body).encode(), output * samples, leaves_after)


async def ask(question: Question, port: int, key: str) -> Seen:
    """One request on a connection of its own, to its end."""
    started_s = time.monotonic()
    seen = await _ask(question, port, key)
    seen.took_s = time.monotonic() - started_s
    return seen


async def _ask(question: Question, port: int, key: str) -> Seen:
    seen = Seen(question)
    reader = _Reader(seen)
    try:
        async with asyncio.timeout(CONNECT_S):
            source, sink = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return seen
    seen.outcome = "cut"
    try:
        sink.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\n"
            b"authorization: Bearer %b\r\nx-request-id: %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (key.encode(), question.id.encode(), len(question.body), question.body)
        )
        await _read(reader, source, question.leaves_after)
    except (OSError, TimeoutError, httptools.HttpParserError):
        pass  # it stays "cut", unless everything of worth had come
    finally:
        sink.transport.abort()
    return seen


async def _read(reader: _Reader, source: asyncio.StreamReader, leaves_after: int | None) -> None:
    got, first_s = 0, 0.0
    while not reader.ended:
        if leaves_after is not None and got >= leaves_after:
            reader.seen.outcome = "left"
            return
        async with asyncio.timeout(SILENCE_S):
            data = await source.read(65536)
        if not data:
            return
        got += len(data)
        reader.parser.feed_data(data)
        if reader.streams:
            now_s = time.monotonic()
            first_s = first_s or now_s
            reader.seen.streamed_s = now_s - first_s


class _Reader:
    """httptools' callbacks. A stream has ended with its `[DONE]`, whatever becomes of the connection then."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.parser = httptools.HttpResponseParser(self)
        self.ended = self.streams = False
        self._body = bytearray()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.streams |= name.lower() == b"content-type" and value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self.seen.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._body += data
        while self.streams and (end := self._body.find(b"\n\n")) >= 0:
            event = bytes(self._body[:end]).partition(b"data: ")[2]
            del self._body[: end + 2]
            if event == b"[DONE]":
                self.ended = True
                self.seen.outcome = "failed" if self.seen.code else "complete"
            elif event.startswith(b'{"error"') or _USAGE.search(event):
                self._take(event)

    def on_message_complete(self) -> None:
        if not self.streams:
            self.ended = True
            self._take(bytes(self._body))
            self.seen.outcome = "refused" if self.seen.status >= 400 else "complete"

    def _take(self, document: bytes) -> None:
        told = json.loads(document)
        if error := told.get("error"):
            self.seen.code = str(error.get("code"))
        if usage := told.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            self.seen.tokens = Tokens(
                usage["prompt_tokens"], details.get("cached_tokens") or 0, usage["completion_tokens"]
            )
