"""One replica's bounds, in virtual time."""

from __future__ import annotations

import pytest

from gateway.admission import Knee
from tests.unit.admission.works import work


def fill(knee: Knee, count: int, now_ms: int = 0) -> None:
    """So many run and are past their first token."""
    for i in range(count):
        knee.dispatched(work(f"w{i}"), now_ms)
        knee.first_token(f"w{i}", now_ms + 1)


def run(knee: Knee, seconds: int, itl_of: float, *, running: int, queued: int = 1, from_s: int = 0) -> None:
    """`running` streams whose tokens come every `itl_of` ms."""
    for second in range(from_s, from_s + seconds):
        for i in range(running):
            knee.tokens(f"w{i}", 1 + int(second * 1000 / itl_of), second * 1000)
        knee.fits(work("next"), below_share=False)
        knee.tick(second * 1000, queued=queued)


def test_no_more_sequences_than_n_but_for_those_below_their_share() -> None:
    knee = Knee(itl_ms=80)
    most = knee.limits.sequences
    fill(knee, most)
    assert not knee.fits(work("next"), below_share=False)
    assert knee.fits(work("next"), below_share=True)
    knee.dispatched(work("a"), 0)
    knee.dispatched(work("b"), 0)
    knee.dispatched(work("c"), 0)
    assert not knee.fits(work("next"), below_share=True)


def test_prompts_that_are_being_read_are_bounded_by_their_uncached_tokens() -> None:
    """A quarter second of prefill; a warm prompt takes little of it; a larger one runs when nothing else is read."""
    knee = Knee(itl_ms=80)
    assert knee.limits.prefill_tokens == 5000
    assert knee.fits(work("long", input_tokens=100_000), below_share=False)
    knee.dispatched(work("long", input_tokens=100_000), 0)
    assert not knee.fits(work("chat"), below_share=False)
    assert not knee.fits(work("chat"), below_share=True)
    knee.first_token("long", 4000)
    assert knee.fits(work("chat"), below_share=False)
    knee.dispatched(work("half", input_tokens=4000), 4000)
    assert not knee.fits(work("other", input_tokens=4000), below_share=False)
    assert knee.fits(work("warm", input_tokens=4000, cached_tokens=3500), below_share=False)


def test_half_of_p_is_left_to_tenants_below_their_share_unless_nobody_else_runs_there() -> None:
    knee = Knee(itl_ms=80)
    half = knee.limits.prefill_tokens // 2
    knee.dispatched(work("first", input_tokens=half + 1), 0)
    assert knee.fits(work("second", input_tokens=100), below_share=False)
    knee.dispatched(work("other", tenant="other", input_tokens=10), 0)
    assert not knee.fits(work("second", input_tokens=100), below_share=False)
    assert not knee.fits(work("third", tenant="third", input_tokens=100), below_share=False)
    assert knee.fits(work("second", input_tokens=100), below_share=True)
    knee.first_token("first", 100)
    assert knee.fits(work("second", input_tokens=100), below_share=False)
    knee.dispatched(work("large", input_tokens=half + 1), 100)
    knee.ended("other", 200)
    assert knee.fits(work("second", input_tokens=100), below_share=False)


def test_the_prefill_rate_is_learnt_from_first_tokens() -> None:
    knee = Knee(itl_ms=80)
    for i in range(60):
        knee.dispatched(work(f"w{i}", input_tokens=8000), i * 10_000)
        knee.first_token(f"w{i}", i * 10_000 + 100)
        knee.ended(f"w{i}", i * 10_000 + 200)
    assert knee.limits.prefill_tokens == pytest.approx(20_000, rel=0.02)


def test_resident_tokens_stay_below_the_cache() -> None:
    knee = Knee(itl_ms=80, kv_tokens=1000)
    knee.dispatched(work("a", input_tokens=300, output_tokens=300), 0)
    knee.first_token("a", 1)
    assert not knee.fits(work("b", input_tokens=300, output_tokens=300), below_share=False)
    assert knee.fits(work("c", input_tokens=100, output_tokens=200), below_share=False)


def test_answers_that_begin_together_are_counted_as_long_as_they_will_be_and_others_as_they_end() -> None:
    """Ten prompts and answers of 100 tokens each, which all begin now or each as one ends."""
    together, in_turn = Knee(itl_ms=80, kv_tokens=3000), Knee(itl_ms=80, kv_tokens=3000)
    for i in range(10):
        for knee in (together, in_turn):
            knee.dispatched(work(f"w{i}", input_tokens=100, output_tokens=100), 0)
            knee.first_token(f"w{i}", 1)
        in_turn.tokens(f"w{i}", 1 + 10 * i, 100)
    for knee in (together, in_turn):
        knee.tick(1000, queued=0)
    assert together.load.kv_tokens == 10 * 200
    now = sum(101 + 10 * i for i in range(10))
    assert in_turn.load.kv_tokens == now + 10 * 9, "most will be there when the first ends, in 9 tokens"


