"""Refusals that come in floods: which are events of their own, and what the others add up to."""

from __future__ import annotations

from msgspec import structs

from gateway.errors import RefusedBy
from gateway.metering import UsageEvent, usage_sums
from gateway.metering import _floods as floods

NOW_MS = 1_789_948_800_000
BY = RefusedBy(dimension="requests_per_minute", limit=60, asked=1, retry_after_ms=700)


def refusal(number: int, *, key: str = "ci", by: RefusedBy | None = BY) -> UsageEvent:
    return UsageEvent(
        id=f"r{number}",
        tenant="acme",
        key=key,
        model="tiny",
        endpoint="chat",
        status="refused",
        code="rate_limit_exceeded",
        arrived_ms=NOW_MS + number,
        ended_ms=NOW_MS + number,
        refused_by=by,
    )


def counts(flood: floods.Floods, event: UsageEvent) -> bool:
    return flood.counts(event, event.id, event.ended_ms)


def test_the_first_of_a_second_are_events_of_their_own_and_the_others_one_that_counts_them() -> None:
    flood = floods.Floods()
    counted = [counts(flood, refusal(number)) for number in range(floods.EACH_PER_S + 30)]
    assert counted == [False] * floods.EACH_PER_S + [True] * 30
    first = refusal(floods.EACH_PER_S)
    assert flood.due() == [structs.replace(first, count=30, ended_ms=first.ended_ms + 29)]
    assert flood.due() == []
    assert not counts(flood, refusal(900)), "the next second's first ones are told again"


def test_refusals_of_another_key_or_by_another_rule_are_not_counted_with_them() -> None:
    """The numbers of a rule change from one to the next, and tell nothing apart."""
    flood = floods.Floods()
    for number in range(floods.EACH_PER_S):
        counts(flood, refusal(number))
    assert not counts(flood, refusal(1, key="other"))
    assert not counts(flood, refusal(1, by=structs.replace(BY, scope="key ci")))
    assert not counts(flood, refusal(1, by=structs.replace(BY, dimension="tokens_per_minute")))
    assert counts(flood, refusal(1, by=structs.replace(BY, retry_after_ms=650)))


def test_a_flood_is_told_of_by_the_id_and_time_of_the_first_that_is_only_counted() -> None:
    """Also where all are told to be like one that has an event of its own."""
    flood = floods.Floods()
    for number in range(floods.EACH_PER_S + 2):
        flood.counts(refusal(0), f"r{number}", NOW_MS + number)
    (told,) = flood.due()
    first = floods.EACH_PER_S
    assert (told.id, told.arrived_ms - NOW_MS, told.ended_ms - NOW_MS, told.count) == (f"r{first}", first, first + 1, 2)


def test_usage_counts_each_refusal_of_a_flood() -> None:
    (minute, *_) = usage_sums([refusal(1), structs.replace(refusal(2), count=4812)])
    assert list(minute[2].values()) == [4813]
