"""While Redis is away a worker admits its share of the limits, and never more."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import Allowance, Ask, Standing
from gateway.policy import LimitsSpec

ASK = Ask("r", 100, 0)


def allowance(limits: LimitsSpec, *, share: float = 0.1, last: Standing | None = None) -> Allowance:
    return Allowance(limits, share=share, last=last, now_ms=0)


def test_a_tenth_of_a_minute_s_requests_and_then_their_refill() -> None:
    """600 a minute at a share of 0.1: 60 at once, then one a second."""
    one = allowance(LimitsSpec(requests_per_minute=600))
    assert sum(one.take(ASK, 0) for _ in range(100)) == 60
    assert not one.take(ASK, 999)
    assert one.take(ASK, 1000)
    assert not one.take(ASK, 1000)


def test_what_had_been_used_before_the_outage_stays_used() -> None:
    last = Standing(600, 100, 50_000, None, 0, 0)
    one = allowance(LimitsSpec(requests_per_minute=600), last=last)
    assert sum(one.take(ASK, 0) for _ in range(100)) == 10


def test_tokens_are_a_limit_of_their_own() -> None:
    """A refused request takes nothing: the next one that fits is admitted."""
    one = allowance(LimitsSpec(requests_per_minute=600, tokens_per_minute=10_000))
    assert sum(one.take(ASK, 0) for _ in range(60)) == 10
    assert one.take(Ask("small", 0, 0), 0)


def test_at_once_at_least_one_and_at_most_the_share() -> None:
    many, few = (allowance(LimitsSpec(concurrent_requests=limit)) for limit in (50, 2))
    assert sum(many.take(ASK, 0) for _ in range(10)) == 5
    assert sum(few.take(ASK, 0) for _ in range(10)) == 1
    few.give_back()
    assert few.take(ASK, 0)


def test_dollars_are_never_spent_blind() -> None:
    assert not allowance(LimitsSpec(budget_usd=Decimal(1_000_000))).take(ASK, 0)


@given(
    limit=st.integers(1, 10_000),
    left=st.integers(0, 10_000),
    share=st.floats(0.01, 1),
    asks=st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 500)), max_size=200),
)
def test_the_bound_holds_whatever_is_asked_and_when(
    limit: int, left: int, share: float, asks: list[tuple[int, int]]
) -> None:
    """Never more tokens than share x (what was left + what refilled)."""
    left = min(left, limit)
    one = allowance(LimitsSpec(tokens_per_minute=limit), share=share, last=Standing(None, 0, 0, limit, left, 0))
    now_ms = taken = 0
    for pause_ms, tokens in asks:
        now_ms += pause_ms
        if one.take(Ask("r", tokens, 0), now_ms):
            taken += tokens
    assert taken <= share * (left + limit * now_ms / 60_000) + 1e-6
