"""Clients that do as they are told: come at their time, wait as long as a refusal says, and come back.

An open loop: whoever is due comes, whatever became of those before.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from loadtest.load import WORDS, Answer, converse

BROKEN_S: Final = 0.3
"""After a connection that broke, and after a 503 that names no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One client: comes `at_s` into the run, with a prompt of `words` drawn from `seed`.

    `ports` are where it asks, the next one each time. `attempts` is how often at most, `patience_s` the longest
    Retry-After it waits for; with `obeys` false it comes back after `BROKEN_S`, whatever it was told.
    """

    at_s: float
    who: str
    key: str
    ports: Sequence[int]
    seed: int
    words: int = 20
    max_tokens: int = 60
    exact: bool = False
    """The answer has `max_tokens`, whatever it would have been."""
    stream: bool = True
    attempts: int = 1
    patience_s: float = 0.0
    obeys: bool = True


@dataclass(slots=True, kw_only=True)
class Story:
    """What became of a visit: every attempt, and when it began (seconds into the run)."""

    visit: Visit
    answers: list[Answer] = field(default_factory=list)
    begun_s: list[float] = field(default_factory=list)

    @property
    def last(self) -> Answer:
        return self.answers[-1]

    @property
    def served(self) -> bool:
        """Whether the last attempt was answered, to its end."""
        return self.last.status == 200 and not self.last.error


class Plan(msgspec.Struct):
    """What this process is to do."""

    visits: list[Visit]


async def play(visits: Sequence[Visit]) -> list[Story]:
    """All visits, to their ends."""
    began_s = time.perf_counter()
    return list(await asyncio.gather(*(_visit(visit, began_s) for visit in visits)))


async def _visit(visit: Visit, began_s: float) -> Story:
    story = Story(visit=visit)
    await asyncio.sleep(began_s + visit.at_s - time.perf_counter())
    for attempt in range(visit.attempts):
        port = visit.ports[attempt % len(visit.ports)]
        answer = await converse("127.0.0.1", port, _request(visit, attempt))
        story.answers.append(answer)
        story.begun_s.append(answer.started_s - began_s)
        if answer.status == 200 and not answer.error:
            break
        if answer.status not in (0, 200, 429, 503) or attempt == visit.attempts - 1:
            break
        told_s = answer.retry_after_s
        if told_s is not None and told_s > visit.patience_s:
            break
        await asyncio.sleep(told_s if visit.obeys and told_s is not None else BROKEN_S)
    return story


def _request(visit: Visit, attempt: int) -> bytes:
    words = random.Random(visit.seed).choices(WORDS, k=visit.words)  # noqa: S311 - load, not secrets
    body: dict[str, object] = {
        "model": "tiny",
        "user": visit.who,
        "messages": [{"role": "user", "content": " ".join(words)}],
        "max_tokens": visit.max_tokens,
    }
    if visit.exact:
        body["ignore_eos"] = True
    if visit.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: gateway",
        "connection: close",
        f"authorization: Bearer {visit.key}",
        f"x-stainless-retry-count: {attempt}",
        "content-type: application/json",
        f"content-length: {len(content)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def play_apart(visits: Sequence[Visit]) -> list[Story]:
    """The same in a process of its own, which measures the gateway and not whoever started it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtest.admission._playing",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        told, _ = await process.communicate(msgspec.json.encode(Plan(list(visits))))
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError("the clients' process failed")
    return msgspec.json.decode(told, type=list[Story])
