"""The prefix chain: what two prompts have in common, in hashes.

Blocks of the prompt's bytes, each hashed with its predecessor's hash, so that equal hashes mean equal prefixes. Bytes
and not tokens: the gateway has them without a tokenizer, and what is equal in bytes is equal in tokens.
"""

from __future__ import annotations

import struct

import xxhash
from msgspec import Struct

BLOCK_BYTES = 256
"""About 64 tokens: four of vLLM's default cache blocks of 16."""

_hash = xxhash.xxh3_64_intdigest
_blocks = struct.Struct(f"{BLOCK_BYTES}s").iter_unpack


class Chain(Struct, frozen=True, gc=False):
    """`blocks` are the hashes of the whole leading blocks of `text`, shortest prefix first; a shorter text is one
    block."""

    blocks: list[int]
    text: bytes

    def bytes_at(self, depth: int) -> int:
        """How long the prefix of so many blocks is."""
        return min(depth * BLOCK_BYTES, len(self.text))

    def reaches_end(self, known_bytes: int) -> bool:
        """Whether a prefix of so many bytes is all that can be known of it: the text itself, or one that begins so and
        differs in less than a block."""
        return known_bytes >= max(1, len(self.text) // BLOCK_BYTES * BLOCK_BYTES)


def prefix_chain(text: bytes, seed: int = 0) -> Chain:
    """The chain of a prompt. Prompts of different seeds have nothing in common."""
    end = len(text) // BLOCK_BYTES * BLOCK_BYTES
    if not end:
        return Chain([_hash(text, seed)], text)
    last = seed
    whole = text if end == len(text) else text[:end]
    return Chain([last := _hash(block, last) for (block,) in _blocks(whole)], text)
