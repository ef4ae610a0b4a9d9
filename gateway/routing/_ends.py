"""Where conversations stand: an engine caches its own answers too, of which a prompt's chain knows nothing.

The next turn of a conversation begins with its last prompt, to the byte, and goes on with the answer. So it is known
by the bytes after the last whole block that both have, and how long the answer was by what the engine has told.
"""

from __future__ import annotations

import xxhash

from ._prefix import BLOCK_BYTES, Chain

GENERATION = 16_384
"""Ends that are remembered at least, some 4 MB."""
AT_A_BLOCK = 4
"""Short prompts after one system prompt end in the same block."""

_hash = xxhash.xxh3_64_intdigest

_End = tuple[int, int, str, int]
"""Bytes after the block, their hash, the replica, tokens of the answer."""


class Ends:
    """The last prompts' ends, by the last whole block of each."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._now: dict[int, tuple[_End, ...]] = {}
        self._before: dict[int, tuple[_End, ...]] = {}

    def note(self, chain: Chain, replica: str, output_tokens: int) -> None:
        """An answer to that prompt has ended there."""
        tail = chain.text[len(chain.blocks) * BLOCK_BYTES :]
        if len(self._now) >= GENERATION:
            self._before, self._now = self._now, {}
        block = chain.blocks[-1]
        others = self._now.get(block, ())[: AT_A_BLOCK - 1]
        self._now[block] = ((len(tail), _hash(tail, block), replica, output_tokens), *others)

    def beyond(self, chain: Chain, depth: int, replica: str) -> tuple[int, int]:
        """What a replica that has seen so many of its blocks has seen of it beyond them: bytes of the prompt, and after
        those an answer of so many tokens."""
        block = chain.blocks[depth - 1]
        ends = self._now.get(block) or self._before.get(block)
        if ends is None:
            return 0, 0
        start = depth * BLOCK_BYTES
        for size, tail, at, output_tokens in ends:
            if at == replica and _hash(chain.text[start : start + size], block) == tail:
                return size, output_tokens
        return 0, 0
