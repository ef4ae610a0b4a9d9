"""The knee in front of the engine that was measured on an H200, offered more than it can serve."""

from __future__ import annotations

import pytest

from gateway.admission import Knee
from gateway.simulator import PROFILES
from tests.simulation.virtual_fleet import TTFT_SLO_S, Admission, Gauges, Open, Ours, VirtualFleet

H200 = PROFILES["h200-llama-8b"].override(long_prefill_token_threshold=1024)


def served(admission: Admission, rate: float, prompt: int = 800, answer: int = 200) -> VirtualFleet:
    fleet = VirtualFleet(H200, admission)
    fleet.load(rate, prompt, answer, 40.0, seed=1)
    fleet.run(60.0)
    return fleet


def good_per_s(admission: Admission, rate: float) -> float:
    return served(admission, rate).good_per_s(20.0, 38.0)


@pytest.mark.parametrize(
    ("rate", "prompt", "answer"), [(35.0, 800, 200), (70.0, 800, 200), (175.0, 800, 200), (60.0, 3000, 100)]
)
def test_whoever_is_admitted_has_a_first_token_within_the_target(rate: float, prompt: int, answer: int) -> None:
    """The wait counts: p99 from arrival on, offered the knee's load, twice and five times that, and long prompts."""
    fleet = served(Ours(Knee(itl_ms=80, kv_tokens=380_000)), rate, prompt, answer)
    assert 0.3 < fleet.ttft_p99_s(20.0, 38.0) <= TTFT_SLO_S


def test_goodput_does_not_fall_with_more_offered() -> None:
    """At 2 and 5 times the knee's 35 req/s at least 0.95 of the best so far is good; without an admission nothing is,
    and with the engine's gauges less than half."""
    at_knee, twice, five = (good_per_s(Ours(Knee(itl_ms=80, kv_tokens=380_000)), 35.0 * times) for times in (1, 2, 5))
    assert twice >= 0.95 * at_knee
    assert five >= 0.95 * max(at_knee, twice)
    assert good_per_s(Open(), 70.0) == 0.0
    assert good_per_s(Gauges(), 70.0) < 0.5 * twice
