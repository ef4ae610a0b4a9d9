"""Placement: where the first token is expected soonest, and every booking released."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import Booking, Loads, Query, Router, prefix_chain


@dataclass(frozen=True)
class Replica:
    name: str


def replicas(count: int) -> list[Replica]:
    return [Replica(f"10.0.0.{number}:8000") for number in range(count)]


def query(text: bytes, *, streams: bool = True) -> Query:
    return Query(chain=prefix_chain(text), prompt_tokens=max(1, len(text) // 4), streams=streams)


def prompt(number: int, size: int = 4000) -> bytes:
    return (b"prompt %d " % number * size)[:size]


def serve(router: Router, text: bytes, targets: list[Replica]) -> str:
    """One request that has ended before the next comes."""
    booking = router.choose(query(text), targets, 0)
    router.first_token(booking, 100)
    router.ended(booking)
    return booking.replica


def is_idle(router: Router, targets: list[Replica]) -> bool:
    loads = [router.loads.of(target.name) for target in targets]
    return all(load.waiting == 0 and load.running == 0 for load in loads)


ACTS = st.lists(
    st.tuples(st.sampled_from(["choose", "whole", "first", "end", "lose"]), st.integers(0, 99)), max_size=80
)


@settings(max_examples=80, deadline=None)
@given(acts=ACTS)
def test_every_booking_is_released_on_every_way_out(acts: list[tuple[str, int]]) -> None:
    """After any schedule of picks, first tokens, cancels and errors, each as often as you like and in any order, all
    counters are 0, and none was below it."""
    targets, router = replicas(3), Router()
    bookings: list[Booking] = []
    for now_ms, (act, number) in enumerate(acts):
        if act in ("choose", "whole"):
            asked = query(prompt(number, 100 * (number + 1)), streams=act == "choose")
            bookings.append(router.choose(asked, targets[: 1 + number % 3], 10 * now_ms))
        elif bookings:
            booking = bookings[number % len(bookings)]
            if act == "first":
                router.first_token(booking, 10 * now_ms)
            elif act == "end":
                router.answered(booking, input_tokens=100, cached_tokens=number, output_tokens=10)
                router.ended(booking)
            else:
                router.ended(booking)
                router.restarted(booking.replica)
        for target in targets:
            load = router.loads.of(target.name)
            assert load.waiting >= 0
            assert load.running >= 0
    for booking in bookings:
        router.ended(booking)
    assert is_idle(router, targets)


def test_a_conversation_stays_where_it_began() -> None:
    """Each turn prolongs the prompt; its blocks are where the turns before ran, whatever rendezvous would say."""
    targets, router = replicas(5), Router()
    text = b""
    homes = set()
    for turn in range(20):
        text += b"turn %d " % turn * 60
        homes.add(serve(router, text, targets))
    assert len(homes) == 1


def test_a_warm_prefix_is_left_when_waiting_there_costs_more_than_reading_it_anew() -> None:
    """Prompts of one prefix stay together while the tokens that wait before them are fewer than those they save."""
    targets, router = replicas(2), Router()
    text = prompt(1, 16_000)
    home = serve(router, text, targets)
    there = [router.choose(query(text + prompt(number, 4000)), targets, 0).replica for number in range(12)]
    assert there[:3] == [home] * 3
    assert set(there) == {target.name for target in targets}


def test_a_burst_is_spread_before_any_first_token() -> None:
    """A pick is booked before the next decision: sixteen unseen prompts at once are two for each of eight replicas."""
    targets, router = replicas(8), Router()
    there = Counter(router.choose(query(prompt(number)), targets, 0).replica for number in range(16))
    assert sorted(there.values()) == [2] * 8


def test_gateways_agree_without_talking() -> None:
    """A prefix nobody has goes to the same replica from every gateway, in whatever order they know the replicas."""
    targets = replicas(5)
    shuffled = random.Random(7).sample(targets, 5)
    for number in range(100):
        assert serve(Router(), prompt(number), targets) == serve(Router(), prompt(number), shuffled)


def test_unseen_prefixes_spread_though_only_one_runs_at_a_time() -> None:
    """5,000 prefixes one after the other on 5 replicas: each has its share within a tenth."""
    targets = replicas(5)
    router = Router()
    counts = Counter(serve(router, prompt(number, 300), targets) for number in range(5000))
    assert len(counts) == 5
    assert all(900 < count < 1100 for count in counts.values()), counts


def test_a_lost_replicas_prefixes_spread_over_all_that_remain() -> None:
    """Who is gone hands its prefixes to the next in rendezvous order, never all to one; nobody else's move."""
    targets = replicas(5)
    before = {n: serve(Router(), prompt(n, 300), targets) for n in range(3000)}
    lost, *rest = targets
    after = {n: serve(Router(), prompt(n, 300), rest) for n in range(3000)}
    assert all(after[n] == name for n, name in before.items() if name != lost.name)
    heirs = Counter(after[n] for n, name in before.items() if name == lost.name)
    share = sum(heirs.values()) / 4
    assert len(heirs) == 4
    assert all(0.7 * share < count < 1.3 * share for count in heirs.values()), heirs


