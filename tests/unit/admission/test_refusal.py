"""What a client reads when a limit refuses it."""

from __future__ import annotations

import pytest

from gateway.admission import Denial, Dimension, Standing, refusal

STANDING = Standing(None, -1, -1, None, -1, -1)
OCTOBER = {"period": "month:2026-10", "resets_at_s": 1_793_491_200}  # 2026-11-01T00:00:00Z


def denial(dimension: Dimension, **values: object) -> Denial:
    return Denial(dimension=dimension, standing=STANDING, **values)  # type: ignore[arg-type]


def test_requests_per_minute() -> None:
    """429 with the limit, what is left, when to come again and what to change."""
    refused = refusal(denial("requests_per_minute", limit=60, asked=1, remaining=0, retry_after_ms=1500))
    assert (refused.status, refused.code, refused.error_type()) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert refused.message == (
        "Rate limit reached: 60 requests per minute, 0 left. Try again in 2 s. "
        "Send requests more slowly or ask for a higher limit."
    )
    assert refused.headers() == [(b"retry-after", b"2"), (b"retry-after-ms", b"1500")]


def test_tokens_per_minute() -> None:
    """The message says how many tokens the request may use and how many are left."""
    refused = refusal(denial("tokens_per_minute", limit=1000, asked=800, remaining=300, retry_after_ms=30_000))
    assert refused.code == "rate_limit_exceeded"
    assert refused.message.startswith(
        "Rate limit reached: 1000 tokens per minute, 300 left, and this request may use up to 800"
    )
    assert "lower max_tokens" in refused.message
    assert refused.headers() == [(b"retry-after", b"30"), (b"retry-after-ms", b"30000")]


def test_a_long_wait_is_not_worth_the_sdks_retries() -> None:
    """A debt of more than a minute is told with its time, and with `x-should-retry: false`."""
    refused = refusal(denial("tokens_per_minute", limit=10, asked=5, remaining=0, retry_after_ms=60_001))
    assert refused.headers() == [
        (b"retry-after", b"61"),
        (b"retry-after-ms", b"60001"),
        (b"x-should-retry", b"false"),
    ]


def test_a_request_larger_than_the_limit_itself() -> None:
    """Waiting cannot help, so there is no Retry-After."""
    refused = refusal(denial("tokens_per_minute", limit=1000, asked=1001, remaining=1000, retry_after_ms=None))
    assert refused.message.startswith("Request too large: it may use up to 1001 tokens")
    assert refused.headers() == [(b"x-should-retry", b"false")]


def test_concurrent_requests() -> None:
    """The message names the limit; the wait is a guess and short."""
    refused = refusal(denial("concurrent_requests", limit=1, asked=1, remaining=0, retry_after_ms=1000))
    assert refused.message.startswith("Too many requests at once: 1 request may run at the same time")
    assert refused.headers() == [(b"retry-after", b"1"), (b"retry-after-ms", b"1000")]


def test_a_spent_budget() -> None:
    """OpenAI's insufficient_quota, not to be retried, with the end of the period in words only."""
    refused = refusal(
        denial(
            "budget_usd",
            limit=50 * 10**9,
            asked=10**6,
            remaining=0,
            retry_after_ms=None,
            spent_nanousd=50 * 10**9,
            **OCTOBER,
        )
    )
    assert (refused.status, refused.code, refused.error_type()) == (429, "insufficient_quota", "insufficient_quota")
    assert refused.message == (
        "You have used up the budget of $50.00 for this month. It resets at 2026-11-01 00:00 UTC; "
        "ask for a higher budget to go on before."
    )
    assert refused.headers() == [(b"x-should-retry", b"false")]


def test_a_request_that_costs_more_than_is_left() -> None:
    """Some money is left, but not enough for what the request may cost: say both and what to change."""
    refused = refusal(
        denial(
            "budget_usd",
            limit=10**9,
            asked=3 * 10**8,
            remaining=0,
            retry_after_ms=None,
            spent_nanousd=8 * 10**8,
            reserved_nanousd=2 * 10**8,
            **OCTOBER,
        )
    )
    assert refused.code == "insufficient_quota"
    assert "$0.80 of the budget of $1.00 for this month is spent and $0.20 is left" in refused.message
    assert "Lower max_tokens" in refused.message
    assert refused.retry_after_ms is None


def test_a_budget_that_is_only_reserved() -> None:
    """Money that running requests hold may come back: wait shortly, and it is not called spent."""
    refused = refusal(
        denial(
            "budget_usd",
            limit=10**9,
            asked=3 * 10**8,
            remaining=10**8,
            retry_after_ms=1000,
            spent_nanousd=10**8,
            reserved_nanousd=8 * 10**8,
            **OCTOBER,
        )
    )
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert "$0.10 is spent and $0.80 is reserved, not spent, by requests that still run" in refused.message
    assert refused.headers() == [(b"retry-after", b"1"), (b"retry-after-ms", b"1000")]


@pytest.mark.parametrize(
    ("dimension", "limit", "counts", "smaller"),
    [
        ("input_tokens_per_minute", "1000 input tokens per minute", "(the prompt)", "shorter prompt"),
        ("output_tokens_per_minute", "1000 output tokens per minute", "(max_tokens)", "lower max_tokens"),
        ("tokens_per_day", "1000 tokens per day", "(prompt and max_tokens)", "lower max_tokens"),
        ("concurrent_tokens", "1000 tokens in running requests", "(prompt and max_tokens)", "lower max_tokens"),
    ],
)
def test_each_limit_of_tokens_is_named(dimension: Dimension, limit: str, counts: str, smaller: str) -> None:
    """The limit, what is left, what the request asks for, when to come again and what to change."""
    refused = refusal(denial(dimension, limit=1000, asked=800, remaining=300, retry_after_ms=30_000))
    assert refused.message == (
        f"Rate limit reached: {limit}, 300 left, and this request may use up to 800 {counts}. Try again in 30 s. "
        f"A {smaller} asks for less."
    )
    assert refused.headers() == [(b"retry-after", b"30"), (b"retry-after-ms", b"30000")]
    too_large = refusal(denial(dimension, limit=1000, asked=1001, remaining=1000, retry_after_ms=None))
    assert f"more than the limit of {limit} can ever hold" in too_large.message
    assert too_large.headers() == [(b"x-should-retry", b"false")]


def test_a_budget_of_an_hour_that_is_spent() -> None:
    """Named by its hour, with the time until the next one; the SDKs are told not to retry."""
    refused = refusal(
        denial(
            "usd_per_hour",
            limit=10**9,
            asked=10**6,
            remaining=0,
            retry_after_ms=1_800_000,
            spent_nanousd=10**9,
            period="hour:2026-10-31T23",
            resets_at_s=1_793_491_200,
        )
    )
    assert refused.code == "insufficient_quota"
    assert refused.message.startswith(
        "You have used up the budget of $1.00 for this hour. It resets at 2026-11-01 00:00"
    )
    assert refused.headers()[0] == (b"retry-after", b"1800")


def test_a_keys_limit_is_told_from_its_tenants() -> None:
    """The message names the key by its public id."""
    spent = denial(
        "usd_per_day", limit=10**9, asked=1, remaining=0, retry_after_ms=9, spent_nanousd=10**9, scope="key acme-ci"
    )
    assert refusal(spent).message.startswith("You have used up the budget of key acme-ci, $1.00 for this ")
    tokens = denial("tokens_per_day", limit=10, asked=8, remaining=3, retry_after_ms=1000, scope="key acme-ci")
    assert "10 tokens per day for key acme-ci, 3 left" in refusal(tokens).message
