"""The retry budget: a tenth of the traffic, a floor for little traffic, a bound for an outage."""

from __future__ import annotations

from gateway.fleet import RetryBudget


def spent(budget: RetryBudget, now_s: float) -> int:
    """How many retries there are now."""
    count = 0
    while budget.spend(now_s):
        count += 1
    return count


def test_one_lost_replicas_requests_are_all_tried_again() -> None:
    """A worker that has seen no traffic yet may retry a hundred at once, and then no more."""
    budget = RetryBudget()
    assert spent(budget, 0.0) == 100
    assert not budget.spend(0.0)


def test_an_outage_is_answered_with_a_tenth_more_at_most() -> None:
    """Once the savings are gone, 1,000 requests that all fail are tried again 100 times, within the same moment."""
    budget = RetryBudget()
    spent(budget, 5.0)
    retried = 0
    for _ in range(1000):
        budget.earn()
        retried += budget.spend(5.0)
    assert 99 <= retried <= 100


def test_little_traffic_has_a_floor() -> None:
    """One a second comes back by itself; savings end at a hundred, however long it was quiet."""
    budget = RetryBudget()
    spent(budget, 0.0)
    assert spent(budget, 7.0) == 7
    assert spent(budget, 1e6) == 100


def test_a_clock_that_steps_back_takes_nothing() -> None:
    """Time that runs backwards earns nothing, and costs nothing."""
    budget = RetryBudget()
    spent(budget, 100.0)
    assert spent(budget, 50.0) == 0
    assert spent(budget, 53.0) == 3
