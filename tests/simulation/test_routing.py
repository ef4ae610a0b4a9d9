"""Placement in virtual time: simulated H200 replicas, cold, the same arrivals under each policy. Small forms of what
`make bench-routing` measures."""

from __future__ import annotations

import pytest

from loadtest.routing import MEASURED, POLICIES, STICKY, Seen, Workload, World, measured
from loadtest.routing.workloads import agents, burst, hot, restart, unique


def seen(workload: Workload, policy: str) -> Seen:
    return World(workload, {**POLICIES, **STICKY}[policy](workload)).run()


@pytest.mark.parametrize("policy", ["round robin", "sticky by prefix"])
def test_the_simulated_replicas_cache_and_answer_as_the_measured_ones_did(policy: str) -> None:
    """Within 15 % of what two replicas on an H200 did with 40 sessions of 6 turns at the easy rate."""
    known, ours = MEASURED[5.0, policy], seen(measured(1, 5.0), policy)
    assert ours.cached_share == pytest.approx(known.cached_share, rel=0.15)
    assert 1000 * ours.ttft_p50_s == pytest.approx(known.ttft_p50_ms, rel=0.15)


def test_without_being_told_who_belongs_together_as_much_is_cached_as_by_a_perfect_rule() -> None:
    """At the hard rate, where round robin caches 61 %, and the rule 89 %."""
    workload = measured(1, 2.0)
    ours, sticky = seen(workload, "Mtok"), seen(workload, "sticky by prefix")
    assert ours.cached_share >= sticky.cached_share - 0.02
    assert ours.ttft_mean_s <= 1.1 * sticky.ttft_mean_s


def test_agents_read_less_than_a_third_of_what_they_do_by_round_robin() -> None:
    """A dozen agents of 16 turns."""
    workload = agents(1, per_s=12.0, until_s=1.0, turns=16)
    ours, turns = seen(workload, "Mtok"), seen(workload, "round robin")
    assert ours.computed_tokens <= turns.computed_tokens / 3
    assert ours.ttft_p99_s <= turns.ttft_p99_s


def test_where_nothing_is_shared_it_is_as_good_as_least_loaded() -> None:
    workload = unique(1, until_s=1.0)
    assert seen(workload, "Mtok").ttft_mean_s <= 1.02 * seen(workload, "least loaded").ttft_mean_s


def test_a_prefix_with_most_of_the_load_is_copied_until_no_replica_has_a_quarter_more_than_the_mean() -> None:
    assert seen(hot(1, until_s=3.0), "Mtok").imbalance <= 1.25


def test_a_burst_of_a_new_prefix_does_not_pile_up() -> None:
    """160 requests within a second begin with 6,000 tokens that nobody has: all are good answers."""
    assert seen(burst(1, per_s=5.0, until_s=6.0), "Mtok").good_share == 1.0


def test_a_replica_that_restarts_is_known_to_be_empty() -> None:
    """Its conversations are answered elsewhere, and what it held is not expected of it: most is cached all the same."""
    ours = seen(restart(1, per_s=4.0), "Mtok")
    assert max(one.sent for one in ours.asked) == 2
    assert ours.cached_share >= 0.7
