"""Budget periods: hours of UTC, days and months of UTC or of a tenant's time zone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

PeriodKind = Literal["hour", "day", "month"]

_FORMATS = {"hour": "hour:%Y-%m-%dT%H", "day": "day:%Y-%m-%d", "month": "month:%Y-%m"}


class Period(msgspec.Struct, frozen=True):
    """One period: its name (`month:2026-10`), and `start_s` <= now < `end_s` in Unix seconds."""

    name: str
    start_s: int
    end_s: int


def period_at(kind: PeriodKind, now_s: int, time_zone: str = "UTC") -> Period:
    """The period of `kind` that `now_s` (Unix seconds) lies in; days and months begin at midnight in `time_zone`, an
    IANA name. Hours are UTC's everywhere: a zone that puts its clock back has one hour twice.

    Days are longer or shorter where the clock is changed. Raises `KeyError` for a zone that does not exist.
    """
    now = datetime.fromtimestamp(now_s, ZoneInfo("UTC" if kind == "hour" else time_zone))
    start = now.replace(minute=0, second=0, microsecond=0)
    if kind == "hour":
        end = start + timedelta(hours=1)
    elif kind == "day":
        start = start.replace(hour=0, fold=0)
        end = start + timedelta(days=1)
    else:
        start = start.replace(day=1, hour=0, fold=0)
        end = (start + timedelta(days=31)).replace(day=1)
    return Period(start.strftime(_FORMATS[kind]), int(start.timestamp()), int(end.timestamp()))
