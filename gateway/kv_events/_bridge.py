"""From the blocks of tokens that engines cache to the blocks of bytes by which prompts are placed. Pure.

A prompt that has been answered is tokenised, once and with time: then it is known which blocks of tokens its blocks of
bytes lie in. Where none of a prompt's tokens says at which byte it ends, its bytes are taken to be spread evenly.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_BLOCKS = 131_072
"""Blocks of tokens that are known, in each of two generations: some 30 MB at most."""


class Bridge:
    """For one model and size of engines' blocks."""

    def __init__(self) -> None:
        self._bytes_of: dict[int, tuple[int, ...]] = {}
        self._bytes_of_before: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._bytes_of) + len(self._bytes_of_before)

    def learn(self, names: Sequence[int], blocks: Sequence[int], blocks_each: float) -> None:
        """A prompt of these blocks of tokens and these of bytes; so many of the latter lie within each of the former,
        on average."""
        if len(self._bytes_of) + len(names) > MOST_BLOCKS:
            self._bytes_of, self._bytes_of_before = {}, self._bytes_of
        begin = 0
        for number, name in enumerate(names, 1):
            end = min(len(blocks), int(number * blocks_each))
            if name not in self._bytes_of:
                self._bytes_of[name] = tuple(blocks[begin:end])
            begin = max(begin, end)

    def bytes_of(self, names: Sequence[int]) -> list[int]:
        """The blocks of bytes that lie in these blocks of tokens and are known, in their order."""
        found: list[int] = []
        known, before = self._bytes_of, self._bytes_of_before
        for name in names:
            blocks = known.get(name)
            if blocks is None:
                blocks = before.get(name, ())
            found += blocks
        return found
