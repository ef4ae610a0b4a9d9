"""Where a request goes: to the replica that has its longest prefix warm, while that replica's load allows.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018): no replica takes more than `LOAD_FACTOR`
times its even share. A prefix nobody has goes by rendezvous hash, so that gateways agree without talking and a lost
replica's prefixes spread over all that remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import xxhash

from ._prefix import BLOCK_BYTES, MAX_BLOCKS

LOAD_FACTOR = 1.25
LOAD_FREE = 4
"""Below so many requests a warm prefix is worth more than an even spread: an H200 decodes 4 streams as fast as one."""
MAX_BLOCKS_KNOWN = 65_536
"""Bound of the index, about 10 MB a model."""


class Target(Protocol):
    """What placement needs to know about a replica."""

    @property
    def name(self) -> str: ...

    @property
    def in_flight(self) -> int: ...


T = TypeVar("T", bound=Target)


class PrefixIndex:
    """Which replica saw which prefix last.

    Blocks are forgotten a generation at a time: those not used since the last turn go when the present generation has
    half the bound. Nothing but a few calls in C per request, where an exact LRU moves every block of every prompt.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS_KNOWN) -> None:
        self._owner: dict[int, str] = {}
        self._before: dict[int, str] = {}
        self._generation_blocks = max_blocks // 2

    def __len__(self) -> int:
        return len(self._owner) + len(self._before)

    def owner(self, chain: Sequence[int]) -> str | None:
        """The replica that has the longest known prefix of `chain`."""
        owner, before = self._owner, self._before
        for block in reversed(chain):
            if block in owner:
                return owner[block]
            if block in before:
                return before[block]
        return None

    def warm_bytes(self, chain: Sequence[int], name: str, prompt_bytes: int) -> int:
        """How many leading bytes of a prompt of that length, whose chain this is, `name` has seen before.

        Its deepest block counts, whoever saw the ones before it since. A chain known to its end is a whole prompt,
        unless it was too long to be hashed to its end.
        """
        owner, before = self._owner, self._before
        for depth in range(len(chain), 0, -1):
            block = chain[depth - 1]
            if (owner.get(block) or before.get(block)) == name:
                return prompt_bytes if depth == len(chain) < MAX_BLOCKS else depth * BLOCK_BYTES
        return 0

    def note(self, chain: Sequence[int], name: str) -> None:
        """`name` has this whole prefix now; blocks not used for long are forgotten beyond the bound."""
        if len(self._owner) + len(chain) > self._generation_blocks:
            self._owner, self._before = {}, self._owner
        self._owner.update(dict.fromkeys(chain, name))


def choose(chain: Sequence[int], index: PrefixIndex, targets: Sequence[T]) -> T:
    """The target for a prompt with this prefix chain. `targets` are the usable ones, at least one."""
    assert targets
    if len(targets) == 1:
        return targets[0]
    total = 1
    for target in targets:
        total += target.in_flight
    bound = max(LOAD_FREE, -int(-LOAD_FACTOR * total // len(targets)))
    owner = index.owner(chain)
    if owner is not None:
        for target in targets:
            if target.name == owner and target.in_flight < bound:
                return target
    free = [target for target in targets if target.in_flight < bound] or targets
    return max(free, key=lambda target: _rendezvous(chain[0], target.name))


def _rendezvous(block: int, name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(), block)
