"""The fewest requests: for those who simulate a gateway and know of no prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import xxhash


class Busy(Protocol):
    """A replica that knows how many requests it has."""

    @property
    def name(self) -> str: ...

    @property
    def in_flight(self) -> int: ...


B = TypeVar("B", bound=Busy)


def least_loaded(block: int, targets: Sequence[B]) -> B:
    """The target with the fewest requests; of several the one that a prompt with that first block prefers."""
    least = min([target.in_flight for target in targets])
    tied = [target for target in targets if target.in_flight == least]
    if len(tied) == 1:
        return tied[0]
    return max(tied, key=lambda target: xxhash.xxh3_64_intdigest(target.name.encode(), block))
