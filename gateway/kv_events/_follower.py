"""What one model's replicas cache, block of bytes by block of bytes, as their events tell it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from ._bridge import Bridge
from ._cache import EngineCache, block_names
from ._decode import Cleared, Event
from ._stream import EventStream


class Index(Protocol):
    """Where it is known which replica holds what; `gateway.routing.PrefixIndex` is one."""

    def note(self, blocks: Sequence[int], name: str) -> None:
        """A replica holds these blocks."""

    def remove(self, blocks: Iterable[int], name: str) -> None:
        """A replica does not hold these blocks any more."""

    def forget(self, name: str) -> None:
        """A replica holds nothing."""


class Followed:
    """One replica whose events are read."""

    def __init__(self) -> None:
        self.stream = EventStream()
        self.cache = EngineCache()
        self.undecodable = 0


class Follower:
    """Corrects an index by what the engines tell. What a request is expected to bring is noted when it is sent; here is
    found what has been stored by anybody, what has been evicted, and what of an answered prompt is really there."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._bridges: defaultdict[int, Bridge] = defaultdict(Bridge)
        self.replicas: defaultdict[str, Followed] = defaultdict(Followed)

    def apply(self, replica: str, events: Iterable[Event]) -> None:
        """What a replica's engine has told, in its order."""
        followed = self.replicas[replica]
        for event in events:
            if isinstance(event, Cleared):
                followed.cache.clear()
                followed.stream.cleared()
                self.index.forget(replica)
                continue
            stored, removed = followed.cache.apply(event)
            bridge = self._bridges[followed.cache.block_size]
            if gone := bridge.bytes_of(removed):
                self.index.remove(gone, replica)
            if came := bridge.bytes_of(stored):
                self.index.note(came, replica)

    def reset(self, replica: str) -> None:
        """Its process is another one, with an empty cache."""
        followed = self.replicas[replica]
        followed.cache = EngineCache()
        followed.stream.reset()
        self.index.forget(replica)

    def learn(
        self, token_ids: Sequence[int], blocks: Sequence[int], text_bytes: int, block_bytes: int, *, salt: bytes = b""
    ) -> None:
        """An answered prompt has these tokens and these blocks of bytes; `salt` is what its first block depends on
        beside its tokens."""
        if not token_ids:
            return
        for size in {followed.cache.block_size for followed in self.replicas.values()} - {0}:
            names = block_names(token_ids, size, first_extra=salt)
            bridge = self._bridges[size]
            bridge.learn(names, blocks, size * text_bytes / len(token_ids) / block_bytes)
            for replica, followed in self.replicas.items():
                if followed.stream.trusted and followed.cache.block_size == size:
                    self._correct(replica, followed.cache, names, bridge)

    def _correct(self, replica: str, cache: EngineCache, names: Sequence[int], bridge: Bridge) -> None:
        depth = 0
        while depth < len(names) and names[depth] in cache:
            depth += 1
        if held := bridge.bytes_of(names[:depth]):
            self.index.note(held, replica)
        if gone := bridge.bytes_of(names[depth:]):
            self.index.remove(gone, replica)
