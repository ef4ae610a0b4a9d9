"""Log probabilities as the random weights of the recordings give them: all tokens about equally unlikely."""

from __future__ import annotations

from collections.abc import Sequence

from ._json import Json
from ._tokenizer import word

SAMPLED = -11.7617826461792
BEST = -11.76176643371582
"""The highest of the vocabulary, hardly above the others."""


def _others(token: int, count: int) -> list[int]:
    return [256 + (token * 31 + offset * 977) % 100_000 for offset in range(count)]


def chat_logprobs(ids: Sequence[int], top: int | None) -> Json:
    """The chat shape; None if not asked for."""
    if top is None:
        return None
    content = []
    for token in ids:
        entry = _entry(token, SAMPLED)
        best = [_entry(token, SAMPLED), *(_entry(other, BEST) for other in _others(token, top))] if top else []
        content.append({**entry, "top_logprobs": best})
    return {"content": content}


def _entry(token: int, logprob: float) -> dict[str, Json]:
    text = word(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(ids: Sequence[int], top: int | None, *, offset: int = 0, first_unknown: bool = False) -> Json:
    """The completions shape: four parallel lists; an echoed prompt's first token has no probability."""
    if top is None:
        return None
    tokens = [word(token) for token in ids]
    offsets, at = [], offset
    for text in tokens:
        offsets.append(at)
        at += len(text)
    logprobs: list[float | None] = [SAMPLED] * len(ids)
    tops: list[Json] = [
        {text: SAMPLED, **{word(other): BEST for other in _others(token, top)}}
        for token, text in zip(ids, tokens, strict=True)
    ]
    if first_unknown and ids:
        logprobs[0] = None
        tops[0] = None
    return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": tops}


def prompt_logprobs(ids: Sequence[int], top: int) -> Json:
    """One entry for each prompt token by its id; the first has none."""
    entries: list[Json] = [None]
    for token in ids[1:]:
        entry: dict[str, Json] = {str(token): {"logprob": SAMPLED, "rank": 52_581, "decoded_token": word(token)}}
        for other in _others(token, top):
            entry[str(other)] = {"logprob": BEST, "rank": 1, "decoded_token": word(other)}
        entries.append(entry)
    return entries
