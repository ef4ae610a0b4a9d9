"""Prompts as bytes, four to a token, so that a router sees bytes and an engine sees the same prompt as tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.simulator import Prompt

TOKEN_BYTES = 4
BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
ROOT_KEY = 0x6D746F6B


def dice(seed: str) -> random.Random:
    """Draws that can be repeated."""
    return random.Random(seed)  # noqa: S311 - nothing here is secret


def content(seed: str, tokens: int) -> bytes:
    """So many tokens that are like no others."""
    return dice(seed).randbytes(tokens * TOKEN_BYTES)


def ids(data: bytes) -> Sequence[int]:
    """The tokens of it."""
    return memoryview(data).cast("I")


class Text:
    """A prompt, or what it begins with: its bytes, and the keys of its whole blocks as the engine knows them."""

    __slots__ = ("data", "keys")

    def __init__(self, data: bytes = b"", keys: Sequence[int] = ()) -> None:
        self.data = data
        self.keys = keys

    @property
    def tokens(self) -> int:
        return len(self.data) // TOKEN_BYTES

    def plus(self, more: bytes) -> Text:
        """With that after it; only the new blocks are hashed."""
        data = self.data + more
        tokens = ids(data)
        keys = list(self.keys)
        key = keys[-1] if keys else ROOT_KEY
        for end in range((len(keys) + 1) * BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
            key = hash((key, tuple(tokens[end - BLOCK_TOKENS : end])))
            keys.append(key)
        return Text(data, keys)

    def prompt(self) -> Prompt:
        """As the engine is given it."""
        tokens = ids(self.data)
        keys = self.keys
        return Prompt(
            tokens=len(tokens),
            keys=keys,
            tail=tuple(tokens[len(keys) * BLOCK_TOKENS :]),
            root=keys[-1] if keys else ROOT_KEY,
        )
