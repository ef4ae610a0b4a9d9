"""Refusals that come in floods: of those alike the first of each second are events of their own, and the others one
event that counts them. An event each would cost the disk, Redis and everybody's readers more than the flood itself.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ._event import UsageEvent

EACH_PER_S: Final = 100
"""Refusals alike that are events of their own: more than anybody looks at one by one."""
KINDS_MAX: Final = 10_000
"""Kinds of refusals that are told apart within a second; of more, each one is an event of its own."""


class _Flood:
    """`first` is the first one that is only counted, `last_ms` when the last of them came."""

    __slots__ = ("count", "each", "first", "last_ms")

    def __init__(self) -> None:
        self.each = 0
        self.count = 0
        self.first: UsageEvent | None = None
        self.last_ms = 0


class Floods:
    """One worker's. No clock: `due` is called about once a second."""

    def __init__(self) -> None:
        self._floods: dict[object, _Flood] = {}

    def counts(self, like: UsageEvent, request_id: str, now_ms: int) -> bool:
        """Whether the refusal of this request, which came at `now_ms` and is like `like`, is counted with others; if
        not, it is to be booked by itself. What refusals alike have in common is whose they are and what of, and the
        rule that refused them, not its numbers."""
        by = like.refused_by
        kind = (
            like.tenant,
            like.key,
            like.model,
            like.endpoint,
            like.code,
            like.user,
            tuple(like.tags.items()) if like.tags else (),
            like.policy,
            by and (by.dimension, by.scope),
        )
        flood = self._floods.get(kind)
        if flood is None:
            if len(self._floods) >= KINDS_MAX:
                return False
            flood = self._floods[kind] = _Flood()
        if flood.each < EACH_PER_S:
            flood.each += 1
            return False
        if flood.first is None:
            flood.first = like if like.id == request_id else replace(like, id=request_id, arrived_ms=now_ms)
        flood.count += 1
        flood.last_ms = now_ms
        return True

    def due(self) -> list[UsageEvent]:
        """The events of all that were counted since this was called last. The next ones are counted anew."""
        floods, self._floods = self._floods, {}
        return [
            replace(flood.first, count=flood.count, ended_ms=max(flood.first.ended_ms, flood.last_ms))
            for flood in floods.values()
            if flood.first is not None
        ]
