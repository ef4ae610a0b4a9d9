"""What gateways tell each other of placements and loads: only what is news, in bounds, and believed for as long as it
is fresh."""

from __future__ import annotations

import pytest

from gateway.routing import (
    Beside,
    Elsewhere,
    Held,
    LoadNews,
    PlacementNews,
    pack_held,
    pack_placed,
    read_held,
    read_placed,
)
from gateway.routing import _news as news_module
from gateway.routing._news import AGAIN_MS, TOLD_MS

CHAIN = [2**64 - 1, 1, 2, 3]
HERE = ("tiny", "a:1")
THERE = ("tiny", "b:1")


def none(replica: str) -> int:
    return 0


class Pair:
    """A gateway that tells, and one that hears."""

    def __init__(self) -> None:
        self.tells = PlacementNews()
        self.hears = PlacementNews()

    def told(self, now_ms: int = 0) -> dict[tuple[str, str], list[list[int]]]:
        """What is told now, as the other understands it."""
        return {
            (one.model, one.replica): self.hears.heard(one, now_ms)
            for one in read_placed(pack_placed(self.tells.take(none, now_ms)))
        }


def test_a_conversations_turns_are_known_whole_at_the_other_gateway() -> None:
    pair = Pair()
    pair.tells.placed(*HERE, CHAIN[:2])
    assert pair.told() == {HERE: [CHAIN[:2]]}
    pair.tells.placed(*HERE, CHAIN)
    pair.tells.placed(*HERE, CHAIN)
    assert pair.told() == {HERE: [CHAIN]}, "once: the second time it was no news"
    assert not pair.tells.has_news


def test_a_turn_costs_the_text_it_added() -> None:
    """A prompt of 8 kB, then a turn of 1 kB: 32 blocks once, then four more. The same at another replica: one."""
    blocks = list(range(1, 37))
    news = PlacementNews()
    told = []
    for place, count in ((HERE, 32), (HERE, 36), (THERE, 36)):
        news.placed(*place, blocks[:count])
        told.append(len(pack_placed(news.take(none, 0))))
    overhead = 24
    assert [size <= 8 * (1 + new) + overhead for size, new in zip(told, (32, 4, 0), strict=True)] == [True] * 3


def test_the_same_prompt_at_another_replica_is_news() -> None:
    pair = Pair()
    for place in (HERE, THERE):
        pair.tells.placed(*place, CHAIN)
    assert pair.told() == {HERE: [CHAIN], THERE: [CHAIN]}


def test_what_another_has_told_is_not_told_again_and_its_turns_are_told_shortly() -> None:
    pair = Pair()
    pair.tells.placed(*HERE, CHAIN[:3])
    pair.told()
    pair.hears.placed(*HERE, CHAIN[:3])
    assert not pair.hears.take(none, 10)
    pair.hears.placed(*HERE, CHAIN)
    [placed] = pair.hears.take(none, 10)
    assert [len(prompt) for prompt in placed.prompts] == [2 * 8]
    assert pair.tells.heard(placed, 10) == [CHAIN]


def test_prompts_that_part_after_a_common_beginning_are_both_known_whole() -> None:
    pair = Pair()
    pair.tells.placed(*HERE, [*CHAIN, 4])
    pair.tells.placed(*THERE, [*CHAIN, 5])
    assert pair.told() == {HERE: [[*CHAIN, 4]], THERE: [[*CHAIN, 5]]}


def test_a_prompt_in_use_is_told_whole_again_when_that_was_long_ago() -> None:
    """Who hears only now understands it."""
    pair = Pair()
    pair.tells.placed(*HERE, CHAIN[:3])
    pair.tells.take(none, 0)
    pair.tells.placed(*HERE, CHAIN[:3])
    assert not pair.tells.take(none, TOLD_MS - 1)
    pair.tells.placed(*HERE, CHAIN)
    assert pair.told(TOLD_MS) == {HERE: [CHAIN]}


def test_who_missed_the_beginning_knows_only_what_it_heard() -> None:
    pair = Pair()
    pair.tells.placed(*HERE, CHAIN[:2])
    pair.tells.take(none, 0)
    pair.tells.placed(*HERE, CHAIN)
    assert pair.told() == {HERE: [CHAIN[1:]]}