def test_an_owner_that_is_gone_is_replaced() -> None:
    """The index may remember a replica that no longer serves; then the prefix is as good as unseen."""
    targets, router = replicas(3), Router()
    router.note_elsewhere(prefix_chain(prompt(1)).blocks, "gone:1")
    assert serve(router, prompt(1), targets) == serve(Router(), prompt(1), targets)


def test_a_restarted_replica_is_cold() -> None:
    """Nothing is expected to be cached there any more; the others keep theirs."""
    targets, router = replicas(2), Router()
    text = prompt(1)
    home = serve(router, text, targets)
    assert {one.replica: one.cached_tokens > 0 for one in router.expect(query(text), targets, 0)} == {
        target.name: target.name == home for target in targets
    }
    router.restarted(home)
    assert [one.cached_tokens for one in router.expect(query(text), targets, 0)] == [0, 0]


def test_what_other_gateways_have_and_hold_counts() -> None:
    """Their load keeps prompts away, their placements draw them."""
    targets, router = replicas(2), Router()
    first = serve(Router(), prompt(1), targets)
    other = next(target.name for target in targets if target.name != first)
    router.beside(first, 50_000, 3)
    assert serve(router, prompt(1), targets) == other
    router = Router()
    router.note_elsewhere(prefix_chain(prompt(1)).blocks, other)
    assert serve(router, prompt(1), targets) == other


def test_expectations_are_in_tokens_and_milliseconds() -> None:
    """Half of a prompt of 2,000 tokens is cached where the first half ran, and costs a twelfth of what reading it does;
    elsewhere all of it is read, at the rate of 20,000 tokens a second that is assumed of replicas that nobody knows
    yet."""
    targets, router = replicas(2), Router()
    text = prompt(1, 8192)
    home = serve(router, text[:4096], targets)
    there, elsewhere = sorted(router.expect(query(text), targets, 0), key=lambda one: one.replica != home)
    assert (there.cached_tokens, elsewhere.cached_tokens) == (1024, 0)
    assert there.ttft_ms == 57
    assert elsewhere.ttft_ms == 104


def test_the_prefill_rate_is_learnt_replica_by_replica() -> None:
    """One that reads twice as fast is sent twice as many tokens at once."""
    targets, router = replicas(2), Router()
    for number in range(20):
        for target, took_ms in zip(targets, (100, 200), strict=True):
            booking = router.choose(query(prompt(number, 8192)), [target], 0)
            router.first_token(booking, took_ms)
            router.ended(booking)
    there = Counter(router.choose(query(prompt(100 + n, 8192)), targets, 0).replica for n in range(30))
    assert there[targets[0].name] == 20


