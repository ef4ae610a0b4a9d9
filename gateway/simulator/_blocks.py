"""The KV cache as vLLM 0.24 keeps it: blocks, references, prefix hits, and eviction of the block freed longest ago.

A block that is full has a key, the hash of its tokens and of the key before it, so equal keys mean equal prefixes. A
block is in one of four states:

    empty      never used, or dropped
    anonymous  in use, not full yet, or full but with a key that another block already has
    held       in use under its key, by one sequence or several
    idle       free, but its contents can still be found under its key; the oldest is evicted first

Only counts and keys are kept: which of the 23,846 blocks it is does not matter to anyone, and no operation looks at
all of them. Sequences free their blocks last to first, so that a prefix outlives what followed it (vLLM,
`kv_cache_manager.free`).
"""

from __future__ import annotations

from collections.abc import Sequence

KEY_SEED = 0x6D746F6B


def root_key(salt: str) -> int:
    """The key before the first block; a salt keeps tenants' caches apart."""
    # str hashes change with the process, so a salt enters as the integer of its bytes.
    return hash((KEY_SEED, int.from_bytes(salt.encode("utf-8", "surrogatepass"), "big")))


def chain_keys(ids: Sequence[int], block_size: int, salt: str = "") -> list[int]:
    """One key for each full block of `ids`, each depending on the salt and all tokens before."""
    key = root_key(salt)
    keys = []
    for end in range(block_size, len(ids) + 1, block_size):
        key = hash((key, tuple(ids[end - block_size : end])))
        keys.append(key)
    return keys


class BlockPool:
    """Blocks in use and blocks that can be found again; every operation is O(blocks it concerns)."""

    __slots__ = ("_anonymous", "_held", "_idle", "total")

    def __init__(self, total: int) -> None:
        """`total` blocks that sequences may use (vLLM's null block not among them)."""
        assert total > 0
        self.total = total
        self._held: dict[int, int] = {}
        self._idle: dict[int, None] = {}
        self._anonymous = 0

    @property
    def used(self) -> int:
        """Blocks that some sequence references."""
        return len(self._held) + self._anonymous

    @property
    def free(self) -> int:
        """Blocks that can be taken now, idle ones included."""
        return self.total - len(self._held) - self._anonymous

    def cached_prefix(self, keys: Sequence[int]) -> int:
        """How many of the leading keys are in the cache."""
        held, idle = self._held, self._idle
        count = 0
        for key in keys:
            if key not in held and key not in idle:
                break
            count += 1
        return count

    def idle_among(self, keys: Sequence[int]) -> int:
        """How many of these cached blocks are idle, and so cost a free block when they are held."""
        idle = self._idle
        return sum(1 for key in keys if key in idle)

    def hold(self, keys: Sequence[int]) -> None:
        """Reference blocks that are in the cache."""
        held, idle = self._held, self._idle
        for key in keys:
            if key in held:
                held[key] += 1
            else:
                del idle[key]
                held[key] = 1

    def take(self, count: int) -> None:
        """Take `count` anonymous blocks, evicting idle ones when no empty one is left."""
        assert 0 <= count <= self.free
        evict = count - (self.free - len(self._idle))
        self._anonymous += count
        idle = self._idle
        for _ in range(evict):
            del idle[next(iter(idle))]

    def name(self, key: int) -> bool:
        """Give an anonymous block its key; False if another block has it, and this one stays anonymous."""
        assert self._anonymous > 0
        if key in self._held or key in self._idle:
            return False
        self._anonymous -= 1
        self._held[key] = 1
        return True

    def release(self, keys: Sequence[int], anonymous: int) -> None:
        """Give back a sequence's blocks: its keyed ones, in their order, and its anonymous ones."""
        assert 0 <= anonymous <= self._anonymous
        self._anonymous -= anonymous
        held, idle = self._held, self._idle
        for key in reversed(keys):
            references = held[key] - 1
            if references:
                held[key] = references
            else:
                del held[key]
                idle[key] = None

    def forget_idle(self) -> None:
        """Drop everything that no sequence references: an empty prefix cache."""
        self._idle.clear()

    def check(self) -> None:
        """What must always hold."""
        assert self._anonymous >= 0
        assert self.used + len(self._idle) <= self.total
        assert not self._held.keys() & self._idle.keys()
        assert all(references > 0 for references in self._held.values())
