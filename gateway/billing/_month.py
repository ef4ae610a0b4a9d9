"""The month a bill is for."""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo

from msgspec import Struct

_MONTH = re.compile(r"(\d{4})-(\d{2})")


class Month(Struct, frozen=True):
    """A calendar month in a time zone. Times are Unix seconds, the end is not included."""

    name: str
    time_zone: str
    start_s: int
    end_s: int


def parse_month(text: str, time_zone: str = "UTC") -> Month:
    """A month such as 2026-11, in an IANA time zone. Raises `ValueError`."""
    match = _MONTH.fullmatch(text.strip())
    if match is None or not 1 <= int(match[2]) <= 12:
        raise ValueError(f"{text!r} is no month; write it as 2026-11")
    year, month = int(match[1]), int(match[2])
    zone = ZoneInfo(time_zone)
    start = datetime(year, month, 1, tzinfo=zone)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=zone)
    return Month(match[0], time_zone, int(start.timestamp()), int(end.timestamp()))
