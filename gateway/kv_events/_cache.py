"""One engine's cache as its events tell it, in names of our own. Pure.

Engines name a block by a hash that depends on their process and options. So the tokens that come with it are hashed
here, each block with its predecessor, and the engine's name is kept only to know which block goes: the same prompt has
the same names at every replica.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from ._decode import Cleared, Event, Hash, Removed, Stored

ROOT = 0x6B76
"""What a first block comes after."""


def block_names(
    token_ids: Sequence[int], block_size: int, *, first_extra: bytes = b"", extra: bytes = b""
) -> list[int]:
    """The names of the whole blocks of a prompt. `extra` is what each block depends on beside its tokens, and
    `first_extra` what the first one does: a salt is only in that."""
    name = ROOT
    names: list[int] = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        name = _name(name, token_ids[start : start + block_size], extra if start else first_extra or extra)
        names.append(name)
    return names


def _name(before: int, token_ids: Sequence[int], extra: bytes) -> int:
    return xxhash.xxh3_64_intdigest(array("q", token_ids).tobytes() + extra, before)


class Change(NamedTuple):
    """What one event has changed: blocks that are there now, with those before them, and blocks that are not."""

    stored: list[int]
    removed: list[int]


class EngineCache:
    """The blocks of one engine that are contiguous with a prompt's beginning."""

    def __init__(self) -> None:
        self._names: dict[Hash, int] = {}
        self._held: dict[int, int] = {}
        self._other_groups: set[int] = set()
        self.block_size = 0
        """Of the last block it stored; 0 before."""
        self.orphans = 0
        """Blocks that were stored after one that nobody has told of."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: int) -> bool:
        return name in self._held

    def apply(self, event: Event) -> Change:
        """Takes note of an event."""
        match event:
            case Stored():
                return Change(self._store(event), [])
            case Removed():
                return Change([], self._remove(event))
            case Cleared():
                return Change([], self.clear())

    def clear(self) -> list[int]:
        """Nothing is there any more; returns what was."""
        removed = list(self._held)
        self._names.clear()
        self._held.clear()
        return removed

    def _store(self, event: Stored) -> list[int]:
        if not event.whole:
            self._other_groups.add(event.group)
            return []
        name = ROOT if event.parent is None else self._names.get(event.parent, 0)
        if not name:
            self.orphans += len(event.hashes)
            return []
        size = self.block_size = event.block_size
        stored: list[int] = []
        for number, engine_hash in enumerate(event.hashes):
            token_ids = event.token_ids[number * size : (number + 1) * size]
            name = _name(name, token_ids, event.extra[number])
            if engine_hash not in self._names:
                self._names[engine_hash] = name
                self._held[name] = self._held.get(name, 0) + 1
            stored.append(name)
        return stored

    def _remove(self, event: Removed) -> list[int]:
        if event.group in self._other_groups:
            return []
        removed: list[int] = []
        for engine_hash in event.hashes:
            name = self._names.pop(engine_hash, 0)
            if not name:
                continue
            count = self._held[name] - 1
            if count:
                self._held[name] = count
            else:
                del self._held[name]
                removed.append(name)
        return removed
