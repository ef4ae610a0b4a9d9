"""The fair queue: whose turn it is, what is refused, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.admission import Cost, FairQueue, Turned, Work
from tests.unit.admission import works

FLAT = Cost(input=1.0, cached=0.1, output=0.0)
"""A work costs its prompt."""


def work(
    name: str,
    tenant: str = "a",
    *,
    tokens: int = 100,
    cached: int = 0,
    output: int = 0,
    **asked: Any,
) -> Work:
    return works.work(name, tenant, input_tokens=tokens, cached_tokens=cached, output_tokens=output, **asked)


def always(_work: Work, _below: bool) -> bool:
    return True


def smaller_than(tokens: int) -> Callable[[Work, bool], bool]:
    return lambda work, _below: work.input_tokens < tokens


def drain(queue: FairQueue, n: int = 1_000_000, *, now_ms: int = 0) -> list[str]:
    """The ids of the next `n`, which end at once as predicted."""
    ids: list[str] = []
    while len(ids) < n and (got := queue.next(always, now_ms)) is not None:
        ids.append(got.id)
        end(queue, got, now_ms)
    return ids


def end(queue: FairQueue, work: Work, now_ms: int = 0) -> None:
    queue.ended(
        work,
        input_tokens=work.input_tokens,
        cached_tokens=work.cached_tokens,
        output_tokens=work.output_tokens,
        now_ms=now_ms,
    )


def offer(queue: FairQueue, *works: Work, now_ms: int = 0) -> None:
    for each in works:
        assert queue.offer(each, now_ms) is None


def test_tenants_take_turns_by_what_they_were_given() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, *(work(f"a{i}", "a", tokens=300) for i in range(3)), *(work(f"b{i}", "b") for i in range(6)))

    assert drain(queue) == ["a0", "b0", "b1", "b2", "a1", "b3", "b4", "b5", "a2"]


def test_a_tenant_of_twice_the_weight_gets_twice_the_service() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, *(work(f"a{i}", "a", weight=2.0) for i in range(40)), *(work(f"b{i}", "b") for i in range(40)))

    assert sum(name[0] == "a" for name in drain(queue, 30)) == 20


def test_cached_input_counts_less_and_output_more() -> None:
    cost = Cost()

    assert cost.of(input_tokens=1000, cached_tokens=800, output_tokens=0) == pytest.approx(200 + 800 * 0.1 / 0.28)
    assert cost.of(input_tokens=0, cached_tokens=0, output_tokens=28) == pytest.approx(100)
    assert cost.of(input_tokens=10, cached_tokens=50, output_tokens=0) == pytest.approx(10 * 0.1 / 0.28)


def test_what_was_charged_by_prediction_is_corrected_at_the_end() -> None:
    queue = FairQueue(cost=FLAT)
    long = work("a0", "a", tokens=1000)
    offer(queue, long, work("a1", "a"), *(work(f"b{i}", "b") for i in range(12)))
    assert queue.next(always, 0) == long
    queue.ended(long, input_tokens=250, cached_tokens=0, output_tokens=0, now_ms=0)

    assert drain(queue, 4) == ["b0", "b1", "b2", "a1"]


def test_higher_bands_go_first_and_lower_ones_have_a_floor() -> None:
    queue = FairQueue(cost=FLAT, lowest_band_floor=0.05)
    offer(
        queue,
        *(work(f"high{i}", band=10) for i in range(400)),
        *(work(f"mid{i}", band=5) for i in range(400)),
        *(work(f"low{i}", band=0) for i in range(400)),
    )

    served = drain(queue, 400)
    assert served[0] == "high0"
    shares = [sum(name.startswith(band) for name in served) / 400 for band in ("high", "mid", "low")]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_first_attempts_go_before_retries_of_the_same_tenant() -> None:
    queue = FairQueue()
    offer(queue, work("r", retry=True), work("f0"), work("f1"))

    assert drain(queue) == ["f0", "f1", "r"]


def test_shortest_first_within_a_tenant() -> None:
    queue = FairQueue()
    sizes = {"long": 500, "short": 50, "mid": 100}
    offer(queue, *(work(name, tokens=tokens, shortest_first=True) for name, tokens in sizes.items()))
    offer(queue, *(work(f"b {name}", "b", tokens=tokens) for name, tokens in sizes.items()))

    served = drain(queue)
    assert [name for name in served if name in sizes] == ["short", "mid", "long"]
    assert [name for name in served if name not in sizes] == ["b long", "b short", "b mid"]


def test_a_tenant_that_returns_has_no_credit_from_its_absence() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, *(work(f"a{i}", "a") for i in range(50)))
    drain(queue, 40)
    offer(queue, *(work(f"b{i}", "b") for i in range(20)))

    assert sum(name[0] == "b" for name in drain(queue, 10)) in (5, 6)


def test_a_newcomer_is_lifted_while_others_run_and_none_waits() -> None:
    """Neither does one that ran alone for long wait until others have used as much."""
    queue = FairQueue(cost=FLAT, credit_tokens=500.0)
    for i in range(100):
        running = work(f"alone{i}", "a")
        queue.start(running, 0)
        if i < 98:
            end(queue, running)
    offer(queue, *(work(f"a{i}", "a") for i in range(20)), *(work(f"b{i}", "b") for i in range(20)))

    served = drain(queue, 20)
    assert 10 <= sum(name[0] == "b" for name in served) <= 15


def test_credit_is_bounded_for_a_tenant_that_never_idles() -> None:
    """It has one request running all the time, far below its share, and then asks for everything."""
    queue = FairQueue(cost=FLAT, credit_tokens=1000.0)
    queue.start(work("light"), 0)
    offer(queue, *(work(f"b{i}", "b") for i in range(1000)))
    drain(queue, 500)
    offer(queue, *(work(f"a{i}", "a") for i in range(100)))

    served = drain(queue, 40)
    assert served[:9] == [f"a{i}" for i in range(9)]
    assert sum(name[0] == "b" for name in served[11:]) >= 14


def test_below_share() -> None:
    queue = FairQueue(cost=FLAT)
    assert not queue.below_share(work("x", "light"))
    for i in range(3):
        queue.start(work(f"h{i}", "heavy"), 0)
    queue.start(work("l", "light"), 0)

    assert queue.below_share(work("x", "light"))
    assert queue.below_share(work("x", "unknown"))
    assert not queue.below_share(work("x", "heavy"))
    assert queue.below_share(work("x", "heavy", band=1))


def test_a_tenant_that_was_given_less_is_below_its_share_whatever_it_has_running() -> None:
    """`light` runs more than half at the moment, of less than it could have had."""
    queue = FairQueue(cost=FLAT, credit_tokens=1000.0)
    queue.start(work("l0", "light"), 0)
    offer(queue, *(work(f"h{i}", "heavy") for i in range(100)))
    drain(queue, 100)
    for i in range(1, 6):
        queue.start(work(f"l{i}", "light"), 0)
    queue.start(work("h", "heavy"), 0)

    assert queue.below_share(work("x", "light"))
    for i in range(6, 40):
        queue.start(work(f"l{i}", "light"), 0)
    assert not queue.below_share(work("x", "light"))


def test_a_lone_tenant_is_not_below_its_share() -> None:
    queue = FairQueue()
    queue.start(work("x"), 0)

    assert not queue.below_share(work("y"))


def test_max_share_bounds_what_a_tenant_holds_even_if_the_rest_is_idle() -> None:
    queue = FairQueue()
    queue.sequences = 8
    offer(queue, *(work(f"a{i}", max_share=0.25) for i in range(5)))
    first, second = queue.next(always, 0), queue.next(always, 0)
    assert first is not None
    assert second is not None
    assert queue.next(always, 0) is None

    end(queue, first)
    assert queue.next(always, 0) is not None


def test_a_head_that_does_not_fit_lets_others_pass_but_not_its_own_tenant() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, work("big", "a", tokens=5000), work("a1", "a"), work("b0", "b"))

    got = queue.next(smaller_than(1000), 0)
    assert got is not None
    assert got.id == "b0"
    assert queue.next(smaller_than(1000), 0) is None


def test_a_head_that_was_overtaken_for_long_is_waited_for() -> None:
    """Others are given at most what it costs itself, or 20,000, before it."""
    queue = FairQueue(cost=FLAT)
    offer(queue, work("big", "a", tokens=30_000), *(work(f"b{i}", "b", tokens=1000) for i in range(100)))
    passed = 0
    while (got := queue.next(smaller_than(10_000), 0)) is not None:
        passed += 1
        end(queue, got)
    assert passed == 30

    assert drain(queue, 1) == ["big"]
    assert drain(queue, 1) == ["b30"]


def test_slots_for_those_below_their_share_are_not_taken_from_one_that_is_not() -> None:
    queue = FairQueue(cost=FLAT)
    for i in range(10):
        queue.start(work(f"run{i}", "heavy", tokens=1000), 0)
    offer(queue, work("waits", "heavy", tokens=1000), *(work(f"b{i}", f"t{i}", tokens=1000) for i in range(60)))

    def extra_slots_only(_work: Work, below: bool) -> bool:
        return below

    served = 0
    while (got := queue.next(extra_slots_only, 0)) is not None:
        assert got.tenant != "heavy"
        served += 1
        end(queue, got)
    assert served == 60


def test_a_warm_prefix_goes_out_of_turn_within_bounds() -> None:
    queue = FairQueue(cost=FLAT, locality_tokens=250.0)
    queue.start(work("warm", "w", prefix=7, tokens=1), 0)
    offer(queue, work("c0", "cold", prefix=1), *(work(f"w{i}", f"w{i}", prefix=7) for i in range(5)))

    assert drain(queue, 4) == ["w0", "w1", "c0", "w2"]


def test_locality_off_serves_in_turn() -> None:
    queue = FairQueue(cost=FLAT, locality_tokens=0.0)
    queue.start(work("warm", "w", prefix=7, tokens=1), 0)
    offer(queue, work("c0", "cold", prefix=1), work("w0", "w0", prefix=7))

    assert drain(queue, 1) == ["c0"]


def test_the_bound_of_locality_holds_from_when_it_is_set() -> None:
    """A policy may change it while requests wait."""
    queue = FairQueue(cost=FLAT, locality_tokens=250.0)
    queue.start(work("warm", "w", prefix=7, tokens=1), 0)
    offer(queue, work("c0", "cold", prefix=1), *(work(f"w{i}", f"w{i}", prefix=7) for i in range(5)))
    assert drain(queue, 1) == ["w0"]
    queue.bend(0.0)
    assert drain(queue, 1) == ["c0"]


def busy(queue: FairQueue, *, interval_ms: int = 100, n: int = 20) -> int:
    """Measures a drain rate: one work of cost 100 every `interval_ms`, nothing left. The time after it."""
    offer(queue, *(work(f"busy{i}", "busy") for i in range(n)))
    for i in range(1, n + 1):
        assert len(drain(queue, 1, now_ms=i * interval_ms)) == 1
    return n * interval_ms


def test_refuses_on_arrival_what_would_wait_past_its_deadline() -> None:
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue)
    for i in range(10):
        offer(queue, work(f"a{i}", "a", deadline_ms=now_ms + 5000), now_ms=now_ms)
    turned = queue.offer(work("late", "a", deadline_ms=now_ms + 1000), now_ms)

    assert isinstance(turned, Turned)
    assert turned.predicted_wait_ms == pytest.approx(1100, abs=10)
    assert 1100 <= turned.retry_after_ms <= 1400
    assert len(queue) == 10


def test_what_a_wait_was_predicted_to_be_is_known_when_it_is_over() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, work("first", "a"))
    assert queue.predicted_wait_ms(work("first", "a")) is None
    drain(queue)
    now_ms = busy(queue)
    for i in range(3):
        offer(queue, work(f"a{i}", "a"), now_ms=now_ms)

    last = [queue.next(always, now_ms + 300) for _ in range(3)][2]
    assert last is not None
    assert queue.predicted_wait_ms(last) == pytest.approx(300, abs=10)
    end(queue, last)
    assert queue.predicted_wait_ms(last) is None


def test_what_rounding_leaves_of_running_costs_is_no_drain_rate() -> None:
    """All that ran has ended, in another order than it began."""
    queue = FairQueue()
    works = [work(f"w{i}", tokens=i * i + 1, output=7 * i + 1) for i in range(40)]
    for one in works:
        queue.start(one, 0)
    for number, one in enumerate(sorted(works, key=lambda one: one.id)):
        end(queue, one, 10 * number)
    offer(queue, work("first", "a", deadline_ms=10**15), now_ms=500)

    assert queue.offer(work("second", "a", deadline_ms=10**15), 500) is None


def test_the_wait_is_that_of_the_tenants_own_backlog() -> None:
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue)
    offer(queue, *(work(f"a{i}", "a", deadline_ms=now_ms + 60_000) for i in range(100)), now_ms=now_ms)

    assert queue.offer(work("b0", "b", deadline_ms=now_ms + 200), now_ms) is None
    turned = queue.offer(work("b1", "b", deadline_ms=now_ms + 200), now_ms)
    assert turned is not None
    assert turned.predicted_wait_ms == pytest.approx(300, abs=10)


def test_a_flood_that_waits_in_vain_has_nobody_refused_whose_turn_is_next() -> None:
    """Its own predictions turn out too short; those of tenants who wait for nobody do not."""
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue)
    offer(queue, work("head", "flood", deadline_ms=now_ms + 10**9), now_ms=now_ms)
    for i in range(40):
        offer(queue, work(f"vain{i}", "flood", deadline_ms=now_ms + 4999), now_ms=now_ms)
    assert len(queue.expired(now_ms + 5000)) == 40
    now_ms += 5000

    assert queue.offer(work("more", "flood", deadline_ms=now_ms + 500), now_ms) is not None
    assert queue.offer(work("other", "other", deadline_ms=now_ms + 500), now_ms) is None


def test_retries_are_refused_first() -> None:
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue)
    deadline_ms = now_ms + 450
    offer(queue, work("f0", deadline_ms=deadline_ms), now_ms=now_ms)
    offer(queue, *(work(f"r{i}", retry=True, deadline_ms=deadline_ms) for i in range(3)), now_ms=now_ms)

    assert queue.offer(work("r9", retry=True, deadline_ms=deadline_ms), now_ms) is not None
    assert queue.offer(work("f1", deadline_ms=deadline_ms), now_ms) is None


def test_a_refusal_changes_nothing() -> None:
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue)
    offer(queue, work("a0", deadline_ms=now_ms + 5000), now_ms=now_ms)
    queue.counters()
    assert queue.offer(work("x", "new", weight=5.0, deadline_ms=now_ms), now_ms) is not None

    assert queue.counters() == {}
    assert len(queue) == 1
    assert drain(queue, now_ms=now_ms) == ["a0"]


def test_nothing_is_refused_while_nothing_waits() -> None:
    """However slow it was before."""
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue, interval_ms=10_000)

    assert queue.offer(work("x", deadline_ms=now_ms + 100), now_ms) is None


def test_refused_clients_are_told_different_times() -> None:
    queue = FairQueue(cost=FLAT)
    now_ms = busy(queue)
    offer(queue, *(work(f"a{i}", "a", deadline_ms=now_ms + 2000) for i in range(20)), now_ms=now_ms)
    told = [queue.offer(work(f"late{i}", "a", deadline_ms=now_ms + 500), now_ms) for i in range(50)]

    times = sorted(turned.retry_after_ms for turned in told if turned is not None)
    assert len(times) == 50
    per_second = max(sum(start <= time < start + 1000 for time in times) for start in times)
    assert per_second <= 11, "it serves 10 in a second"
    assert times[0] >= 2000


def test_without_a_rate_the_told_time_doubles_and_comes_down() -> None:
    queue = FairQueue()
    told: list[int] = []
    for now_ms in range(0, 60_000, 100):
        turned = queue.offer(work(f"{now_ms}", deadline_ms=now_ms - 1), now_ms)
        assert turned is not None
        told.append(turned.retry_after_ms)
    assert 1000 <= told[0] < 2000
    assert 32_000 <= told[-1] < 64_000

    turned = queue.offer(work("later", deadline_ms=0), 4_000_000)
    assert turned is not None
    assert turned.retry_after_ms < 2000


def test_expired_ones_are_taken_out_and_told() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, work("soon", "a", deadline_ms=100), work("later", "b", deadline_ms=500))

    expired = queue.expired(101)
    assert [late.id for late, _ in expired] == ["soon"]
    assert expired[0][1].retry_after_ms >= 1000
    assert len(queue) == 1
    assert queue.next(always, 501) is None
    assert [late.id for late, _ in queue.expired(501)] == ["later"]


def test_withdrawn_ones_are_never_dispatched() -> None:
    queue = FairQueue()
    first, second, third = work("1"), work("2"), work("3")
    offer(queue, first, second, third)
    queue.withdraw(second)
    queue.withdraw(second)
    assert len(queue) == 2
    assert drain(queue) == ["1", "3"]


def test_a_requeued_one_goes_first_and_was_not_charged() -> None:
    queue = FairQueue(cost=FLAT)
    offer(queue, work("a0", "a"), work("a1", "a"), work("b0", "b"))
    got = queue.next(always, 0)
    assert got is not None
    assert got.id == "a0"
    queue.requeue(got, 0)

    assert queue.counters() == {}
    assert drain(queue) == ["a0", "b0", "a1"]


def test_gateways_count_what_others_gave() -> None:
    here, there = FairQueue(cost=FLAT), FairQueue(cost=FLAT)
    for i in range(5):
        there.start(work(f"x{i}", "a"), 0)
    given = there.counters()
    assert given == {"0 a": 500.0}
    assert there.counters() == {}

    offer(here, *(work(f"a{i}", "a") for i in range(10)), *(work(f"b{i}", "b") for i in range(10)))
    here.merge(given)
    assert drain(here, 6) == [f"b{i}" for i in range(5)] + ["a0"]


def test_idle_tenants_are_forgotten() -> None:
    queue = FairQueue(cost=FLAT)
    for i in range(20_000):
        each = work(f"{i}", f"tenant {i}")
        offer(queue, each)
        assert queue.next(always, 0) is each
        end(queue, each)
        queue.counters()
    assert queue.load()[0].tenants <= 1024
