"""Budget periods and money as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import Period, PeriodKind, period_at, usd


@pytest.mark.parametrize(
    ("kind", "now_s", "period"),
    [
        ("hour", 1_790_000_000, Period("hour:2026-09-21T14", 1_789_999_200, 1_790_002_800)),
        ("day", 1_790_000_000, Period("day:2026-09-21", 1_789_948_800, 1_790_035_200)),
        ("month", 1_790_000_000, Period("month:2026-09", 1_788_220_800, 1_790_812_800)),
        ("month", 1_798_761_599, Period("month:2026-12", 1_796_083_200, 1_798_761_600)),
        ("month", 1_835_395_200, Period("month:2028-02", 1_832_976_000, 1_835_481_600)),
    ],
)
def test_periods_are_utcs(kind: PeriodKind, now_s: int, period: Period) -> None:
    """Hours, days and months of UTC, leap years and the year's end included."""
    assert period_at(kind, now_s) == period


ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "Asia/Beirut",
]


@given(st.sampled_from(["hour", "day", "month"]), st.integers(1_700_000_000, 4_000_000_000), st.sampled_from(ZONES))
def test_periods_follow_each_other_without_gaps(kind: PeriodKind, now_s: int, zone: str) -> None:
    """Each moment lies in one period, and the next period begins where that one ends, whatever the clocks do."""
    period = period_at(kind, now_s, zone)
    assert period.start_s <= now_s < period.end_s
    after = period_at(kind, period.end_s, zone)
    assert (after.start_s, after.name != period.name) == (period.end_s, True)
    assert period_at(kind, period.end_s - 1, zone) == period


@pytest.mark.parametrize(
    ("kind", "now_s", "period"),
    [
        ("month", 1_790_805_600, Period("month:2026-10", 1_790_805_600, 1_793_487_600)),
        ("month", 1_790_805_599, Period("month:2026-09", 1_788_213_600, 1_790_805_600)),
        ("day", 1_792_880_000, Period("day:2026-10-25", 1_792_879_200, 1_792_969_200)),
        ("hour", 1_790_000_000, Period("hour:2026-09-21T14", 1_789_999_200, 1_790_002_800)),
    ],
)
def test_days_and_months_begin_at_the_tenants_midnight(kind: PeriodKind, now_s: int, period: Period) -> None:
    """In Berlin October begins at 22:00 UTC, and its last Sunday has 25 hours; hours are the same everywhere."""
    assert period_at(kind, now_s, "Europe/Berlin") == period


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (123_456, "0.000123456"),
        (500_000_000, "0.50"),
        (12_345_678_901, "12.345678901"),
        (-1_500_000_000, "-1.50"),
        (2**63, "9223372036.854775808"),
    ],
)
def test_money_is_written_exactly(nanousd: int, text: str) -> None:
    """As many decimals as it takes, at least two, and no float in between."""
    assert usd(nanousd) == text
