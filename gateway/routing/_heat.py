"""How large a share of the requests has which prefix: measured, with decay, on a fourth of them.

A prefix of which many requests have the beginning is counted block by block, so its length and that of what follows it
in some of them are told apart; of one that few have only the first block is.
"""

from __future__ import annotations

from collections.abc import Sequence

EVERY = 4
"""Of the requests one in so many is counted, a power of 2; which ones no pattern in them decides."""
WINDOW = 128
"""Counted requests of a generation; the one before it counts too, so what was hot is not after some 1,000 requests."""
LEAST = 16
"""Nothing is hot before so many have been counted."""
LEAST_SHARE = 1 / 64
"""A prefix of less is not followed further."""


class Heat:
    """Shares of the requests of the last while."""

    __slots__ = ("_before", "_before_counted", "_counted", "_now", "_random")

    def __init__(self) -> None:
        self._now: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._counted = self._before_counted = 0
        self._random = 0

    def count(self, blocks: Sequence[int]) -> None:
        """One request."""
        self._random = random = (self._random * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        if random >> 32 & EVERY - 1:
            return
        if self._counted >= WINDOW:
            self._before, self._before_counted = self._now, self._counted
            self._now, self._counted = {}, 0
        self._counted += 1
        now, before = self._now, self._before
        least = LEAST_SHARE * (self._counted + self._before_counted)
        for block in blocks:
            count = now[block] = now.get(block, 0) + 1
            if count + before.get(block, 0) <= least:
                break

    def share(self, block: int) -> float:
        """Of the requests, those with the prefix that ends with this block."""
        counted = self._counted + self._before_counted
        if counted < LEAST:
            return 0.0
        return (self._now.get(block, 0) + self._before.get(block, 0)) / counted

    def depth(self, blocks: Sequence[int], share: float) -> int:
        """How many leading blocks more than this share of the requests have."""
        counted = self._counted + self._before_counted
        now, before, least = self._now.get, self._before.get, share * counted
        if counted < LEAST or now(blocks[0], 0) + before(blocks[0], 0) <= least:
            return 0
        low, high = 1, len(blocks)
        while low < high:
            middle = (low + high + 1) // 2
            block = blocks[middle - 1]
            if now(block, 0) + before(block, 0) > least:
                low = middle
            else:
                high = middle - 1
        return low
