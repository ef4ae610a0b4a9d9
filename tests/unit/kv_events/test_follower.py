"""From engines' events to what an index of bytes holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.kv_events import (
    Cleared,
    EngineCache,
    EventStream,
    Follower,
    Next,
    Removed,
    Stored,
    block_names,
    extra_key,
)
from gateway.kv_events._stream import SILENT_MS
from gateway.routing import PrefixIndex
from gateway.routing._index import depth_of

SIZE = 2
TOKENS = [11, 12, 13, 14, 15, 16, 17, 18]
BLOCKS = [101, 102, 103, 104]
"""Of bytes: one for each block of two tokens, where a token has four bytes and a block eight."""


def stored(
    hashes: Sequence[int], tokens: Sequence[int], parent: int | None = None, extra: Sequence[bytes] | None = None
) -> Stored:
    return Stored(
        hashes=list(hashes),
        parent=parent,
        token_ids=list(tokens),
        block_size=SIZE,
        extra=list(extra or [b""] * len(hashes)),
        group=0,
        whole=True,
    )


class Held:
    """An index that only remembers."""

    def __init__(self) -> None:
        self.blocks: dict[str, set[int]] = {}

    def note(self, blocks: Sequence[int], name: str) -> None:
        self.blocks.setdefault(name, set()).update(blocks)

    def remove(self, blocks: Iterable[int], name: str) -> None:
        self.blocks.setdefault(name, set()).difference_update(blocks)

    def forget(self, name: str) -> None:
        self.blocks.pop(name, None)


def learn(follower: Follower, *, salt: bytes = b"") -> None:
    follower.learn(TOKENS, BLOCKS, text_bytes=32, block_bytes=8, salt=salt)


def test_blocks_have_the_same_names_whichever_engine_stored_them_and_in_however_many_events() -> None:
    one, other = EngineCache(), EngineCache()
    named = one.apply(stored([1, 2, 3, 4], TOKENS)).stored
    assert named == block_names(TOKENS, SIZE)
    assert (
        other.apply(stored([71], TOKENS[:2])).stored + other.apply(stored([72, 73, 74], TOKENS[2:], 71)).stored == named
    )


def test_blocks_of_another_salt_or_lora_have_other_names() -> None:
    salted = EngineCache().apply(stored([1, 2], TOKENS[:4], extra=[extra_key("pepper"), b""])).stored
    assert salted == block_names(TOKENS[:4], SIZE, first_extra=extra_key("pepper"))
    assert not set(salted) & set(block_names(TOKENS[:4], SIZE))
    lora = EngineCache().apply(stored([1, 2], TOKENS[:4], extra=[extra_key("french")] * 2)).stored
    assert lora == block_names(TOKENS[:4], SIZE, extra=extra_key("french"))


def test_a_block_after_one_that_nobody_has_told_of_cannot_be_named() -> None:
    cache = EngineCache()
    assert cache.apply(stored([5], TOKENS[:2], parent=4)).stored == []
    assert cache.orphans == 1
    assert len(cache) == 0


def test_a_block_is_there_until_it_is_removed() -> None:
    cache = EngineCache()
    names = cache.apply(stored([1, 2], TOKENS[:4])).stored
    assert cache.apply(Removed([2, 99], 0)).removed == names[1:]
    assert names[0] in cache
    assert names[1] not in cache


def test_what_others_had_an_engine_store_and_what_it_evicts_is_known_of_prompts_that_were_answered() -> None:
    index = Held()
    follower = Follower(index)
    follower.apply("a:1", [stored([1, 2, 3, 4], TOKENS)])
    follower.apply("b:1", [stored([71, 72], TOKENS[:4])])
    assert not index.blocks, "nobody knows yet which bytes these are"
    learn(follower)
    assert index.blocks == {"a:1": set(BLOCKS), "b:1": set(BLOCKS[:2])}
    follower.apply("a:1", [Removed([4], 0)])
    follower.apply("b:1", [stored([73], TOKENS[4:6], 72)])
    assert index.blocks == {"a:1": set(BLOCKS[:3]), "b:1": set(BLOCKS[:3])}


def test_what_was_expected_and_is_not_there_is_taken_back() -> None:
    index = Held()
    follower = Follower(index)
    index.note(BLOCKS, "a:1")
    follower.apply("a:1", [stored([1, 2], TOKENS[:4])])
    learn(follower)
    assert index.blocks == {"a:1": set(BLOCKS[:2])}


def test_while_events_are_missing_nothing_is_taken_back_for_not_having_been_told() -> None:
    index = Held()
    follower = Follower(index)
    index.note(BLOCKS, "a:1")
    follower.apply("a:1", [stored([1, 2], TOKENS[:4])])
    follower.replicas["a:1"].stream.missed(7)
    learn(follower)
    assert index.blocks == {"a:1": set(BLOCKS)}
    follower.apply("a:1", [Cleared()])
    assert follower.replicas["a:1"].stream.trusted
    assert not index.blocks


def test_a_prompt_with_a_salt_is_found_under_its_salt_alone() -> None:
    index = Held()
    follower = Follower(index)
    follower.apply("a:1", [stored([1, 2, 3, 4], TOKENS, extra=[extra_key("pepper"), b"", b"", b""])])
    learn(follower)
    assert not index.blocks.get("a:1")
    learn(follower, salt=extra_key("pepper"))
    assert index.blocks == {"a:1": set(BLOCKS)}


def test_the_real_index_forgets_what_an_engine_has_evicted() -> None:
    index = PrefixIndex()
    follower = Follower(index)
    index.note(BLOCKS, "a:1")
    index.note(BLOCKS, "b:1")
    for replica in ("a:1", "b:1"):
        follower.apply(replica, [stored([1, 2, 3, 4], TOKENS)])
    learn(follower)
    follower.apply("a:1", [Removed([3, 4], 0)])
    assert [depth_of(index.of(name).mask, index.steps(BLOCKS)) for name in ("a:1", "b:1")] == [2, 4]
    index.forget("a:1")
    index.forget("b:1")
    assert len(index) == 0


def test_batches_are_taken_in_order_and_what_is_missing_is_asked_for() -> None:
    stream = EventStream()
    assert [stream.came(number) for number in (0, 1)] == [Next.TAKE, Next.TAKE]
    assert stream.came(5) is Next.REPLAY
    for number in range(2, 8):  # the replay has live ones in it too
        stream.replayed(number + 1)
    assert [stream.came(number) for number in (5, 6, 7, 8)] == [Next.SKIP, Next.SKIP, Next.SKIP, Next.TAKE]
    assert stream.trusted


def test_what_cannot_be_had_again_is_a_gap_until_the_engine_starts_anew() -> None:
    stream = EventStream()
    assert stream.came(3) is Next.REPLAY
    stream.missed(3)
    assert stream.came(3) is Next.TAKE
    assert (stream.trusted, stream.gaps) == (False, 1)
    assert stream.came(1) is Next.RESET
    stream.reset()
    assert stream.came(1) is Next.REPLAY
    stream.replayed(1)
    assert stream.came(1) is Next.TAKE
    assert stream.trusted


def test_silence_while_prompts_are_read_is_an_alarm() -> None:
    stream = EventStream()
    assert not stream.is_silent(10 * SILENT_MS)
    stream.answered(1000)
    stream.answered(20_000)
    assert not stream.is_silent(1000 + SILENT_MS - 1)
    assert stream.is_silent(1000 + SILENT_MS)
    stream.came(0)
    assert not stream.is_silent(1000 + SILENT_MS)
