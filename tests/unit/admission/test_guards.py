"""An engine's own gauges: late, sometimes missing, and never the only word."""

from __future__ import annotations

import pytest

from gateway.admission import Gauges, Knee, Work
from tests.unit.admission import works


def gauges(
    read_s: float, *, sequences: int = 64, waiting: int = 0, kv_usage: float = 0.5, preemptions: int = 0, kv: int = 0
) -> Gauges:
    return Gauges(
        read_ms=int(read_s * 1000),
        sequences=sequences,
        waiting=waiting,
        kv_usage=kv_usage,
        kv_tokens=kv,
        preemptions=preemptions,
    )


class Busy:
    """A replica whose 64 streams get their tokens in time, before a queue: its N grows unless something holds it."""

    def __init__(self, *, input_tokens: int = 100, kv_tokens: int | None = None) -> None:
        self.knee = Knee(itl_ms=80, kv_tokens=kv_tokens)
        self.second = 0
        for i in range(64):
            self.knee.dispatched(self.work(f"w{i}", input_tokens), 0)
            self.knee.first_token(f"w{i}", 1)

    def work(self, name: str, input_tokens: int) -> Work:
        return works.work(name, input_tokens=input_tokens, output_tokens=1000)

    def pass_s(self, seconds: int, read: Gauges | None = None) -> int:
        """So much later: N. `read` is what was read last, looked at each second, as a worker does."""
        for _ in range(seconds):
            self.second += 1
            for i in range(64):
                self.knee.tokens(f"w{i}", 1 + 25 * self.second, self.second * 1000)
            if read is not None:
                self.knee.observe(read, self.second * 1000)
            self.knee.fits(self.work("next", 100), below_share=False)
            self.knee.tick(self.second * 1000, queued=1)
        return self.knee.limits.sequences


def test_few_prompts_that_wait_are_what_a_busy_engine_always_has() -> None:
    busy, alone = Busy(), Busy()
    for read_s in range(0, 60, 10):
        assert busy.pass_s(10, gauges(read_s, waiting=8)) == alone.pass_s(10)


def test_many_that_wait_hold_n_at_once_and_lower_it_when_they_still_do() -> None:
    """0, then 18 of 64: one reading changes nothing but that N does not grow; a second one takes a tenth, once."""
    busy = Busy()
    before = busy.pass_s(2, gauges(0.5))
    assert busy.pass_s(9, gauges(2.5, waiting=18)) == before
    assert busy.pass_s(9, gauges(12.5, waiting=18)) == int(0.9 * 64)
    assert busy.pass_s(9, gauges(22.5, waiting=18)) == int(0.9 * 64), "what was read before it worked counts once"
    assert busy.pass_s(9, gauges(32.5, waiting=0)) > int(0.9 * 64)


def test_a_gauge_that_stays_or_fails_is_forgotten() -> None:
    """The last reading said that many wait. Nothing is read any more: for 25 s N holds, then what is measured here
    leads alone; and one that is already old when it comes changes nothing."""
    busy = Busy()
    before = busy.pass_s(1, gauges(0.5, waiting=40))
    assert busy.pass_s(24, gauges(0.5, waiting=40)) == before
    assert busy.pass_s(10, gauges(0.5, waiting=40)) > before
    grown = busy.pass_s(1)
    assert busy.pass_s(5, gauges(1.5, waiting=40, preemptions=5)) >= grown


def test_an_idle_engine_before_a_queue_is_given_more_whatever_its_gauges_say() -> None:
    knee = Knee(itl_ms=80)
    for second in range(1, 20):
        knee.observe(gauges(second - 0.5, sequences=18, waiting=18, kv_usage=1.0), second * 1000)
        knee.tick(second * 1000, queued=5)
    before = knee.limits.sequences
    knee.observe(gauges(20.0, sequences=0, kv_usage=1.0), 20_000)
    for second in range(21, 30):
        knee.tick(second * 1000, queued=5)
    assert knee.limits.sequences > before


def test_answers_put_off_for_want_of_cache_lower_n_and_k() -> None:
    """By a fifth and a tenth; K comes back by a twentieth with each reading that tells of none."""
    busy = Busy(kv_tokens=400_000)
    busy.knee.observe(gauges(0.5, preemptions=7), 600)
    assert busy.knee.limits.sequences == 64, "those before the first reading are not ours to explain"
    busy.knee.observe(gauges(1.5, preemptions=9), 1600)
    assert busy.knee.limits.sequences == int(0.8 * 64)
    assert busy.knee.limits.kv_tokens == pytest.approx(0.9 * 380_000, abs=1)
    for read_s in (11, 21, 31):
        busy.knee.observe(gauges(read_s, preemptions=9), read_s * 1000)
    assert busy.knee.limits.kv_tokens == 380_000


def test_an_engine_that_was_started_again_has_put_nothing_off() -> None:
    busy = Busy()
    busy.knee.observe(gauges(0.5, preemptions=9), 600)
    busy.knee.observe(gauges(10.5, preemptions=2), 10_600)
    assert busy.knee.limits.sequences == 64


def test_a_cache_that_is_full_holds_n() -> None:
    busy = Busy()
    assert busy.pass_s(20, gauges(0.5, kv_usage=0.96)) == 64
    assert busy.pass_s(5, gauges(20.5, kv_usage=0.9)) > 64


def test_prompts_that_share_their_blocks_count_once() -> None:
    """64 prompts of 10,000 tokens are 640,000, but no more than a fifth of a cache of 380,000 is in use."""
    busy = Busy(input_tokens=10_000, kv_tokens=380_000)
    assert not busy.knee.fits(busy.work("next", 10_000), below_share=True)
    for read_s in range(0, 50, 10):
        busy.pass_s(10, gauges(read_s, kv_usage=0.2, kv=380_000))
    assert busy.knee.fits(busy.work("next", 10_000), below_share=True)
    assert busy.knee.load.kv_tokens >= 64 * 2 * 1000, "answers share nothing"
    busy.pass_s(7, gauges(50, kv_usage=0.9, kv=380_000))
    assert not busy.knee.fits(busy.work("next", 10_000), below_share=True), "a fuller cache is believed at once"
