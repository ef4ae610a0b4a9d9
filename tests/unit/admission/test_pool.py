"""Workers that share a replica's knee: who adapts it, and what each makes of what the others told."""

from __future__ import annotations

import pytest

from gateway.admission import FairQueue, Heard, Knee, Pool, Work
from gateway.admission._knee import FIRST_SEQUENCES
from tests.simulation.virtual_pool import Store
from tests.unit.admission import works


class Worker:
    """One worker's part, with one replica."""

    def __init__(self, name: str, store: Store) -> None:
        self.store = store
        self.pool = Pool(name)
        self.queue = FairQueue()
        self.knee = Knee(itl_ms=80)
        self.running: list[str] = []
        self.pool.admit(self.knee)

    def exchanges(self, now_ms: int) -> None:
        knees = {"r": self.knee}
        told = self.pool.told(self.queue, 80, knees)
        answer = self.store.call(self.pool.name, told, self.pool.limits(knees), self.pool.wants(told, knees), now_ms)
        heard = Heard(leads=answer.leads, limits=answer.limits, grants=answer.grants, others=answer.others)
        self.pool.heard(heard, knees, now_ms)

    def runs(self, count: int, now_ms: int, *, tokens: int = 100, tenant: str = "t") -> list[Work]:
        made = [work(f"{self.pool.name} {now_ms} {number}", tokens, tenant) for number in range(count)]
        for one in made:
            self.queue.start(one, now_ms)
            self.knee.dispatched(one, now_ms)
        return made


def work(name: str, tokens: int = 100, tenant: str = "t") -> Work:
    return works.work(name, tenant, input_tokens=tokens)


@pytest.fixture
def pair() -> tuple[Worker, Worker]:
    store = Store()
    a, b = Worker("a", store), Worker("b", store)
    for now_ms in (0, 500, 1000):
        a.exchanges(now_ms)
        b.exchanges(now_ms)
    return a, b


def test_until_it_has_heard_a_worker_takes_a_small_part_and_alone_it_has_all() -> None:
    alone = Worker("a", Store())
    assert alone.knee.allowed.sequences == FIRST_SEQUENCES // 8
    alone.exchanges(0)
    assert alone.knee.allowed == alone.knee.limits
    assert alone.pool.leads


def answers_slowly(leader: Worker, other: Worker) -> None:
    """Four answers at the other one get a token every 90 ms; the leader runs nothing itself."""
    for one in other.runs(4, 1000):
        other.knee.first_token(one.id, 1100)
        other.knee.tokens(one.id, 21, 1100 + 20 * 90)
    other.exchanges(2900)
    leader.exchanges(3000)
    leader.knee.tick(3100, queued=0)


def test_slow_tokens_at_one_worker_lower_the_limit_of_all(pair: tuple[Worker, Worker]) -> None:
    leader, other = pair
    assert leader.pool.leads
    assert not other.pool.leads
    answers_slowly(leader, other)
    leader.exchanges(3200)
    other.exchanges(3300)
    assert leader.knee.limits.sequences < FIRST_SEQUENCES
    assert other.knee.limits == leader.knee.limits
    before = other.knee.limits
    other.knee.tick(3400, queued=5)
    assert other.knee.limits == before


def test_what_another_has_measured_counts_once(pair: tuple[Worker, Worker]) -> None:
    leader, other = pair
    answers_slowly(leader, other)
    lower = leader.knee.limits.sequences
    for now_ms in range(5000, 9000, 1000):
        other.exchanges(now_ms)
        leader.exchanges(now_ms)
        leader.knee.tick(now_ms, queued=0)
    assert leader.pool.leads
    assert leader.knee.limits.sequences == lower < FIRST_SEQUENCES


def test_an_engine_that_tells_one_worker_that_it_is_full_is_full_for_all(pair: tuple[Worker, Worker]) -> None:
    leader, other = pair
    other.runs(6, 1000)
    other.exchanges(1100)
    leader.exchanges(1200)
    other.knee.engine_full(1300)
    other.exchanges(1400)
    leader.exchanges(1500)
    assert leader.knee.limits.sequences == 6
    leader.exchanges(1600)
    other.exchanges(1700)
    assert other.knee.limits.sequences == 6