def test_an_answer_longer_than_predicted_counts_for_more() -> None:
    """Twice what it has, from then on; and so do the predictions of those that come after it."""
    knee = Knee(itl_ms=80, kv_tokens=2000)
    knee.dispatched(work("a", input_tokens=100, output_tokens=100), 0)
    knee.first_token("a", 1)
    assert knee.fits(work("next", input_tokens=700, output_tokens=300), below_share=False)
    knee.tokens("a", 500, 5000)
    assert knee.load.kv_tokens == 1100
    assert not knee.fits(work("next", input_tokens=700, output_tokens=300), below_share=False)
    knee.ended("a", 6000)
    knee.tick(6000, queued=0)
    knee.dispatched(work("b", input_tokens=100, output_tokens=100), 7000)
    assert knee.load.kv_tokens == 100 + 500


def test_what_a_cache_holds_may_become_known_later() -> None:
    knee = Knee(itl_ms=80)
    knee.dispatched(work("a", input_tokens=600), 0)
    knee.first_token("a", 1)
    assert knee.fits(work("b", input_tokens=600), below_share=False)
    knee.kv_tokens = 1000
    assert not knee.fits(work("b", input_tokens=600), below_share=False)
    assert knee.limits.kv_tokens == 950


def test_n_falls_while_tokens_come_too_slowly_and_not_below_its_floor() -> None:
    knee = Knee(itl_ms=80)
    fill(knee, 64)
    run(knee, 20, 160.0, running=64)
    assert knee.limits.sequences == 44, "the first decrease has not worked while 64 run"
    for running in (44, 30, 20, 14, 10, 7, 5, 4):
        for i in range(running, 64):
            knee.ended(f"w{i}", 0)
        run(knee, 20, 400.0, running=running, from_s=(70 - running) * 100)
    assert knee.limits.sequences == 4


def test_n_holds_within_the_deadband() -> None:
    knee = Knee(itl_ms=80)
    fill(knee, 64)
    run(knee, 60, 64.0, running=64)
    assert knee.limits.sequences == 64


def test_n_grows_only_with_demand() -> None:
    idle, busy = Knee(itl_ms=80), Knee(itl_ms=80)
    fill(idle, 10)
    fill(busy, 64)
    run(idle, 30, 10.0, running=10)
    run(busy, 5, 10.0, running=64)
    assert idle.limits.sequences == 64
    assert busy.limits.sequences == 81, "and no further than somebody waited for"


def test_few_samples_change_nothing() -> None:
    """Three tokens that took long are no trend."""
    knee = Knee(itl_ms=80)
    fill(knee, 64)
    for second in range(2):
        knee.tokens("w0", 1 + 3 * second, second * 3000)
        knee.tick(second * 3000, queued=1)
    assert knee.limits.sequences == 64


def test_an_idle_engine_before_a_full_queue_is_given_more() -> None:
    knee = Knee(itl_ms=80)
    fill(knee, 1)
    knee.engine_full(0)
    knee.ended("w0", 10)
    assert knee.limits.sequences == 4
    for second in range(4, 8):
        knee.tick(second * 1000, queued=5)
    assert knee.limits.sequences > 8


def test_an_engine_that_says_it_is_full_gets_no_more_than_it_has() -> None:
    knee = Knee(itl_ms=80)
    fill(knee, 20)
    knee.engine_full(0)
    assert knee.limits.sequences == 20
    run(knee, 3, 10.0, running=20)
    assert knee.limits.sequences == 20


def test_what_ends_leaves_nothing_behind() -> None:
    """With or without a first token, and however often the end is told."""
    knee = Knee(itl_ms=80)
    knee.dispatched(work("a"), 0)
    knee.dispatched(work("b"), 0)
    knee.first_token("a", 10)
    knee.first_token("a", 20)
    for name in ("a", "b", "a", "unknown"):
        knee.ended(name, 30)
    assert (knee.load.sequences, knee.load.prefill_tokens, knee.load.kv_tokens) == (0, 0, 0)


def test_answers_shorter_than_a_second_are_learnt_from() -> None:
    """They begin and end between two ticks, and are told of at their end."""
    knee = Knee(itl_ms=80)
    fill(knee, 64)
    for i in range(64):
        knee.tokens(f"w{i}", 51, 500)
        knee.ended(f"w{i}", 500)
    knee.tick(0, queued=1)
    assert knee.limits.sequences == 64  # nobody has waited for N
    fill(knee, 64)
    assert not knee.fits(work("next"), below_share=False)
    for i in range(64):
        knee.tokens(f"w{i}", 51, 500)
    knee.tick(1000, queued=1)
    assert knee.limits.sequences == 81


def test_a_prompt_presumed_to_have_been_read_makes_room_and_teaches_nothing() -> None:
    knee = Knee(itl_ms=80)
    first, second = work("first", input_tokens=4000), work("second", input_tokens=2000)
    knee.dispatched(first, 0)
    assert not knee.fits(second, below_share=False)
    assert knee.prefill_ms("first") == 200  # at 20,000 tokens a second
    knee.presumed_read("first", 200)
    assert knee.fits(second, below_share=False)
    assert knee.load.prefill_tokens == 0
    knee.first_token("first", 30_000)
    knee.ended("first", 30_000)
    assert knee.limits.prefill_tokens == 5000
    assert knee.load.prefill_tokens == 0
