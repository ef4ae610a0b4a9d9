"""A replica whose step grows with what it runs, as measured on GPUs: N settles at the knee and stays there.

Step time `a + b x N` is admission's own model of a decoding engine; demand is endless, answers are 200 tokens long.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from gateway.admission import Knee, Work

SLO_MS = 80
ANSWER_TOKENS = 200


class Replica:
    """Decodes in steps; its knee decides how many run."""

    def __init__(self, base_ms: float, per_sequence_ms: float, seed: int) -> None:
        self.knee = Knee(itl_ms=SLO_MS)
        self.base_ms, self.per_sequence_ms = base_ms, per_sequence_ms
        self._random = random.Random(seed)
        self._running: deque[tuple[str, int]] = deque()
        self._now_ms = 0.0
        self._next = 0

    def second(self) -> tuple[int, float]:
        """One second of steps, then a tick. N, and the mean step time."""
        end_ms, steps_ms = self._now_ms + 1000, []
        while self._now_ms < end_ms:
            self._admit()
            step_ms = self.base_ms + self.per_sequence_ms * len(self._running)
            step_ms *= self._random.uniform(0.9, 1.1)
            self._now_ms += step_ms
            steps_ms.append(step_ms)
            now_ms = int(self._now_ms)
            for name, _ in [one for one in self._running if one[1] == 0]:
                self.knee.first_token(name, now_ms)
            self._running = deque((name, tokens + 1) for name, tokens in self._running)
            while self._running and self._running[0][1] >= ANSWER_TOKENS:
                self.knee.ended(self._running.popleft()[0], now_ms)
        for name, tokens in self._running:
            self.knee.tokens(name, tokens, int(self._now_ms))
        self.knee.tick(int(self._now_ms), queued=100)
        return self.knee.limits.sequences, sum(steps_ms) / len(steps_ms)

    def _admit(self) -> None:
        while True:
            work = Work(
                id=f"{self._next}",
                tenant="acme",
                band=0,
                weight=1.0,
                input_tokens=50,
                cached_tokens=0,
                output_tokens=ANSWER_TOKENS,
                retry=False,
                arrived_ms=0,
                deadline_ms=10**9,
            )
            if not self.knee.fits(work, below_share=False):
                return
            self._next += 1
            self.knee.dispatched(work, int(self._now_ms))
            self._running.append((work.id, 0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_sequence_ms", [0.11, 0.22, 0.9])
def test_throughput_within_the_slo_is_near_the_best_static_limit(per_sequence_ms: float, seed: int) -> None:
    """Within 60 s from a cold start: at least 0.93 of what the best static N has, no step over the SLO, and N stays
    within a tenth of itself for four minutes more."""
    replica = Replica(8.0, per_sequence_ms, seed)
    for _ in range(60):
        replica.second()
    seen = [replica.second() for _ in range(240)]
    limits = [limit for limit, _ in seen]
    best = (SLO_MS - 8.0) / per_sequence_ms
    tokens_per_ms = sum(limit / step_ms for limit, step_ms in seen) / len(seen)
    assert tokens_per_ms >= 0.93 * best / SLO_MS
    assert max(step_ms for _, step_ms in seen) <= SLO_MS
    assert max(limits) <= 1.1 * min(limits)


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_load_is_followed_within_a_minute(seed: int) -> None:
    """Every sequence costs three times as much (longer contexts), then a third again."""
    replica = Replica(8.0, 0.2, seed)
    for _ in range(60):
        before, _ = replica.second()
    replica.per_sequence_ms = 0.6
    slow = [replica.second()[1] for _ in range(60)]
    assert max(slow[20:]) <= SLO_MS
    replica.per_sequence_ms = 0.2
    for _ in range(60):
        after, _ = replica.second()
    assert after == pytest.approx(before, rel=0.1)


def test_an_engine_that_is_slow_whatever_runs_is_not_given_more() -> None:
    """The SLO cannot be met: N goes to its floor and never grows."""
    replica = Replica(200.0, 0.01, 0)
    limits = [replica.second()[0] for _ in range(500)]
    assert limits[-1] == 4
    assert max(limits) == limits[0] < 64
