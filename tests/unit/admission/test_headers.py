"""Rate-limit headers in OpenAI's formats."""

from __future__ import annotations

import pytest

from gateway.admission import (
    Denial,
    Dimension,
    Grant,
    Lease,
    Note,
    Standing,
    go_duration,
    ratelimit_headers,
    soft_limit_headers,
)

LEASE = Lease(member="r|1|0|month:2026-10", tenant="acme", period="month:2026-10", tokens=0, nanousd=0, reserved_ms=0)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, b"0s"),
        (1, b"1ms"),
        (12, b"12ms"),
        (999, b"999ms"),
        (1000, b"1s"),
        (1001, b"2s"),
        (59_000, b"59s"),
        (60_000, b"1m0s"),
        (360_000, b"6m0s"),
        (3_599_001, b"1h0m0s"),
        (3_723_000, b"1h2m3s"),
    ],
)
def test_durations_are_gos_without_fractions(ms: int, text: bytes) -> None:
    """Durations parse with Go's time.ParseDuration and with `(\\d+)([hms]+)`."""
    assert go_duration(ms) == text


def test_a_grant_says_what_is_left_and_when_it_is_whole_again() -> None:
    """Limits, what remains of them, and the time until they are full."""
    standing = Standing(60, 59, 1000, 150_000, 149_984, 360_000)
    assert ratelimit_headers(Grant(LEASE, standing)) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
        (b"x-ratelimit-limit-tokens", b"150000"),
        (b"x-ratelimit-remaining-tokens", b"149984"),
        (b"x-ratelimit-reset-tokens", b"6m0s"),
    ]


def test_a_denial_carries_the_same_headers() -> None:
    """429 tells as much as 200."""
    standing = Standing(60, 0, 60_000, None, -1, -1)
    denial = Denial(
        dimension="requests_per_minute", limit=60, asked=1, remaining=0, retry_after_ms=1000, standing=standing
    )
    assert ratelimit_headers(denial) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"x-ratelimit-reset-requests", b"1m0s"),
    ]


def test_unlimited_says_nothing() -> None:
    """A tenant without rate limits gets no such headers."""
    assert ratelimit_headers(Grant(LEASE, Standing(None, -1, -1, None, -1, -1))) == []


def test_soft_limits_of_the_tenants_own_are_told_and_others_are_not() -> None:
    """Whose it is stands before it, unless it is the tenant's; an audited limit, a model's and the fleet's are not the
    client's to know."""

    def note(kind: str, scope: str, percent: int | None, dimension: Dimension = "usd_per_month") -> Note:
        return Note(kind=kind, of="x", scope=scope, dimension=dimension, limit=1, percent=percent)

    notes = [
        note("tenant", "", 83),
        note("key", "key acme-ci", 50, "tokens_per_day"),
        note("group", "group labs", 120),
        note("model", "model tiny", 99),
        note("fleet", "the fleet", 99),
        note("tenant", "", None),
    ]
    assert soft_limit_headers(notes) == [
        (b"x-mtok-soft-limit", b"usd_per_month 83%, key acme-ci tokens_per_day 50%, group labs usd_per_month 120%")
    ]
    assert soft_limit_headers(notes[3:]) == []
