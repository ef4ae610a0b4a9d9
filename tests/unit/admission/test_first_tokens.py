"""How long a request may wait for a first token in time."""

from __future__ import annotations

import random

import pytest

from gateway.admission import FirstTokens, Work
from tests.unit.admission import works


def work(*, deadline_ms: int = 12_000, input_tokens: int = 800) -> Work:
    return works.work(input_tokens=input_tokens, arrived_ms=10_000, deadline_ms=deadline_ms)


def test_the_wait_is_what_the_engine_and_the_prompt_leave_of_the_target() -> None:
    times = FirstTokens()
    assert times.dispatch_by_ms(work(), 600, own_ms=40.0) == 10_000 + 600 - 40 - 250
    assert times.dispatch_by_ms(work(), 5000, own_ms=40.0) == 12_000, "never past the class's longest wait"


def test_a_prompt_that_cannot_keep_the_target_waits_as_long_as_its_class_allows() -> None:
    assert FirstTokens().dispatch_by_ms(work(input_tokens=100_000), 600, own_ms=6700.0) == 12_000


def test_a_slow_engine_leaves_a_tenth_of_the_target() -> None:
    times = FirstTokens()
    for _ in range(200):
        times.came(5000.0, 40.0)
    assert times.dispatch_by_ms(work(), 600, own_ms=40.0) == 10_060


@pytest.mark.parametrize("mean_ms", [20.0, 100.0, 400.0])
def test_the_tail_of_what_engines_need_is_learnt(mean_ms: float) -> None:
    """Of exponential times 98.5 to 100 % stay below what is left for them, from above and from below."""
    source, times = random.Random(7), FirstTokens()
    for _ in range(3000):
        times.came(40.0 + source.expovariate(1 / mean_ms), 40.0)
    late = 0
    for _ in range(5000):
        beyond_ms = source.expovariate(1 / mean_ms)
        late += beyond_ms > times.beyond_ms
        times.came(40.0 + beyond_ms, 40.0)
    assert 0 < late <= 0.015 * 5000


def test_an_engine_that_becomes_fast_again_is_believed() -> None:
    times = FirstTokens()
    for _ in range(50):
        times.came(2000.0, 0.0)
    assert times.beyond_ms == 2000.0
    for _ in range(256):
        times.came(10.0, 0.0)
    assert times.beyond_ms == 10.0
