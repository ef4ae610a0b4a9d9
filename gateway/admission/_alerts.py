"""When how much of a soft limit is used is worth telling somebody: at 50, 80 and 95 %, once a period. Pure.

Whether another worker has told it already is not known here: `Thresholds` says when it is time to ask.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import msgspec

from ._values import Dimension, Note
from ._words import unit_of

THRESHOLDS: Final = (50, 80, 95)
"""Percent used."""

RATE_TOLD_S: Final = 3600
"""A limit without a period, per minute or of what runs at once, is told of once an hour for each threshold."""
PERIOD_TOLD_S: Final = 600
"""Gateways' clocks may differ: what was told of a period is remembered so long after its end."""

ASK_AGAIN_MS: Final = 60_000
"""Telling may fail, and what was told is forgotten when its time is over: so often it is asked again."""
REMEMBERED_MAX: Final = 10_000


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What is told, and the JSON of it. `scope` is whose limit it is: tenant, key, group, model or fleet; `of` that is
    named. `tenant` is whose request it was. `limit` is requests, tokens or dollars; `at` is RFC 3339."""

    tenant: str
    scope: str
    of: str
    dimension: Dimension
    limit: int | Decimal
    percent: int
    threshold: int
    at: str


class Crossing(msgspec.Struct, frozen=True):
    """A threshold that was reached in `period` (`month:2026-10`; empty: the limit has none). Who tells of it has told
    of `told` too, lower ones and itself, for `kept_s` seconds."""

    alert: Alert
    period: str
    kept_s: int

    @property
    def told(self) -> tuple[int, ...]:
        return tuple(threshold for threshold in THRESHOLDS if threshold <= self.alert.threshold)


class Thresholds:
    """What one worker has asked about lately."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str, str, str], tuple[int, int]] = {}

    def crossed(self, tenant: str, note: Note, now_ms: int) -> Crossing | None:
        """The highest threshold that is reached, if it is time to ask whether anybody has told of it. `now_ms` is Unix
        time."""
        percent = note.percent
        if percent is None or percent < THRESHOLDS[0]:
            return None
        threshold = max(threshold for threshold in THRESHOLDS if threshold <= percent)
        name = (note.kind, note.of, note.dimension, note.period)
        asked, again_ms = self._asked.get(name, (0, 0))
        if threshold <= asked and now_ms < again_ms:
            return None
        if len(self._asked) >= REMEMBERED_MAX:
            self._asked = {name: asked for name, asked in self._asked.items() if now_ms < asked[1]}
        self._asked[name] = threshold, now_ms + ASK_AGAIN_MS
        alert = Alert(
            tenant=tenant,
            scope=note.kind,
            of=note.of,
            dimension=note.dimension,
            limit=Decimal(note.limit) / 10**9 if unit_of(note.dimension) == "nanousd" else note.limit,
            percent=percent,
            threshold=threshold,
            at=datetime.fromtimestamp(now_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        kept_s = max(0, note.resets_at_s - now_ms // 1000) + PERIOD_TOLD_S if note.period else RATE_TOLD_S
        return Crossing(alert, note.period, kept_s)