def test_what_could_not_be_told_is_told_before_what_came_since() -> None:
    pair = Pair()
    pair.tells.placed(*HERE, CHAIN[:2])
    failed = pair.tells.take(none, 0)
    pair.tells.placed(*HERE, CHAIN)
    pair.tells.not_told(failed)
    assert pair.told() == {HERE: [CHAIN[:2], CHAIN]}


def test_a_telling_is_bounded_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "MOST_BLOCKS", 5)
    pair = Pair()
    for block in range(10, 14):
        pair.tells.placed(*HERE, [block, block + 10])
    assert pair.told() == {HERE: [[10, 20], [11, 21]]}
    assert pair.told() == {HERE: [[12, 22], [13, 23]]}
    assert pair.told() == {}


def test_while_nothing_can_be_told_the_oldest_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "MOST_PENDING", 5)
    pair = Pair()
    for number, place in enumerate((HERE, HERE, THERE)):
        pair.tells.placed(*place, [10 + number])
    assert pair.told() == {HERE: [[11]], THERE: [[12]]}
    assert pair.tells.dropped_blocks == 2


def test_after_an_engines_restart_what_is_sent_there_is_news_again() -> None:
    pair = Pair()
    for place in (HERE, THERE):
        pair.tells.placed(*place, CHAIN)
    pair.told()
    pair.tells.forget("a:1")
    for place in (HERE, THERE):
        pair.tells.placed(*place, CHAIN)
    assert pair.told() == {HERE: [CHAIN]}


def test_what_is_told_names_the_process_it_is_told_of() -> None:
    news = PlacementNews()
    news.placed(*HERE, CHAIN)
    [placed] = news.take({"a:1": 1_700_000_000_000}.__getitem__, 0)
    assert placed.epoch == 1_700_000_000_000


def test_a_load_is_told_when_it_changes_and_now_and_then_while_it_does_not() -> None:
    loads, held = LoadNews(), [Held("a:1", 500, 1)]
    assert loads.take([], 0) is None
    assert loads.take(held, 0) == held
    assert loads.take(held, AGAIN_MS - 1) is None
    assert loads.take(held, AGAIN_MS) == held
    assert loads.take([], AGAIN_MS + 1) == [], "that there is nothing any more, once"
    assert loads.take([], 10 * AGAIN_MS) is None


def test_a_load_that_could_not_be_told_is_told_next() -> None:
    loads, held = LoadNews(), [Held("a:1", 500, 1)]
    loads.take(held, 0)
    loads.not_told()
    assert loads.take(held, 1) == held


def test_what_others_have_in_flight_adds_up_by_replica() -> None:
    elsewhere = Elsewhere()
    elsewhere.heard("one", [Held("a:1", 500, 1), Held("b:1", 0, 2)], 0)
    elsewhere.heard("two", read_held(pack_held([Held("a:1", 100, 3)])), 100)
    assert elsewhere.beside(100) == {"a:1": Beside(600, 4), "b:1": Beside(0, 2)}
    elsewhere.heard("one", [], 200)
    assert elsewhere.beside(200) == {"a:1": Beside(100, 3)}


def test_what_waits_in_an_engine_and_no_gateway_told_of_is_somebody_elses() -> None:
    elsewhere = Elsewhere()
    elsewhere.heard("one", [Held("a:1", 500, 4), Held("b:1", 0, 9)], 0)
    for waiting, untold in ((6, 0), (9, 3), (8, 2), (6, 0)):
        elsewhere.engine_said("a:1", waiting, 2, 0)
        assert elsewhere.beside(0)["a:1"] == Beside(500 + 1000 * untold, 4 + untold)
    elsewhere.engine_said("a:1", 9, 2, 0)
    assert elsewhere.beside(1500) == {}, "like what gateways say it is forgotten"


def test_a_silent_gateways_load_is_believed_for_half_a_second_then_less_and_is_forgotten() -> None:
    elsewhere = Elsewhere()
    elsewhere.heard("one", [Held("a:1", 500, 4)], 0)
    seen = [elsewhere.beside(now_ms).get("a:1") for now_ms in (0, 500, 1000, 1499, 1500)]
    assert seen == [Beside(500, 4), Beside(500, 4), Beside(250, 2), Beside(0, 0), None]
    assert elsewhere.gateways == 0