def test_answers_that_come_whole_are_taken_for_read_when_they_should_be() -> None:
    """Their first bytes come at their end; until then their prompts are not taken to be still waiting."""
    targets, router = replicas(1), Router()
    booking = router.choose(query(prompt(1), streams=False), targets, 0)
    assert router.expect(query(prompt(2)), targets, booking.expected.ttft_ms - 1)[0].waiting_tokens > 0
    assert router.expect(query(prompt(2)), targets, booking.expected.ttft_ms)[0].waiting_tokens == 0
    router.ended(booking)
    assert is_idle(router, targets)


def test_models_that_share_replicas_share_their_loads() -> None:
    """Two adapters on one engine: what one has waiting there the other waits for too."""
    targets, loads = replicas(2), Loads()
    one, two = Router(loads), Router(loads)
    booked = one.choose(query(prompt(1)), targets, 0)
    assert two.choose(query(prompt(1)), targets, 0).replica != booked.replica


def test_what_others_had_waiting_has_been_read_for_as_long_as_it_took_to_hear_of_it() -> None:
    """At 20,000 tokens a second 2,000 take a tenth of a second, which is how old what is heard is."""
    router, target = Router(), replicas(1)
    for waiting, expected_ms in ((2000, 0), (2001, 0), (6000, 200)):
        router.beside(target[0].name, waiting, 0)
        [expected] = router.expect(query(b"Hi"), target, 0)
        assert expected.ttft_ms == expected_ms
    router.beside(target[0].name, 0, 0)
    assert is_idle(router, target)


def test_a_prefix_that_is_hot_at_other_gateways_is_copied_here_too() -> None:
    """Forty of the others' running requests begin alike, and have all gone to one replica. That has a short queue of
    another's: who begins so goes beside it, since the prefix will be needed there."""
    targets = replicas(4)
    hot, rest = prompt(0, 8192), [b"and question %d" % number for number in range(200)]

    def placed(running: int) -> str:
        router = Router()
        home = max(targets, key=lambda target: router.weight(prefix_chain(hot).blocks[0], target.name)).name
        for text in rest:
            router.note_elsewhere(prefix_chain(hot + text * 20).blocks, home)
        for target in targets:
            router.beside(target.name, 0, running)
        router.beside(home, 2600, running)
        chosen = router.choose(query(hot + b"and one more " * 20), targets, 0).replica
        return "home" if chosen == home else "beside it"

    assert [placed(0), placed(10)] == ["home", "beside it"]


def test_a_busy_replica_takes_no_copy_that_spares_less_than_it_holds_up() -> None:
    """A prompt of 1,000 tokens waits 75 ms where it is cached rather than be read in 50 ms where 12 answers run; an
    idle replica reads it at once."""
    for streams, stays in ((12, True), (0, False)):
        targets, router = replicas(2), Router()
        home = serve(router, prompt(1), targets)
        there, elsewhere = sorted(targets, key=lambda target: target.name != home)
        for number in range(streams):
            for target in targets:
                router.first_token(router.choose(query(prompt(10 + number, 40)), [target], 0), 5)
        router.choose(query(prompt(2, 6000)), [there], 10)
        assert (router.choose(query(prompt(1)), [elsewhere, there], 10).replica == home) is stays


def test_beside_other_gateways_a_small_difference_decides_nothing() -> None:
    """All of them would send what comes in this moment to the same replica; 20 ms more is hardly worse."""
    targets = replicas(3)

    def chosen(running: int, waiting: int) -> set[str]:
        places = set()
        for number in range(20):
            router = Router()
            for target, work in zip(targets, (0, waiting, waiting), strict=True):
                router.beside(target.name, 0, running)
                router.loads.of(target.name).add(work, 0)
            for again in range(1 + number):
                query_of = query(prompt(100 * number + again))
                booking = router.choose(query_of, targets, 0)
                router.ended(booking)
            places.add(booking.replica)
        return places

    first = targets[0].name
    assert chosen(running=5, waiting=200) == {target.name for target in targets}
    assert chosen(running=5, waiting=1000) == {first}
    assert chosen(running=0, waiting=200) == {first}
