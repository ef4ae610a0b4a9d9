#!/usr/bin/env python3
"""Drives any OpenAI base URL with chat requests and prints tokens/s, TTFT, ITL and refusals.

    load.py --base-url URL --api-key KEY --model M (--rate R | --concurrency N) [--duration S]
            [--prompt-tokens N] [--output-tokens N] [--seed N] [--json]

`--rate` is an open loop: requests arrive at random (Poisson) R times a second, whatever the answers do, so that a slow
server cannot slow its own load. `--concurrency` is a closed loop of N clients. Requests that have begun when the time
is up are finished and counted. Every request is streamed with usage, so tokens are the server's own count, not a guess.

One request is one connection: what is measured is the server, not the client's pool. Only the standard library and
httptools, since httpx spends as much CPU on a chunk as an engine does on a token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

SILENCE_S = 60.0
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass
class Answer:
    """One request as its client saw it. Times are seconds since it was sent."""

    started_s: float
    status: int = 0
    code: str = ""
    error: str = ""
    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""
    retry_after_s: float | None = None
    ended_s: float = 0.0


class Reader:
    """httptools' callbacks: collects the body and takes the time of each event with text."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.parser = httptools.HttpResponseParser(self)
        self.complete = self.streams = False
        self.body = bytearray()

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self.streams = value.startswith(b"text/event-stream")
            case b"retry-after-ms":
                self.answer.retry_after_s = int(value) / 1000

    def on_headers_complete(self) -> None:
        self.answer.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data
        while self.streams and (end := self.body.find(b"\n\n")) >= 0:
            event = bytes(self.body[:end]).partition(b"data: ")[2]
            del self.body[: end + 2]
            if event and event != b"[DONE]":
                self._event(json.loads(event))

    def on_message_complete(self) -> None:
        self.complete = True
        if not self.streams:
            try:
                self._whole(json.loads(self.body))
            except (ValueError, AttributeError, KeyError, TypeError):
                self.answer.code = "no OpenAI answer"

    def _whole(self, body: dict[str, object]) -> None:
        if "error" in body or self.answer.status >= 400:
            self._refused(body)
            return
        self._count(body)
        for choice in body["choices"]:  # type: ignore[attr-defined]
            self.answer.finish_reason = choice["finish_reason"]

    def _count(self, body: dict[str, object]) -> None:
        if isinstance(usage := body.get("usage"), dict):
            self.answer.input_tokens, self.answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]

    def _event(self, chunk: dict[str, object]) -> None:
        answer, now_s = self.answer, time.perf_counter() - self.answer.started_s
        if "error" in chunk:
            self._refused(chunk)
            answer.error = answer.code
        self._count(chunk)
        choices: list[dict[str, dict[str, object]]] = chunk.get("choices") or []  # type: ignore[assignment]
        for choice in choices:
            if isinstance(reason := choice.get("finish_reason"), str):
                answer.finish_reason = reason
        if not any(choice["delta"].get("content") for choice in choices):
            return
        if answer.first_s is None:
            answer.first_s = now_s
        else:
            answer.gaps_s.append(now_s - answer.last_s)
        answer.last_s = now_s

    def _refused(self, body: dict[str, object]) -> None:
        error = body.get("error")
        self.answer.code = str(error.get("code") or error.get("type")) if isinstance(error, dict) else "no OpenAI error"


