"""When the use of a soft limit is told."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.admission import Alert, Dimension, Note, Thresholds
from gateway.admission import _alerts as alerts

T0_MS = 1_790_000_000_000
"""2026-09-21T14:13:20Z."""
MONTH_ENDS_S = 1_790_812_800
MINUTE_MS = 60_000


def note(percent: int | None, *, of: str = "acme", dimension: Dimension = "usd_per_month", **changes: object) -> Note:
    period = {"period": "month:2026-09", "resets_at_s": MONTH_ENDS_S} if dimension == "usd_per_month" else {}
    told = {"kind": "tenant", "of": of, "scope": "", "dimension": dimension, "limit": 50_500_000_000}
    return Note(**{**told, "percent": percent, **period, **changes})  # type: ignore[arg-type]


def told(thresholds: Thresholds, of: Note, now_ms: int = T0_MS) -> int | None:
    """The threshold that is asked about."""
    crossing = thresholds.crossed("acme", of, now_ms)
    return None if crossing is None else crossing.alert.threshold


@pytest.mark.parametrize(
    ("percent", "threshold"),
    [(None, None), (49, None), (50, 50), (79, 50), (80, 80), (94, 80), (95, 95), (100, 95), (1_000_000, 95)],
)
def test_the_highest_threshold_that_is_reached_is_told(percent: int | None, threshold: int | None) -> None:
    """None of an audited limit, nor of one that is used by less than half."""
    assert told(Thresholds(), note(percent)) == threshold


def test_an_alert_says_whose_limit_it_is_how_much_is_used_and_when() -> None:
    crossing = Thresholds().crossed("acme", note(83, kind="group", of="research", scope="group research"), T0_MS)
    assert crossing is not None
    assert crossing.alert == Alert(
        tenant="acme",
        scope="group",
        of="research",
        dimension="usd_per_month",
        limit=Decimal("50.5"),
        percent=83,
        threshold=80,
        at="2026-09-21T14:13:20Z",
    )
    assert crossing.told == (50, 80), "who is told of 80 % need not be told of 50 % any more"
    assert (crossing.period, crossing.kept_s) == ("month:2026-09", MONTH_ENDS_S - T0_MS // 1000 + 600)


def test_a_limit_per_minute_is_told_once_an_hour() -> None:
    crossing = Thresholds().crossed("acme", note(50, dimension="requests_per_minute", limit=600), T0_MS)
    assert crossing is not None
    assert (crossing.alert.limit, crossing.period, crossing.kept_s) == (600, "", 3600)


def test_it_asks_once_a_minute_and_at_once_when_more_is_used() -> None:
    thresholds = Thresholds()
    assert told(thresholds, note(50)) == 50
    assert told(thresholds, note(79)) is None
    assert told(thresholds, note(80)) == 80
    assert told(thresholds, note(60)) is None, "that was told with 80 %"
    assert told(thresholds, note(81), T0_MS + MINUTE_MS - 1) is None
    assert told(thresholds, note(81), T0_MS + MINUTE_MS) == 80


def test_each_limit_and_each_period_is_told_by_itself() -> None:
    thresholds = Thresholds()
    assert told(thresholds, note(95)) == 95
    assert told(thresholds, note(50, of="rival")) == 50
    assert told(thresholds, note(50, kind="key")) == 50
    assert told(thresholds, note(50, dimension="requests_per_minute")) == 50
    assert told(thresholds, note(50, period="month:2026-10", resets_at_s=MONTH_ENDS_S + 30 * 86_400)) == 50


def test_what_was_asked_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys and periods there are, no more is kept than was asked in the last minute."""
    monkeypatch.setattr(alerts, "REMEMBERED_MAX", 10)
    thresholds = Thresholds()
    for number in range(100):
        told(thresholds, note(50, of=f"t{number}"), T0_MS + number * MINUTE_MS)
        assert len(thresholds._asked) <= 10
