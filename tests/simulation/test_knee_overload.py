"""The knee in front of the engine that was measured on an H200, offered more than it can serve."""

from __future__ import annotations

import pytest

from gateway.admission import Knee
from gateway.simulator import PROFILES
from tests.simulation.virtual_fleet import TTFT_SLO_S, VirtualFleet
from tests.simulation.virtual_gateway import Front, Gauges, Open, World, poisson

H200 = PROFILES["h200-llama-8b"].override(long_prefill_token_threshold=1024)

H200_KV_TOKENS = (H200.kv_blocks - 1) * H200.block_size


def served(knee: Knee, rate: float, prompt: int = 800, answer: int = 200, *, reads_gauges: bool = True) -> VirtualFleet:
    fleet = VirtualFleet(H200, knee, reads_gauges=reads_gauges)
    fleet.load(rate, prompt, answer, 40.0, seed=1)
    fleet.run(60.0)
    return fleet


def good_per_s(front: Front, rate: float) -> float:
    """Through what others do."""
    arrivals = poisson("acme", rate, seed=1, until_s=38.0)
    return World(front, arrivals, until_s=38.0, profiles=[H200]).of(20.0).good_per_s


@pytest.mark.parametrize(("rate", "prompt", "answer"), [(70.0, 800, 200), (175.0, 800, 200), (60.0, 3000, 100)])
def test_whoever_is_admitted_has_a_first_token_within_the_target(rate: float, prompt: int, answer: int) -> None:
    """The wait counts: p99 from arrival on, offered twice and five times the knee's load, and longer prompts."""
    fleet = served(Knee(itl_ms=80, kv_tokens=H200_KV_TOKENS), rate, prompt, answer)
    assert 0.3 < fleet.ttft_p99_s(20.0, 38.0) <= TTFT_SLO_S


def test_goodput_does_not_fall_with_more_offered() -> None:
    """At 2 and 5 times the knee's 35 req/s at least 0.95 of the best so far is good; without an admission nothing is,
    and with the engine's gauges less than half."""
    at_knee, twice, five = (
        served(Knee(itl_ms=80, kv_tokens=H200_KV_TOKENS), 35.0 * times).good_per_s(20.0, 38.0) for times in (1, 2, 5)
    )
    assert twice >= 0.95 * at_knee
    assert five >= 0.95 * max(at_knee, twice)
    assert good_per_s(Open(), 70.0) == 0.0
    assert good_per_s(Gauges(), 70.0) < 0.5 * twice


def test_a_cache_does_not_overflow_though_answers_are_far_longer_than_predicted() -> None:
    """800 tokens where 200 are predicted. No answer is put off, and those served are served in time; where the engine's
    page is never read, so that nothing bounds what is resident, more than a hundred are put off."""
    fleet = served(Knee(itl_ms=80, kv_tokens=H200_KV_TOKENS), 35.0, 800, 800)
    unbounded = served(Knee(itl_ms=80), 35.0, 800, 800, reads_gauges=False)
    assert fleet.core.counters.preemptions == 0
    assert fleet.ttft_p99_s(20.0, 38.0) <= TTFT_SLO_S
    assert unbounded.core.counters.preemptions > 100
    assert fleet.good_per_s(20.0, 38.0) > 1.25 * unbounded.good_per_s(20.0, 38.0)
