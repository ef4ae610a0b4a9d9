"""Measures a stream beside a long prompt that nobody has sent before."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final

import httpx

from ._facts import Answer, LongPrompt
from ._http import PROMPT, post
from ._read import count_of, usage_of

TIMEOUT_S: Final = 120.0
MOST_TOKENS: Final = 16_384
"""Two full steps of vLLM's defaults on a large GPU, half a second of an H200."""
CONTEXT_PART: Final = 0.75
ALONE_TOKENS: Final = 24
STEP_LEAST_MS: Final = 1.0
"""What comes sooner belongs to the step before: a busy machine reads two late."""
SAMPLE_WORDS: Final = 200
TOKENS_PER_WORD: Final = 6.0
"""Of random hexadecimal words, where no tokenizer tells: rather too short a prompt than one that is refused."""
LONGER: Final = 1.5
"""Steps with a part of a prompt in them take so many times what others take; shorter ones are before or after it."""
POLL_S: Final = 0.002


async def probe(http: httpx.AsyncClient, url: str, model: str, context_tokens: int) -> LongPrompt | str:
    """What was measured, or why nothing could be."""
    neighbour = _Neighbour()
    stream = asyncio.create_task(neighbour.run(http, url, model, context_tokens // 2))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            prompt = await _long_prompt(http, url, model, context_tokens)
            if not await neighbour.has(ALONE_TOKENS, stream):
                return f"a stream beside it ended before it had {ALONE_TOKENS} tokens"
            sent_s = time.monotonic()
            body = {"model": model, "prompt": prompt, "max_tokens": 1}
            answer = await post(http, f"{url}/v1/completions", body, timeout_s=TIMEOUT_S)
            ended_s = time.monotonic()
            # The last step's token of the stream comes with the answer, or just after it.
            await neighbour.has(len(neighbour.at_s) + 1, stream)
    except TimeoutError:
        return f"it took longer than {TIMEOUT_S:g} s"
    finally:
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
    return measured(answer, neighbour.at_s, sent_s=sent_s, ended_s=ended_s)


def measured(answer: Answer, at_s: Sequence[float], *, sent_s: float, ended_s: float) -> LongPrompt | str:
    """From the long prompt's answer, when it was sent and answered, and when the stream's tokens came. Pure."""
    usage = usage_of(answer)
    if answer.status != 200 or usage is None or usage.prompt_tokens is None:
        return f"the long prompt was answered with {answer.error or answer.status}"
    gaps = [(earlier, later, 1000 * (later - earlier)) for earlier, later in pairwise(at_s)]
    gaps = [gap for gap in gaps if gap[2] >= STEP_LEAST_MS]
    alone = tuple(gap_ms for _, later, gap_ms in gaps if later <= sent_s)
    overlapping = [gap_ms for earlier, later, gap_ms in gaps if later > sent_s and earlier < ended_s]
    if not overlapping:
        return "the stream beside it got no token meanwhile"
    steps = [gap_ms for gap_ms in overlapping if alone and gap_ms > LONGER * fmean(alone)]
    return LongPrompt(prompt_tokens=usage.prompt_tokens, alone_ms=alone, beside_ms=tuple(steps or overlapping))


class _Neighbour:
    """A stream, and when tokens of it came."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    async def run(self, http: httpx.AsyncClient, url: str, model: str, most_tokens: int) -> None:
        """Until it is cancelled, or has ended."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": most_tokens, "stream": True, "ignore_eos": True}
        with contextlib.suppress(httpx.HTTPError):
            async with http.stream("POST", f"{url}/v1/completions", json=body, timeout=TIMEOUT_S) as answer:
                # What comes together was waited for once.
                async for part in answer.aiter_raw():
                    if b"data: {" in part:
                        self.at_s.append(time.monotonic())

    async def has(self, tokens: int, stream: asyncio.Task[None]) -> bool:
        """Waits until tokens have come so many times; False when it ends before."""
        while len(self.at_s) < tokens:
            if stream.done():
                return False
            await asyncio.sleep(POLL_S)
        return True


async def _long_prompt(http: httpx.AsyncClient, url: str, model: str, context_tokens: int) -> str:
    words = [f"{random.getrandbits(40):x}" for _ in range(MOST_TOKENS)]
    sample = await post(http, f"{url}/tokenize", {"model": model, "prompt": " ".join(words[:SAMPLE_WORDS])})
    counted = count_of(sample)
    per_word = counted / SAMPLE_WORDS if counted else TOKENS_PER_WORD
    wanted = min(MOST_TOKENS, int(CONTEXT_PART * context_tokens))
    return " ".join(words[: int(wanted / per_word)])
