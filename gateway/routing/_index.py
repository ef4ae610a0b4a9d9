"""Which replica holds which blocks: one table for all replicas of a model, forgotten replica by replica.

A block has one integer, in which a bit stands for a generation of a replica's blocks: one look-up tells all replicas
that hold it. Whoever holds a block holds those before it, so the depths at which the holders change are found by
halving, in some ten look-ups whatever the prompt's length. A replica's least recently used blocks go a generation at a
time, when it holds more than its engine can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

CAPACITY_BLOCKS = 16_384
"""Of a replica that does not say how much it caches: about a million tokens."""
GENERATIONS = 4
"""Of a replica's blocks: so much of them is forgotten at once, in some 0.1 µs a block."""
MASKS_MAX = 4096

Steps = Sequence[tuple[int, int]]
"""Depths, deepest first, each with the holders of the prefix of so many blocks."""


class _Generation:
    """Blocks that a replica has used since a moment: `new` were not held before, `unknown` nobody can name."""

    __slots__ = ("bit", "blocks", "new", "unknown")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.blocks: list[int] = []
        self.new = 0
        self.unknown = 0


class Held:
    """A replica's blocks. `mask` has the bits of all its generations, oldest first; `count` are different blocks."""

    __slots__ = ("capacity", "count", "generations", "mask", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.capacity = CAPACITY_BLOCKS
        self.count = 0
        self.generations: list[_Generation] = []
        self.mask = 0


class PrefixIndex:
    """About 110 bytes a block: see `docs/routing.md`."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._replicas: dict[str, Held] = {}
        self._free_bits: list[int] = []
        self._bits = 0
        self._by_bit: dict[int, Held] = {}
        self._masks: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def of(self, name: str) -> Held:
        """A replica's blocks; the same object for as long as this lives."""
        held = self._replicas.get(name)
        if held is None:
            held = self._replicas[name] = Held(name)
        return held

    def resize(self, name: str, blocks: int) -> None:
        """A replica's engine caches so many."""
        held = self.of(name)
        held.capacity = max(GENERATIONS, blocks)
        self._bound(held)

    def holders(self, mask: int) -> list[str]:
        """Whose bits these are; who has several comes as often."""
        names = []
        while mask:
            bit = mask & -mask
            names.append(self._by_bit[bit].name)
            mask ^= bit
        return names

    def steps(self, blocks: Sequence[int]) -> Steps:
        """Who holds how much of a chain."""
        get = self._holders.get
        first = get(blocks[0], 0)
        if not first:
            return ()
        count = len(blocks)
        last = get(blocks[-1], 0) if count > 1 else first
        steps = [(count, last)] if last else []
        todo = [(1, first, count, last)]
        while todo:
            low, of_low, high, of_high = todo.pop()
            if of_low == of_high:
                continue
            if high - low == 1:
                steps.append((low, of_low))
                continue
            middle = (low + high) // 2
            of_middle = get(blocks[middle - 1], 0)
            todo.append((low, of_low, middle, of_middle))
            todo.append((middle, of_middle, high, of_high))
        return steps

    def note(self, blocks: Sequence[int], name: str, *, known: int | None = None, unknown: int = 0) -> None:
        """A replica has used all of these blocks, one after the other, just now, and so many more that nobody can name.

        `known` is how many of the blocks anybody holds, as `steps` told; None: it is looked up.
        """
        held = self.of(name)
        if not held.generations or held.generations[-1].new * GENERATIONS >= held.capacity:
            self._begin(held)
        young, before = held.generations[-1], held.count
        if known is None:
            steps = self.steps(blocks) if blocks else ()
            known = steps[0][0] if steps else 0
        if known:
            news = self._touch(blocks, known, held, young.bit)
        else:
            self._holders.update(dict.fromkeys(blocks, young.bit))
            news = blocks
        young.blocks += news
        held.count += (len(blocks) - known) + unknown
        young.unknown += unknown
        young.new += held.count - before
        self._bound(held)

    def remove(self, blocks: Iterable[int], name: str) -> None:
        """A replica does not hold these blocks any more."""
        held = self.of(name)
        mask, holders, masks = held.mask, self._holders, self._masks
        for block in blocks:
            of = holders.get(block, 0)
            if not of & mask:
                continue
            held.count -= 1
            left = of & ~mask
            if left:
                holders[block] = masks.setdefault(left, left)
            else:
                del holders[block]

    def _touch(self, blocks: Sequence[int], known: int, held: Held, bit: int) -> Sequence[int]:
        """Marks all of them, and returns those that were not marked yet."""
        holders, masks, mask = self._holders, self._masks, held.mask
        get = holders.get
        start = _first_without(blocks, get, bit)
        for block in blocks[start:known]:
            others = get(block, 0)
            held.count += not others & mask
            with_bit = others | bit
            holders[block] = masks.setdefault(with_bit, with_bit)
        if len(masks) > MASKS_MAX:
            masks.clear()
        holders.update(dict.fromkeys(blocks[known:], bit))
        return blocks[start:] if start else blocks

    def forget(self, name: str) -> None:
        """A replica holds nothing any more."""
        held = self._replicas.get(name)
        while held is not None and held.generations:
            self._drop_oldest(held)

    def forget_oldest(self, name: str) -> None:
        """A replica holds less than was thought: not what it used longest ago."""
        held = self._replicas.get(name)
        if held is not None and held.generations:
            self._drop_oldest(held)

    def _begin(self, held: Held) -> None:
        if len(held.generations) == GENERATIONS:
            self._drop_oldest(held)
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit, self._bits = 1 << self._bits, self._bits + 1
        held.generations.append(_Generation(bit))
        held.mask |= bit
        self._by_bit[bit] = held

    def _bound(self, held: Held) -> None:
        while held.count > held.capacity and len(held.generations) > 1:
            self._drop_oldest(held)

    def _drop_oldest(self, held: Held) -> None:
        oldest = held.generations.pop(0)
        bit, holders, masks = oldest.bit, self._holders, self._masks
        held.mask &= ~bit
        held.count -= oldest.unknown
        mask = held.mask
        for block in oldest.blocks:
            marks = holders.get(block, 0)
            if not marks & bit:  # removed since, or after a gap in what was told
                continue
            left = marks & ~bit
            if left:
                holders[block] = masks.setdefault(left, left)
            else:
                del holders[block]
            if not left & mask:
                held.count -= 1
        if not held.generations:
            held.count = 0
        self._free_bits.append(bit)
        del self._by_bit[bit]


def depth_of(mask: int, steps: Steps) -> int:
    """How many leading blocks the replica with these bits holds."""
    for depth, holders in steps:
        if holders & mask:
            return depth
    return 0


def _first_without(blocks: Sequence[int], get: Callable[[int, int], int], bit: int) -> int:
    """How many of them, from the first on, have this bit; it is on none after one that has it not."""
    low, high = 0, len(blocks)
    while low < high:
        middle = (low + high) // 2
        if get(blocks[middle], 0) & bit:
            low = middle + 1
        else:
            high = middle
    return low