class Target:
    """Where the load goes, and what each request says."""

    def __init__(self, options: argparse.Namespace) -> None:
        parts = urlsplit(options.base_url)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.tls else 80)
        self.head = (
            f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"authorization: Bearer {options.api_key}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        self.options = options
        self.random = random.Random(options.seed)  # noqa: S311 - load, not secrets

    def request(self) -> bytes:
        """A prompt nobody has sent before: about one token a word."""
        words = " ".join(self.random.choices(WORDS, k=self.options.prompt_tokens))
        body = json.dumps(
            {
                "model": self.options.model,
                "messages": [{"role": "user", "content": words}],
                "max_tokens": self.options.output_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **({"ignore_eos": True} if self.options.ignore_eos else {}),
            }
        ).encode()
        return f"{self.head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def ask(self) -> Answer:
        """One request, to its end."""
        return await converse(self.host, self.port, self.request(), tls=self.tls)


async def converse(host: str, port: int, request: bytes, *, tls: ssl.SSLContext | None = None) -> Answer:
    """One request on a connection of its own, to its end."""
    answer = Answer(time.perf_counter())
    reader = Reader(answer)
    try:
        async with asyncio.timeout(SILENCE_S):
            source, sink = await asyncio.open_connection(host, port, ssl=tls)
        try:
            sink.write(request)
            while not reader.complete:
                async with asyncio.timeout(SILENCE_S):
                    data = await source.read(65536)
                if not data:
                    raise ConnectionError("cut")
                reader.parser.feed_data(data)
        finally:
            sink.close()
    except (OSError, TimeoutError, httptools.HttpParserError, ValueError, KeyError) as error:
        answer.error = f"{type(error).__name__}: {error}"[:60].rstrip(": ")
    answer.ended_s = time.perf_counter() - answer.started_s
    return answer


async def open_loop(ask: Callable[[], Awaitable[Answer]], rate: float, duration_s: float, seed: int) -> list[Answer]:
    """Arrivals at random, `rate` a second."""
    arrivals, asked = random.Random(seed), []  # noqa: S311 - load, not secrets
    loop = asyncio.get_running_loop()
    due_s = started_s = loop.time()
    while (due_s := due_s + arrivals.expovariate(rate)) < started_s + duration_s:
        await asyncio.sleep(due_s - loop.time())
        asked.append(asyncio.ensure_future(ask()))
    return list(await asyncio.gather(*asked))


async def closed_loop(ask: Callable[[], Awaitable[Answer]], clients: int, duration_s: float) -> list[Answer]:
    """`clients` clients, each with one request after the other."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + duration_s
    answers: list[Answer] = []

    async def client() -> None:
        while loop.time() < until_s:
            answers.append(await ask())

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def percentile_ms(times_s: list[float], share: float) -> float | None:
    """The time that `share` of them do not exceed, in ms (nearest rank)."""
    if not times_s:
        return None
    ranked = sorted(times_s)
    return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))] * 1000, 2)


def summary(answers: list[Answer], elapsed_s: float) -> dict[str, object]:
    """What the table shows."""
    refused = Counter(f"{a.status} {a.code}" for a in answers if a.status >= 400)
    errors = Counter(a.error for a in answers if a.error)
    done = [a for a in answers if a.status == 200 and not a.error]
    first = [a.first_s for a in done if a.first_s is not None]
    gaps = [gap for a in done for gap in a.gaps_s]
    input_tokens, output_tokens = sum(a.input_tokens for a in answers), sum(a.output_tokens for a in answers)
    return {
        "seconds": round(elapsed_s, 2),
        "requests": len(answers),
        "finished": len(done),
        "refused": dict(refused),
        "errors": dict(errors),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": round(len(done) / elapsed_s, 2),
        "input_tokens_per_s": round(input_tokens / elapsed_s, 1),
        "output_tokens_per_s": round(output_tokens / elapsed_s, 1),
        "ttft_ms_p50": percentile_ms(first, 0.50),
        "ttft_ms_p99": percentile_ms(first, 0.99),
        "itl_ms_p50": percentile_ms(gaps, 0.50),
        "itl_ms_p99": percentile_ms(gaps, 0.99),
    }


def table(told: dict[str, object]) -> str:
    """The summary, a line each; refusals and errors a line per kind."""
    lines = []
    for name, value in told.items():
        if isinstance(value, dict):
            lines.append(f"{name:<20} {sum(value.values()):>12}")
            lines += [f"  {kind:<40} {count}" for kind, count in sorted(value.items())]
        else:
            lines.append(f"{name:<20} {'-' if value is None else value:>12}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base-url", required=True, help="with /v1, as OpenAI's SDK takes it")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--model", required=True)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=float, help="requests per second, arriving at random")
    load.add_argument("--concurrency", type=int, help="clients, each with one request at a time")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds in which requests begin (10)")
    parser.add_argument("--prompt-tokens", type=int, default=200, help="words in each prompt (200)")
    parser.add_argument("--output-tokens", type=int, default=64, help="max_tokens of each request (64)")
    parser.add_argument("--ignore-eos", action="store_true", help="vLLM: always generate that many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed sends the same prompts (0)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args(arguments)
    if min(options.rate or 1, options.concurrency or 1, options.duration) <= 0:
        parser.error("rate, concurrency and duration must be above 0")
    return options


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Loads the target; returns the summary."""
    target = Target(options)
    started_s = time.perf_counter()
    if options.rate:
        answers = await open_loop(target.ask, options.rate, options.duration, options.seed)
    else:
        answers = await closed_loop(target.ask, options.concurrency, options.duration)
    return summary(answers, time.perf_counter() - started_s)


def main() -> int:
    options = parse()
    told = asyncio.run(run(options))
    print(json.dumps(told) if options.json else table(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
