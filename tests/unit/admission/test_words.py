"""What an operator reads of a rule that refused, and of the ways past it."""

from __future__ import annotations

import pytest

from gateway.admission import decided, would_pass
from gateway.errors import RefusedBy

RATE = RefusedBy(dimension="tokens_per_minute", limit=1000, asked=800, remaining=300, retry_after_ms=30_000)
BUDGET = RefusedBy(
    dimension="usd_per_day",
    scope="key acme-ci",
    limit=5_000_000_000,
    asked=250_000_000,
    remaining=100_000_000,
    reserved=2_000_000_000,
    retry_after_ms=1000,
)
QUEUE = RefusedBy(dimension="max_wait_s", scope="class", limit=2000, asked=4500, retry_after_ms=5200)
LENGTH = RefusedBy(dimension="max_input_tokens", scope="model tiny", limit=3000, asked=3500)
REQUESTS = RefusedBy(dimension="requests_per_minute", limit=1, asked=1, remaining=0, retry_after_ms=400)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (RATE, "tokens_per_minute of the tenant is 1000 tokens: 300 tokens left, 800 tokens asked."),
        (
            BUDGET,
            "usd_per_day of key acme-ci is $5.00: $0.10 left ($2.00 held by requests that still ran), $0.25 asked.",
        ),
        (
            QUEUE,
            "It could wait for 2 s (max_wait_s of its class, or what ttft_p99_ms leaves of it), and would have waited "
            "for 4.5 s.",
        ),
        (LENGTH, "max_input_tokens of model tiny is 3000 tokens, and the request has or asks for 3500 tokens."),
        (REQUESTS, "requests_per_minute of the tenant is 1 request: 0 requests left, 1 request asked."),
        (
            RefusedBy(dimension="models", scope="model gpt:4"),
            "There is no model gpt:4 here, or the tenant may not use it.",
        ),
    ],
)
def test_the_rule_is_named_with_its_numbers_and_units(rule: RefusedBy, told: str) -> None:
    assert decided(rule) == told


def test_waiting_asking_for_less_and_a_higher_limit_each_let_it_pass() -> None:
    """The numbers are such that they really would: 300 tokens fit now, and 500 more would have."""
    assert would_pass(RATE) == [
        "the same request 30 s later",
        "a request for at most 300 tokens (the prompt and max_tokens)",
        "tokens_per_minute of at least 1500 tokens",
    ]
    assert would_pass(BUDGET)[1:] == [
        "a request for at most $0.10 (the prompt and max_tokens)",
        "usd_per_day of at least $5.15",
    ]


def test_what_no_waiting_helps_does_not_say_later() -> None:
    assert would_pass(LENGTH) == ["500 tokens less in the prompt", "max_input_tokens of at least 3500 tokens"]
    spent = RefusedBy(dimension="budget_usd", limit=10, asked=5, remaining=0)
    assert would_pass(spent) == ["budget_usd of at least $0.000000015"]


def test_a_queue_asks_for_patience_or_replicas() -> None:
    assert would_pass(QUEUE) == [
        "the same request 5.2 s later",
        "max_wait_s and ttft_p99_ms of its class that leave 4.5 s, or more replicas",
    ]
    assert would_pass(REQUESTS) == ["the same request 400 ms later", "requests_per_minute of at least 2 requests"]