def test_one_worker_at_a_time_sends_a_prompt_larger_than_all_may_have_read(pair: tuple[Worker, Worker]) -> None:
    a, b = pair
    long = work("long", 20_000)
    assert not a.knee.fits(long, below_share=False)
    assert not b.knee.fits(long, below_share=False)
    a.exchanges(1500)
    b.exchanges(1500)
    assert a.knee.fits(long, below_share=False)
    assert not b.knee.fits(long, below_share=False)
    a.knee.dispatched(long, 1500)
    for now_ms in (2000, 2500, 3000):
        a.exchanges(now_ms)
        b.exchanges(now_ms)
        assert not b.knee.fits(long, below_share=False)
    a.knee.first_token("long", 3000)
    a.exchanges(3500)
    b.exchanges(3500)
    assert b.knee.fits(long, below_share=False)


def test_others_leave_a_replica_alone_while_a_long_prompt_of_another_worker_is_read(
    pair: tuple[Worker, Worker],
) -> None:
    a, b = pair
    a.knee.fits(work("long", 90_000), below_share=False)
    a.exchanges(1500)
    (long,) = a.runs(1, 1500, tokens=90_000, tenant="slow")
    assert b.knee.fits(work("chat"), below_share=False)
    a.exchanges(1600)
    b.exchanges(1700)
    assert not b.knee.fits(work("chat"), below_share=False)
    assert list(b.knee.reading_long) == ["slow"]
    a.knee.first_token(long.id, 6000)
    a.exchanges(6100)
    b.exchanges(6200)
    assert b.knee.fits(work("chat"), below_share=False)
    assert b.knee.is_lane(6300)


def test_a_prompt_larger_than_its_workers_part_is_followed_by_the_next_when_that_part_of_the_rate_has_paid(
    pair: tuple[Worker, Worker],
) -> None:
    """Half of 20,000 tokens a second: 4,000 are owed for 400 ms, of which the engine took 200."""
    _, b = pair
    b.knee.elsewhere(b.knee.load, 20_000.0)
    b.knee.share = b.knee.shared(32, workers=2, lane=False)
    assert b.knee.allowed.prefill_tokens == 2500
    (first,) = b.runs(1, 1000, tokens=4000)
    owed_ms = b.knee.first_token(first.id, 1200)
    assert owed_ms == pytest.approx(200, abs=1)
    assert not b.knee.fits(work("next", 1000), below_share=False)
    b.knee.paid(4000)
    assert b.knee.fits(work("next", 4000), below_share=False)


def test_without_the_store_an_even_part_is_taken_where_the_share_was_less(pair: tuple[Worker, Worker]) -> None:
    _, b = pair
    assert b.knee.allowed.sequences < FIRST_SEQUENCES // 2
    b.pool.lost({"r": b.knee})
    assert b.knee.allowed.sequences == FIRST_SEQUENCES // 2
    alone = Worker("c", Store())
    alone.pool.lost({"r": alone.knee})
    assert alone.knee.allowed.sequences == FIRST_SEQUENCES // 8


def test_of_many_tenants_those_that_want_most_are_told_by_name_and_none_is_left_out(
    pair: tuple[Worker, Worker],
) -> None:
    a, _ = pair
    for number in range(150):
        for nth in range(1 + number % 3):
            a.queue.start(work(f"{number} {nth}", tenant=f"tenant-{number}"), 0)
    told = a.pool.told(a.queue, None, {"r": a.knee}).demand
    assert len(told) == 101
    assert sum(sequences for _, sequences, _ in told.values()) == 300
    assert sum(weight for weight, _, _ in told.values()) == 150
    assert told["0 tenant-2"][1] == 3
    assert told["0  a"][1] == 50
    targets = a.pool.wants(a.pool.told(a.queue, None, {"r": a.knee}), {"r": a.knee})
    assert targets[0][1] == FIRST_SEQUENCES
