"""Where long prompts are read, and how many at once."""

from __future__ import annotations

import pytest

from gateway.admission import FairQueue, Knee, is_held, preferred
from tests.unit.admission.works import work


def held(tenant: str, reading: list[str], *, replicas: int = 4, others: bool = True, sequences: int = 10) -> bool:
    return is_held(tenant, reading, replicas=replicas, others=others, sequences=sequences, sequences_most=64 * replicas)


@pytest.mark.parametrize(
    ("replicas", "at_once"),
    [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (8, 4)],
)
def test_a_tenant_reads_long_prompts_at_half_of_the_replicas_while_others_are_there(
    replicas: int, at_once: int
) -> None:
    assert [held("acme", ["acme"] * number, replicas=replicas) for number in range(at_once + 1)] == [
        *([False] * at_once),
        True,
    ]
    assert not held("acme", ["acme"] * (replicas - 1), replicas=replicas, others=False), "alone it has all of them"


def test_long_prompts_of_many_tenants_leave_one_replica() -> None:
    assert not held("c", ["a", "b"])
    assert held("d", ["a", "b", "c"])


def test_a_second_long_prompt_is_read_only_where_the_other_replicas_have_room_for_what_runs() -> None:
    """Two replicas of four with 64 places each are left, of which half may be taken."""
    assert not held("b", ["a"], sequences=64)
    assert held("b", ["a"], sequences=65)
    assert not held("b", [], sequences=200), "the first one is always read"


def test_long_prompts_go_to_a_lane_and_others_beside_them() -> None:
    assert preferred([False, True, False], is_long=False) == [0, 2]
    assert preferred([False, True, False], is_long=True) == [1]
    assert preferred([True, True], is_long=False) == [0, 1], "where there is nothing else"
    assert preferred([False, False], is_long=True) == [0, 1]


def test_a_replica_stays_a_lane_for_a_while() -> None:
    knee = Knee(itl_ms=80)
    long = work("long", input_tokens=100_000)
    assert knee.is_long(long)
    assert not knee.is_long(work("warm", input_tokens=100_000, cached_tokens=90_000))
    knee.dispatched(long, 0)
    assert list(knee.reading_long) == ["acme"]
    assert knee.is_lane(5000)
    knee.first_token("long", 7000)
    assert not knee.reading_long
    assert knee.is_lane(16_999)
    assert not knee.is_lane(17_000)
    knee.ended("long", 20_000)
    assert not knee.is_lane(20_000)


def test_a_long_prompt_that_ends_before_its_first_token_is_read_no_more() -> None:
    knee = Knee(itl_ms=80)
    knee.dispatched(work("long", input_tokens=100_000), 0)
    knee.ended("long", 1000)
    assert not knee.reading_long


class Beside:
    """A replica that reads a long prompt from 0 ms to 7 s, and may be asked whether it takes a short one."""

    def __init__(self) -> None:
        self.knee = Knee(itl_ms=80)
        self.long(0)

    def long(self, now_ms: int) -> None:
        self.knee.dispatched(work(f"long{now_ms}", input_tokens=100_000), now_ms)

    def chat(self, sent_ms: int, first_ms: int | None = None) -> None:
        self.knee.dispatched(work(f"chat{sent_ms}", input_tokens=1000), sent_ms)
        if first_ms is not None:
            self.knee.first_token(f"chat{sent_ms}", first_ms)

    def takes(self, tokens: int = 1000, *, tries: bool = False) -> bool:
        return self.knee.fits(work("next", input_tokens=tokens), below_share=False, tries=tries)


def test_one_prompt_tries_whether_an_engine_reads_it_beside_a_long_one() -> None:
    replica = Beside()
    assert not replica.takes()
    assert replica.takes(tries=True)
    replica.chat(100)
    assert not replica.takes(tries=True), "the next one waits for what it finds"
    replica.knee.first_token("chat100", 250)
    assert replica.takes()
    assert not replica.takes(30_000), "there is one long prompt at a time"


