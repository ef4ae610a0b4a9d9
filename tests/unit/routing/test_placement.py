"""Placement: warm prefixes kept together, no replica over its bound, a lost replica's prefixes on all that remain."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import PrefixIndex, choose, prefix_chain
from gateway.routing._placement import LOAD_FACTOR, LOAD_FREE
from gateway.routing._prefix import BLOCK_BYTES, MAX_BLOCKS


@dataclass
class Replica:
    name: str
    in_flight: int = 0


def replicas(count: int) -> list[Replica]:
    return [Replica(f"10.0.0.{number}:8000") for number in range(count)]


LOADS = st.lists(st.integers(0, 200), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(loads=LOADS, prompt=st.binary(max_size=2000), owner=st.integers(0, 11))
def test_the_chosen_ones_load_is_within_the_bound(loads: list[int], prompt: bytes, owner: int) -> None:
    """Warm or not, nobody gets a request who has more than 1.25 times the even share (but for a few free ones)."""
    targets = [Replica(f"r{number}", load) for number, load in enumerate(loads)]
    chain, index = prefix_chain(prompt), PrefixIndex()
    index.note(chain, f"r{owner}")
    chosen = choose(chain, index, targets)
    bound = max(LOAD_FREE, LOAD_FACTOR * (sum(loads) + 1) / len(loads) + 1)
    assert chosen.in_flight < bound or len(targets) == 1
    if owner < len(loads) and loads[owner] < LOAD_FREE:
        assert chosen.name == f"r{owner}", "a warm prefix is kept while its replica is nearly idle"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 8))
def test_running_load_never_leaves_the_bound(seed: int, count: int) -> None:
    """A thousand requests, most of them with one hot prefix, some of which end: the bound holds all the time."""
    rng = random.Random(seed)
    targets, index = replicas(count), PrefixIndex()
    hot = b"h" * 1000
    for number in range(1000):
        chain = prefix_chain(hot if rng.random() < 0.8 else b"%d" % number * 300)
        chosen = choose(chain, index, targets)
        index.note(chain, chosen.name)
        chosen.in_flight += 1
        total = sum(target.in_flight for target in targets)
        assert chosen.in_flight <= max(LOAD_FREE, LOAD_FACTOR * total / count + 1)
        if rng.random() < 0.6:
            running = [target for target in targets if target.in_flight]
            rng.choice(running).in_flight -= 1


def test_a_conversation_stays_where_it_began() -> None:
    """Each turn prolongs the prompt; its blocks are where the turns before ran, whatever rendezvous would say."""
    targets, index = replicas(5), PrefixIndex()
    prompt = b""
    homes = set()
    for turn in range(20):
        prompt += b"turn %d " % turn * 60
        chain = prefix_chain(prompt)
        chosen = choose(chain, index, targets)
        index.note(chain, chosen.name)
        homes.add(chosen.name)
    assert len(homes) == 1


def test_gateways_agree_without_talking() -> None:
    """A prefix nobody has goes to the same replica from every gateway, in whatever order they know the replicas."""
    targets = replicas(5)
    shuffled = random.Random(7).sample(targets, 5)
    for number in range(100):
        chain = prefix_chain(b"prompt %d" % number)
        assert choose(chain, PrefixIndex(), targets).name == choose(chain, PrefixIndex(), shuffled).name


def test_unseen_prefixes_spread() -> None:
    """5,000 prefixes on 5 replicas: each has its share within a tenth."""
    targets = replicas(5)
    counts = Counter(choose(prefix_chain(b"%d" % n), PrefixIndex(), targets).name for n in range(5000))
    assert len(counts) == 5
    assert all(900 < count < 1100 for count in counts.values()), counts


def test_a_lost_replicas_prefixes_spread_over_all_that_remain() -> None:
    """Who is gone hands its prefixes to the next in rendezvous order, never all to one; nobody else's move."""
    targets = replicas(5)
    before = {n: choose(prefix_chain(b"%d" % n), PrefixIndex(), targets).name for n in range(5000)}
    lost, *rest = targets
    after = {n: choose(prefix_chain(b"%d" % n), PrefixIndex(), rest).name for n in range(5000)}
    assert all(after[n] == name for n, name in before.items() if name != lost.name)
    heirs = Counter(after[n] for n, name in before.items() if name == lost.name)
    share = sum(heirs.values()) / 4
    assert len(heirs) == 4
    assert all(0.75 * share < count < 1.25 * share for count in heirs.values()), heirs


def test_an_owner_that_is_gone_is_replaced() -> None:
    """The index may remember a replica that no longer serves; then the prefix is as good as unseen."""
    targets, index = replicas(3), PrefixIndex()
    chain = prefix_chain(b"x" * 1000)
    index.note(chain, "gone:1")
    assert choose(chain, index, targets) is choose(chain, PrefixIndex(), targets)


@given(prompt=st.binary(max_size=5000), more=st.binary(max_size=1000))
def test_a_longer_prompt_has_the_shorter_ones_chain(prompt: bytes, more: bytes) -> None:
    """Equal hashes mean equal prefixes: whole blocks are shared, and the chain grows only at its end."""
    chain, longer = prefix_chain(prompt), prefix_chain(prompt + more)
    if len(prompt) >= BLOCK_BYTES:
        assert longer[: len(chain)] == chain
    assert 1 <= len(longer) <= MAX_BLOCKS


@given(prompt=st.binary(min_size=BLOCK_BYTES, max_size=3000), at=st.integers(0, 2999))
def test_one_byte_changes_the_chain_from_there(prompt: bytes, at: int) -> None:
    """A different byte makes its block and all after it different, and none before."""
    at %= len(prompt) // BLOCK_BYTES * BLOCK_BYTES
    other = prompt[:at] + bytes([prompt[at] ^ 1]) + prompt[at + 1 :]
    one, two = prefix_chain(prompt), prefix_chain(other)
    block = at // BLOCK_BYTES
    assert one[:block] == two[:block]
    assert all(a != b for a, b in zip(one[block:], two[block:], strict=True))


def test_the_index_is_bounded_and_forgets_the_oldest() -> None:
    """Beyond its bound the least recently used blocks go; those in use stay."""
    index = PrefixIndex(max_blocks=10)
    used = prefix_chain(b"used")
    index.note(used, "a")
    for number in range(100):
        index.note(prefix_chain(b"%d" % number), "b")
        index.note(used, "a")
        assert len(index) <= 10
    assert index.owner(used) == "a"
    assert index.owner(prefix_chain(b"0")) is None
    assert index.owner(prefix_chain(b"99")) == "b"


def test_a_prefix_stays_known_and_warm_until_its_generation_goes() -> None:
    """A generation's turn forgets nothing that was used in it; the next turn does, unless it was used again."""
    index = PrefixIndex(max_blocks=10)
    prompt = b"used"
    chain = prefix_chain(prompt)
    index.note(chain, "a")
    for number in range(5):
        index.note(prefix_chain(b"%d" % number), "b")
    assert index.owner(chain) == "a"
    assert index.warm_bytes(chain, "a", len(prompt)) == len(prompt)
    index.note(chain, "b")
    assert index.warm_bytes(chain, "a", len(prompt)) == 0
    for number in range(10):
        index.note(prefix_chain(b"%d" % number), "b")
    assert index.owner(chain) is None
