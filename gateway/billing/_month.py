"""The month a bill is for."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from msgspec import Struct

from gateway.admission import period_at

_MONTH = re.compile(r"(\d{4})-(\d{2})")


class Month(Struct, frozen=True):
    """A calendar month in a time zone. Times are Unix seconds, the end is not included."""

    name: str
    time_zone: str
    start_s: int
    end_s: int


def parse_month(text: str, time_zone: str = "UTC") -> Month:
    """A month such as 2026-11, in an IANA time zone. Raises `ValueError`, and `KeyError` for a zone that is none."""
    match = _MONTH.fullmatch(text.strip())
    if match is None or not 1 <= int(match[2]) <= 12:
        raise ValueError(f"{text!r} is no month; write it as 2026-11")
    midst = datetime(int(match[1]), int(match[2]), 15, tzinfo=UTC)
    period = period_at("month", int(midst.timestamp()), time_zone)
    return Month(match[0], time_zone, period.start_s, period.end_s)
