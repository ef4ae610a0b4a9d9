"""Usage sums of a batch of events."""

from __future__ import annotations

from gateway.metering import UsageEvent, split_field, sum_field
from gateway.metering._sums import usage_sums
from gateway.wire import Usage

DAY_MS = 1_789_948_800_000


def event(
    ended_ms: int, *, model: str = "tiny", key: str = "ci", refused: str = "", estimated: bool = False
) -> UsageEvent:
    return UsageEvent(
        id="r",
        tenant="acme",
        key=key,
        model=model,
        endpoint="chat",
        status="refused" if refused else "client_gone",
        code=refused,
        usage=Usage(input_tokens=10, input_cached_tokens=4, output_tokens=3),
        estimated=estimated,
        cost_nanousd=7,
        arrived_ms=ended_ms,
        ended_ms=ended_ms,
    )


def test_a_batch_is_summed_before_it_is_sent() -> None:
    """Two events of one minute and model are one increment per metric and bucket size."""
    second = DAY_MS // 1000
    one = {
        "tiny|ci|requests": 2,
        "tiny|ci|input": 20,
        "tiny|ci|cached": 8,
        "tiny|ci|output": 6,
        "tiny|ci|cost_nanousd": 14,
        "tiny|ci|estimated": 1,
    }
    assert usage_sums([event(DAY_MS), event(DAY_MS + 59_999, estimated=True)]) == [
        ("1m", second, 604_800, one),
        ("1h", second, 10_368_000, one),
        ("1d", second, 0, one),
    ]


def test_an_event_counts_where_it_ended() -> None:
    """Events of two minutes share their hour; those of two hours share their day."""
    sums = usage_sums([event(DAY_MS + 59_999), event(DAY_MS + 60_000), event(DAY_MS + 3_600_000)])
    second = DAY_MS // 1000
    counts = [(size, start - second, fields["tiny|ci|requests"]) for size, start, _, fields in sums]
    assert counts == [
        ("1m", 0, 1),
        ("1m", 60, 1),
        ("1m", 3600, 1),
        ("1h", 0, 2),
        ("1h", 3600, 1),
        ("1d", 0, 3),
    ]


def test_refused_requests_count_by_code_and_nothing_else() -> None:
    """A refused request has no tokens and no cost, whatever its event says."""
    sums = usage_sums([event(DAY_MS, refused="rate_limit_exceeded"), event(DAY_MS, refused="insufficient_quota")])
    assert sums[2][3] == {"tiny|ci|refused:rate_limit_exceeded": 1, "tiny|ci|refused:insufficient_quota": 1}


def test_a_models_name_may_hold_anything() -> None:
    """Fields are read from the right, where names are ours."""
    assert split_field(sum_field("org/model|v2", "ci", "refused:x")) == ("org/model|v2", "ci", "refused:x")
