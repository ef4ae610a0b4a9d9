"""What one gateway tells the others that use the same replicas: which prompts went where, and what it has in flight.

Gateways agree on where an unseen prefix goes without talking. What they cannot know of each other is where a prompt
went instead, because of a load, a heat or a failure that only one of them saw, and how far a conversation has come that
each of its turns carries to another gateway. A block has one predecessor, so a prompt is told by the deepest of its
blocks that has been told before, by whomever, and those after it: a turn costs the text that it added.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from sys import byteorder

from msgspec import Struct, msgpack

MOST_BLOCKS = 1024
"""In one telling: 8 KiB. Three tellings a second tell of 780 kB of new prompts."""
MOST_PENDING = 16_384
"""Blocks that wait to be told; beyond that the oldest are not told at all. 1 MB."""
MOST_CAME = 4096
"""Prompts that may come between two tellings."""
MOST_TOLD = 65_536
"""Blocks whose predecessors are remembered, in each of two generations: at most some 20 MB."""
TOLD_MS = 150_000
"""A prompt in use is told from its beginning again about so often, by one gateway, so that whoever starts finds whole
conversations in what is kept."""
AGAIN_MS = 400
"""A load that does not change is told again so often: it is believed for half a second."""

_BEGINNING = 0
"""What a prompt's first block comes after."""

Place = tuple[str, str]
"""A model and a replica of it."""


class Placed(Struct, frozen=True, array_like=True):
    """Prompts that went to one replica, in their order. `epoch` is when its process began, in Unix milliseconds, 0
    where that is not known. Each prompt is a block that has been told before, 0 for none, and those that come after it:
    8 bytes each, little-endian."""

    model: str
    replica: str
    epoch: int
    prompts: list[bytes]


class Held(Struct, frozen=True, array_like=True):
    """What a gateway has in flight at one replica: work that has not come to its first token, in tokens of a short
    prompt, and requests."""

    replica: str
    waiting_tokens: int
    running: int


pack_placed = msgpack.Encoder().encode
pack_held = msgpack.Encoder().encode
_placed = msgpack.Decoder(list[Placed]).decode
_held = msgpack.Decoder(list[Held]).decode


def read_placed(told: bytes) -> list[Placed]:
    """Raises `msgspec.DecodeError`: another version's."""
    return _placed(told)


def read_held(told: bytes) -> list[Held]:
    """Raises `msgspec.DecodeError`: another version's."""
    return _held(told)


