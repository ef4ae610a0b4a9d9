"""Eight gateways over the same replicas, each turn of a conversation at any of them, against one gateway."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.routing import Seen
from loadtest.routing.gateways import Gateways, run
from loadtest.routing.workloads import chat, hot

CHAT = replace(chat(1, per_s=9.0, until_s=8.0, turns=4), replicas=3)


def share_after(seen: Seen, since_s: float) -> float:
    """The cached share of what came from then on."""
    asked = [one for one in seen.asked if one.arrived_s >= since_s]
    return sum(one.cached_tokens for one in asked) / sum(one.text.tokens for one in asked)


@pytest.fixture(scope="module")
def one() -> Seen:
    """What one gateway makes of it."""
    return run(CHAT, gateways=1)[0]


@pytest.fixture(scope="module")
def eight() -> tuple[Seen, Gateways]:
    """What eight do that tell each other."""
    return run(CHAT, gateways=8)


def test_eight_gateways_find_as_much_cached_as_one(one: Seen, eight: tuple[Seen, Gateways]) -> None:
    assert eight[0].cached_share >= 0.95 * one.cached_share
    assert eight[0].computed_tokens <= 1.1 * one.computed_tokens


def test_eight_that_tell_each_other_nothing_have_a_fifth_more_to_read(one: Seen) -> None:
    assert run(CHAT, gateways=8, shares=False)[0].computed_tokens >= 1.2 * one.computed_tokens


def test_what_they_tell_is_a_few_hundred_bytes_a_request(eight: tuple[Seen, Gateways]) -> None:
    seen, gateways = eight
    assert (gateways.placed.told_bytes + gateways.held.told_bytes) / len(seen.asked) < 400


def test_a_gateway_that_starts_in_the_middle_does_not_dent_it(eight: tuple[Seen, Gateways]) -> None:
    joined = run(CHAT, gateways=8, joins_s=(4.0,))[0]
    assert share_after(joined, 4.0) >= 0.98 * share_after(eight[0], 4.0)


def test_a_prefix_with_sixty_percent_of_the_load_does_not_pile_up() -> None:
    seen = run(hot(1, per_s=100.0, until_s=8.0), gateways=8)[0]
    assert seen.imbalance <= 1.25
    assert seen.cached_share > 0.75
