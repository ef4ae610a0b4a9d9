"""The index against a plain list of what each replica used last, and its bounds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import PrefixIndex
from gateway.routing._index import GENERATIONS, depth_of


def depth(index: PrefixIndex, blocks: Sequence[int], name: str) -> int:
    return depth_of(index.of(name).mask, index.steps(blocks))


CHAINS = st.lists(st.integers(1, 3), min_size=1, max_size=12)


def chain_of(path: Sequence[int]) -> list[int]:
    """Equal prefixes of paths are equal prefixes of chains."""
    return [hash(tuple(path[:end])) for end in range(1, len(path) + 1)]


@settings(max_examples=60, deadline=None)
@given(noted=st.lists(st.tuples(CHAINS, st.sampled_from("abc")), max_size=20), asked=CHAINS)
def test_each_replica_holds_the_longest_prefix_sent_there(noted: list[tuple[list[int], str]], asked: list[int]) -> None:
    """As long as all fits, exactly what it was sent, whoever else was sent the same."""
    index = PrefixIndex()
    for path, name in noted:
        index.note(chain_of(path), name)
    for name in "abc":
        common = 0
        for path, to in noted:
            if to == name:
                same = [one == other for one, other in zip(path, asked, strict=False)]
                common = max(common, same.index(False) if False in same else len(same))
        assert depth(index, chain_of(asked), name) == common


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), capacity=st.integers(GENERATIONS, 200))
def test_a_replica_never_holds_more_than_it_can(seed: int, capacity: int) -> None:
    """Whatever is sent, its count is that of the blocks found, at most what fits beside the newest generation; who is
    forgotten leaves nothing behind."""
    rng = random.Random(seed)
    index = PrefixIndex()
    index.resize("a", capacity)
    seen: set[int] = set()
    for _ in range(200):
        path = chain_of([rng.randrange(3) for _ in range(rng.randrange(1, 15))])
        seen.update(path)
        name = rng.choice("ab")
        index.note(path, name, unknown=rng.randrange(3) if name == "a" else 0)
        assert index.of("a").count <= capacity + 17
        if rng.random() < 0.02:
            index.forget("b")
    index.forget("b")
    known = [block for block in seen if depth(index, [block], "a")]
    assert len(index) == len(known)
    assert len(known) <= index.of("a").count
    index.forget("a")
    assert len(index) == 0
    assert index.of("a").count == 0


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    """A thousand prompts through a cache of a hundred blocks: the one that comes again and again stays known, and of
    the others at least the last seventy."""
    index = PrefixIndex()
    index.resize("a", 100)
    used = chain_of([7] * 10)
    for number in range(1000):
        index.note([number + 10**6], "a")
        index.note(used, "a")
    assert depth(index, used, "a") == 10
    assert all(depth(index, [number + 10**6], "a") for number in range(930, 1000))
    assert not any(depth(index, [number + 10**6], "a") for number in range(900))


def test_answers_take_room_too() -> None:
    """What an engine caches of answers nobody can name, but it pushes prompts out."""
    index = PrefixIndex()
    index.resize("a", 100)
    index.note([1], "a")
    for number in range(10, 40):
        index.note([number], "a", unknown=4)
    assert not depth(index, [1], "a")
    assert index.of("a").count <= 100


def test_a_smaller_cache_forgets_the_oldest() -> None:
    """An engine that says it caches less than was thought: what was used last is kept."""
    index = PrefixIndex()
    index.resize("a", 1000)
    for number in range(1000):
        index.note([number], "a")
    index.resize("a", 500)
    assert 250 <= index.of("a").count <= 500
    assert depth(index, [999], "a") == 1
    assert depth(index, [0], "a") == 0


def test_who_is_forgotten_takes_nothing_from_the_others() -> None:
    """One replica restarts: the other still holds what both had, and the first one can have it again."""
    index = PrefixIndex()
    blocks = chain_of([1, 2, 3])
    index.note(blocks, "a")
    index.note(blocks, "b")
    index.forget("a")
    assert (depth(index, blocks, "a"), depth(index, blocks, "b")) == (0, 3)
    index.note(blocks[:2], "a")
    assert (depth(index, blocks, "a"), depth(index, blocks, "b")) == (2, 3)
