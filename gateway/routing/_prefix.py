"""The prefix chain: what two prompts have in common, in hashes.

Blocks of the prompt's bytes, each hashed with its predecessor's hash, so that equal hashes mean equal prefixes. Bytes
and not tokens: the gateway has them without a tokenizer, and what is equal in bytes is equal in tokens.
"""

from __future__ import annotations

import xxhash

BLOCK_BYTES = 256
"""About 64 tokens: four of vLLM's default cache blocks of 16."""
MAX_BLOCKS = 128
"""32 KiB of prompt decide where a request goes; hashing them costs 25 µs, and prompts that long alike stay alike."""

_hash = xxhash.xxh3_64_intdigest


def prefix_chain(prompt: bytes) -> list[int]:
    """Hashes of the whole leading blocks of `prompt`, shortest prefix first; a shorter prompt is one block."""
    count = min(len(prompt) // BLOCK_BYTES, MAX_BLOCKS)
    if not count:
        return [_hash(prompt)]
    last = 0
    return [
        last := _hash(prompt[start : start + BLOCK_BYTES], last) for start in range(0, count * BLOCK_BYTES, BLOCK_BYTES)
    ]