def test_beside_a_long_prompt_half_of_p_may_be_read() -> None:
    replica = Beside()
    replica.chat(100, 250)
    assert replica.takes(2500)
    assert not replica.takes(2501)
    replica.chat(300)
    assert replica.takes(1500)
    assert not replica.takes(1501)
    assert replica.knee.limits.prefill_tokens == 5000, "what is read beside a long prompt says nothing of the rate"


def test_an_engine_that_lets_a_prompt_wait_behind_a_long_one_is_sent_no_more_there() -> None:
    replica = Beside()
    replica.chat(100)
    replica.knee.first_token("long0", 7000)
    replica.knee.first_token("chat100", 7050)
    replica.long(8000)
    assert not replica.takes(tries=True)


def test_a_first_token_together_with_the_long_prompts_proves_nothing() -> None:
    replica = Beside()
    replica.chat(6500, 6990)
    replica.knee.first_token("long0", 7000)
    replica.long(8000)
    assert not replica.takes()
    assert replica.takes(tries=True)


def test_an_engine_started_without_the_flag_is_found_out() -> None:
    replica = Beside()
    replica.chat(100, 250)
    replica.knee.first_token("long0", 7000)
    replica.long(8000)
    assert replica.takes()
    replica.chat(8100)
    replica.knee.first_token("long8000", 15_000)
    replica.knee.first_token("chat8100", 15_050)
    replica.long(16_000)
    assert not replica.takes(tries=True)


def test_steps_that_a_long_prompt_makes_long_are_told_and_do_not_lower_n() -> None:
    """Two seconds of 400 ms a token while 100,000 tokens are read: N stays, and the time is there to be told."""
    knee = Knee(itl_ms=80)
    for i in range(32):
        knee.dispatched(work(f"w{i}", input_tokens=10, output_tokens=1000), 0)
        knee.first_token(f"w{i}", 1)
    knee.dispatched(work("long", input_tokens=100_000), 500)
    for second in (1, 3, 5):
        for i in range(32):
            knee.tokens(f"w{i}", 1 + int(second * 2.5), second * 1000)
        knee.tick(second * 1000, queued=1)
    assert knee.limits.sequences == 64
    assert knee.itl_beside_ms == pytest.approx(400, rel=0.01)


def test_at_the_only_replica_long_prompts_have_half_of_the_time() -> None:
    """One was read for 7 s, and others could not be beside it: the next waits for 7 s, unless its tenant is alone."""
    knee = Knee(itl_ms=80)
    knee.dispatched(work("long", input_tokens=100_000), 0)
    assert knee.long_ends_ms(1000) == 5000, "at 20,000 tokens a second"
    knee.first_token("long", 7000)
    assert [knee.rests(now_ms) for now_ms in (7000, 13_999, 14_000)] == [True, True, False]
    assert knee.long_ends_ms(8000) == 14_000
    alone, beside, elsewhere = (
        is_held("acme", [], replicas=replicas, others=others, sequences=0, sequences_most=64, rests=True)
        for replicas, others in ((1, False), (1, True), (2, True))
    )
    assert (alone, beside, elsewhere) == (False, True, False)


def test_a_held_prompt_keeps_nobody_waiting_however_much_goes_before_it() -> None:
    """Others are given ten times what it costs, and it goes when it is held no longer."""
    queue = FairQueue()
    held = True
    queue.is_held = lambda one: held and one.tenant == "long"
    assert queue.has_others("chat") is False
    queue.offer(work("long", "long", input_tokens=50_000), 0)
    assert queue.has_others("chat")
    assert not queue.has_others("long")
    for number in range(1000):
        queue.offer(work(f"chat{number}", "chat", input_tokens=500), number)
        served = queue.next(lambda one, below: True, number)
        assert served is not None
        assert served.tenant == "chat"
        queue.ended(served, input_tokens=500, cached_tokens=0, output_tokens=100, now_ms=number)
    held = False
    served = queue.next(lambda one, below: True, 2000)
    assert served is not None
    assert served.tenant == "long"
