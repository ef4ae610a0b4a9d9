"""Where long prompts are read, and how many at once."""

from __future__ import annotations

import pytest

from gateway.admission import FairQueue, Knee, Work, is_held, preferred
from tests.unit.admission.test_knee import work


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


def of(tenant: str, name: str, tokens: int = 100) -> Work:
    return Work(
        id=name,
        tenant=tenant,
        band=0,
        weight=1.0,
        input_tokens=tokens,
        cached_tokens=0,
        output_tokens=100,
        retry=False,
        arrived_ms=0,
        deadline_ms=60_000,
    )


def test_a_held_prompt_keeps_nobody_waiting_however_much_goes_before_it() -> None:
    """Others are given ten times what it costs, and it goes when it is held no longer."""
    queue = FairQueue()
    held = True
    queue.is_held = lambda one: held and one.tenant == "long"
    assert queue.has_others("chat") is False
    queue.offer(of("long", "long", 50_000), 0)
    assert queue.has_others("chat")
    assert not queue.has_others("long")
    for number in range(1000):
        queue.offer(of("chat", f"chat{number}", 500), number)
        served = queue.next(lambda one, below: True, number)
        assert served is not None
        assert served.tenant == "chat"
        queue.ended(served, input_tokens=500, cached_tokens=0, output_tokens=100, now_ms=number)
    held = False
    served = queue.next(lambda one, below: True, 2000)
    assert served is not None
    assert served.tenant == "long"
