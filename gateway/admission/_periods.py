"""Budget periods: hours, days and months of UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

PeriodKind = Literal["hour", "day", "month"]

_FORMATS = {"hour": "hour:%Y-%m-%dT%H", "day": "day:%Y-%m-%d", "month": "month:%Y-%m"}


class Period(msgspec.Struct, frozen=True):
    """One period: its name (`month:2026-10`), and `start_s` <= now < `end_s` in Unix seconds."""

    name: str
    start_s: int
    end_s: int


def period_at(kind: PeriodKind, now_s: int) -> Period:
    """The period of `kind` that `now_s` (Unix seconds) lies in."""
    now = datetime.fromtimestamp(now_s, UTC)
    start = now.replace(minute=0, second=0, microsecond=0)
    if kind == "hour":
        end = start + timedelta(hours=1)
    elif kind == "day":
        start = start.replace(hour=0)
        end = start + timedelta(days=1)
    else:
        start = start.replace(day=1, hour=0)
        end = (start + timedelta(days=31)).replace(day=1)
    return Period(start.strftime(_FORMATS[kind]), int(start.timestamp()), int(end.timestamp()))
