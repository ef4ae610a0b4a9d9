"""Hot prefixes: measured, copied to as many replicas as their load takes, and joined again."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from gateway.routing import Booking, Query, Router, prefix_chain
from gateway.routing._heat import EVERY, LEAST, WINDOW, Heat
from tests.unit.routing.test_router import Replica, prompt, query, replicas, serve

HOT = prompt(0, 8000)


def test_shares_are_measured_and_forgotten() -> None:
    """Six of ten requests have a prefix: it is hot to its last block and no further; a while after it is not."""
    heat, rng = Heat(), random.Random(1)
    common = prefix_chain(HOT).blocks
    for number in range(2 * EVERY * WINDOW):
        heat.count(prefix_chain(HOT + prompt(number + 1)).blocks if rng.random() < 0.6 else [number])
    chain = prefix_chain(HOT + prompt(7)).blocks
    assert heat.share(common[-1]) == pytest.approx(0.6, abs=0.1)
    assert heat.depth(chain, 1 / 8) == len(common)
    assert heat.depth(chain, 0.8) == 0
    for number in range(3 * EVERY * WINDOW):
        heat.count([number])
    assert heat.depth(chain, 1 / 8) == 0


def test_nothing_is_hot_of_the_first_few() -> None:
    """The first request has all of the load; that says nothing."""
    heat = Heat()
    for _ in range(LEAST // 2):
        heat.count([1])
    assert heat.depth([1], 1 / 8) == 0


def read(router: Router, booking: Booking) -> None:
    """At 20,000 tokens a second."""
    router.first_token(booking, booking.at_ms + booking.work // 20 + 1)


def run(
    router: Router, targets: list[Replica], share: float, *, requests: int, open_: int
) -> tuple[Counter[str], Counter[str]]:
    """Requests of which a share has the hot prefix, so many open at a time: where all went, and where the hot ones of
    the last fifth."""
    rng, running = random.Random(3), deque[Booking]()
    counts: Counter[str] = Counter()
    late: Counter[str] = Counter()
    for number in range(requests):
        is_hot = rng.random() < share
        text = HOT + prompt(number + 1, 1000) if is_hot else prompt(number + 1, 3000)
        booking = router.choose(query(text), targets, number)
        counts[booking.replica] += 1
        if is_hot and number > 0.8 * requests:
            late[booking.replica] += 1
        running.append(booking)
        if len(running) > 4:
            read(router, running[-4])
        if len(running) > open_:
            router.ended(running.popleft())
    while running:
        router.ended(running.popleft())
    return counts, late


def test_one_prefix_with_most_of_the_load_is_spread_over_as_many_replicas_as_it_takes() -> None:
    """60 % of the requests of eight replicas are the work of five; nobody has more than 1.25 times the mean. When it
    has cooled and there is room, it is one replica's again, though others still hold it."""
    targets, router = replicas(8), Router()
    counts, late = run(router, targets, 0.6, requests=4000, open_=80)
    assert max(counts.values()) <= 1.25 * 4000 / 8
    assert 5 <= len(late) <= 7
    _, late = run(router, targets, 0.02, requests=4000, open_=80)
    assert len(late) > 1
    after = Counter(serve(router, HOT + prompt(number + 50_000, 1000), targets) for number in range(20))
    assert len(after) == 1


def test_a_hot_prefix_with_little_to_do_has_few_copies() -> None:
    """All requests have it, but only one runs at a time: that is one replica's work."""
    targets, router = replicas(8), Router()
    counts, late = run(router, targets, 1.0, requests=600, open_=0)
    assert len(late) <= 2
    assert max(counts.values()) > 500


def test_gateways_agree_on_the_copies() -> None:
    """Two gateways that see different requests of the same load copy to the same replicas."""
    targets = replicas(8)
    found: list[frozenset[str]] = []
    for seed in (1, 2):
        router, rng, at = Router(), random.Random(seed), set[str]()
        running = deque[Booking]()
        for number in range(3000):
            is_hot = rng.random() < 0.35
            text = HOT + b"%d" % rng.getrandbits(60) * 40 if is_hot else b"%d" % rng.getrandbits(60) * 200
            booking = router.choose(query(text), targets, number)
            if is_hot and number > 2000:
                at.add(booking.replica)
            running.append(booking)
            read(router, booking)
            if len(running) > 64:
                router.ended(running.popleft())
        found.append(frozenset(at))
    assert len(found[0] ^ found[1]) <= 1
    assert len(found[0] | found[1]) <= 5


def test_conversations_of_one_hot_system_prompt_go_to_different_replicas() -> None:
    """What is hot decides nothing: who has more in common stays together, by what comes after it."""
    targets, router = replicas(8), Router()
    run(router, targets, 0.9, requests=1500, open_=60)
    for number in range(80):
        read(router, router.choose(query(HOT + prompt(30_000 + number, 1000)), targets, 0))
    homes = Counter[str]()
    for number in range(40):
        text = HOT + prompt(10_000 + number, 2000)
        first = router.choose(query(text), targets, 0)
        router.ended(first)
        asked = Query(chain=prefix_chain(text + prompt(20_000 + number, 500)), prompt_tokens=2600)
        second = router.choose(asked, targets, 0)
        router.ended(second)
        assert second.replica == first.replica
        homes[first.replica] += 1
    assert len(homes) >= 4
