"""Several workers in front of the engine that was measured on an H200: together they find its knee, and keep to it."""

from __future__ import annotations

from gateway.simulator import PROFILES
from tests.simulation.shared_fleet import SharedFleet

H200 = PROFILES["h200-llama-8b"].override(long_prefill_token_threshold=1024)


def served(workers: int, rate: float, prompt: int, answer: int, *, shares: bool = True) -> SharedFleet:
    fleet = SharedFleet(H200, workers, shares=shares)
    fleet.load(rate, prompt, answer, 40.0, seed=1)
    fleet.run(60.0)
    return fleet


def test_eight_workers_serve_as_many_in_time_as_one() -> None:
    """At the knee's load; all adapt one limit, which is what one alone finds."""
    one, eight = (served(workers, 35.0, 800, 200) for workers in (1, 8))
    assert eight.good_per_s(20.0, 38.0) >= 0.97 * one.good_per_s(20.0, 38.0)
    limits = {gate.knee.limits.sequences for gate in eight.gates}
    assert max(limits) <= 1.05 * min(limits)
    assert max(eight.most[5:]) <= 1.25 * max(one.most[5:])


def test_prompts_that_are_read_at_once_are_not_multiplied() -> None:
    """Long prompts, far more than can be read. Four workers have as many tokens read as one, and first tokens come
    twice as soon as where the workers know nothing of each other."""
    one, four = (served(workers, 60.0, 3000, 100) for workers in (1, 4))
    strangers = served(4, 60.0, 3000, 100, shares=False)
    assert four.read_per_s(20.0, 38.0) >= 0.9 * one.read_per_s(20.0, 38.0)
    assert four.ttft_p99_s(20.0, 38.0) < 0.55 * strangers.ttft_p99_s(20.0, 38.0)
    assert four.good_per_s(20.0, 38.0) > 1.3 * strangers.good_per_s(20.0, 38.0)