class PlacementNews:
    """What the others have not been told of yet, and what they told. Pure: `now_ms` is any clock that does not go back.

    `_before` holds each block's predecessor, of a generation of blocks that have been told; `_told` the deepest blocks
    that each replica was told to have. What comes is only put down; what of it is news is found when it is told.
    """

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        self._before_that: dict[int, int] = {}
        self._told: dict[Place, set[int]] = {}
        self._since_ms: int | None = None
        self._came: list[tuple[Place, Sequence[int]]] = []
        self._pending: dict[Place, list[bytes]] = {}
        self._pending_blocks = 0
        self.dropped_blocks = 0
        """That were never told, since there were too many."""

    @property
    def has_news(self) -> bool:
        return bool(self._came or self._pending)

    def placed(self, model: str, replica: str, blocks: Sequence[int]) -> None:
        """This gateway has sent a prompt of these blocks there."""
        if len(self._came) < MOST_CAME:
            self._came.append(((model, replica), blocks))
        else:
            self.dropped_blocks += len(blocks)

    def _find_news(self, place: Place, blocks: Sequence[int]) -> None:
        before, deepest = self._before, blocks[-1]
        depth = len(blocks)
        while depth and blocks[depth - 1] not in before:
            depth -= 1
        told = self._told.setdefault(place, set())
        if depth == len(blocks) and deepest in told:
            return
        told.add(deepest)
        last = blocks[depth - 1] if depth else _BEGINNING
        prompt = [last, *blocks[depth:]]
        before.update(zip(blocks[depth:], prompt, strict=False))
        self._pending.setdefault(place, []).append(_packed(prompt))
        self._pending_blocks += len(prompt)

    def heard(self, placed: Placed, now_ms: int) -> list[list[int]]:
        """The blocks of each prompt that another gateway tells of, as far back as they are known."""
        self._turn(now_ms)
        before, before_that = self._before, self._before_that
        told = self._told.setdefault((placed.model, placed.replica), set())
        prompts: list[list[int]] = []
        for packed in placed.prompts:
            last, *blocks = _unpacked(packed)
            before.update(zip(blocks, [last, *blocks], strict=False))
            blocks.reverse()
            while last != _BEGINNING and len(blocks) < MOST_TOLD:  # what others say may be anything, a circle too
                blocks.append(last)
                earlier = before.get(last)
                if earlier is None:
                    earlier = before_that.get(last, _BEGINNING)
                last = earlier
            if blocks:
                told.add(blocks[0])
                blocks.reverse()
                prompts.append(blocks)
        return prompts

    def take(self, epoch: Callable[[str], int], now_ms: int) -> list[Placed]:
        """What to tell now, about `MOST_BLOCKS`; more may be left. `epoch` tells when a replica's process began."""
        self._turn(now_ms)
        for place, blocks in self._came:
            self._find_news(place, blocks)
        self._came.clear()
        self._bound()
        taken: list[Placed] = []
        left = MOST_BLOCKS
        while self._pending and left > 0:
            place = next(iter(self._pending))
            waiting = self._pending[place]
            count = 0
            while count < len(waiting) and left > 0:
                left -= len(waiting[count]) // 8
                count += 1
            taken.append(Placed(*place, epoch(place[1]), self._remove(place, count)))
        return taken

    def not_told(self, taken: Iterable[Placed]) -> None:
        """It could not be told: again before what came since."""
        returned: dict[Place, list[bytes]] = {}
        for placed in taken:
            returned.setdefault((placed.model, placed.replica), []).extend(placed.prompts)
            self._pending_blocks += sum(map(len, placed.prompts)) // 8
        for place, waiting in self._pending.items():
            returned.setdefault(place, []).extend(waiting)
        self._pending = returned
        self._bound()

    def forget(self, replica: str) -> None:
        """Its engine has started anew: what was told of it is no longer true, and what comes is news."""
        self._came = [came for came in self._came if came[0][1] != replica]
        for place in [place for place in self._told if place[1] == replica]:
            del self._told[place]
        for place in [place for place in self._pending if place[1] == replica]:
            self._remove(place, len(self._pending[place]))

    def _turn(self, now_ms: int) -> None:
        if self._since_ms is None:
            self._since_ms = now_ms
        if len(self._before) >= MOST_TOLD or now_ms - self._since_ms >= TOLD_MS:
            self._before, self._before_that, self._told = {}, self._before, {}
            self._since_ms = now_ms

    def _bound(self) -> None:
        while self._pending_blocks > MOST_PENDING:
            [dropped] = self._remove(next(iter(self._pending)), 1)
            self.dropped_blocks += len(dropped) // 8

    def _remove(self, place: Place, count: int) -> list[bytes]:
        waiting = self._pending[place]
        removed = waiting[:count]
        del waiting[:count]
        if not waiting:
            del self._pending[place]
        self._pending_blocks -= sum(map(len, removed)) // 8
        return removed


class LoadNews:
    """When to tell the others what this gateway has in flight. Pure: `now_ms` is any clock that does not go back."""

    def __init__(self) -> None:
        self._told: list[Held] = []
        self._told_ms = -AGAIN_MS

    def take(self, held: list[Held], now_ms: int) -> list[Held] | None:
        """What to tell: all of it, an empty list once nothing is in flight any more; None: they know."""
        if held == self._told and (not held or now_ms - self._told_ms < AGAIN_MS):
            return None
        self._told, self._told_ms = held, now_ms
        return held

    def not_told(self) -> None:
        """It could not be told."""
        self._told_ms = -AGAIN_MS


def _packed(blocks: Sequence[int]) -> bytes:
    packed = array("Q", blocks)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpacked(packed: bytes) -> list[int]:
    """At least one."""
    read = array("Q", packed[: len(packed) & ~7] or bytes(8))
    if byteorder == "big":
        read.byteswap()
    return read.tolist()
