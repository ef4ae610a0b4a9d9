"""vLLM's KV events as they have looked over its versions: arrays and maps, with members that came later."""

from __future__ import annotations

import msgspec
import pytest

from gateway.kv_events import Cleared, Removed, Stored, extra_key, read_batch

STORED = Stored(hashes=[7, 8], parent=6, token_ids=[1, 2, 3, 4], block_size=2, extra=[b"", b""], group=0, whole=True)


def batch(*events: object, rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([1795463064.5, list(events), *([] if rank is None else [rank])])


@pytest.mark.parametrize(
    "event",
    [
        ["BlockStored", [7, 8], 6, [1, 2, 3, 4], 2],
        ["BlockStored", [7, 8], 6, [1, 2, 3, 4], 2, None, "GPU", None, None, 0, "full_attention", None, "later"],
        {
            "type": "BlockStored",
            "block_hashes": [7, 8],
            "parent_block_hash": 6,
            "token_ids": [1, 2, 3, 4],
            "block_size": 2,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "session_id": "nobody knows what this is",
        },
    ],
)
def test_arrays_and_maps_say_the_same_and_what_is_not_known_is_left_alone(event: object) -> None:
    assert read_batch(batch(event)).events == [STORED]
    assert read_batch(batch(event, rank=None)).events == [STORED]


def test_hashes_are_numbers_or_bytes() -> None:
    name = b"\x01" * 32
    [removed, cleared] = read_batch(batch(["BlockRemoved", [name, 2**63]], {"type": "AllBlocksCleared"})).events
    assert removed == Removed([name, 2**63], 0)
    assert cleared == Cleared()


def test_one_event_that_cannot_be_read_does_not_take_the_others_along() -> None:
    read = read_batch(
        batch(
            ["BlockStored", [7], None, [1, 2, 3], 2],  # three tokens for a block of two
            ["BlockMoved", [7]],
            "nothing",
            {"type": "BlockRemoved", "block_hashes": [9], "medium": None},
        )
    )
    assert read.events == [Removed([9], 0)]
    assert read.undecodable == 3


def test_other_memory_than_the_gpus_is_left_out() -> None:
    read = read_batch(batch(["BlockRemoved", [9], "CPU"], ["BlockStored", [7], None, [1, 2], 2, None, "STORAGE"]))
    assert (read.events, read.undecodable) == ([], 0)


def test_blocks_that_depend_on_a_lora_or_a_salt_say_so() -> None:
    by_block = ["BlockStored", [7, 8], None, [1, 2, 3, 4], 2, None, "GPU", None, [["pepper"], None]]
    by_name = ["BlockStored", [7], None, [1, 2], 2, 5, "GPU", "french"]
    [first, second] = read_batch(batch(by_block, by_name)).events
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert first.extra == [extra_key("pepper"), b""]
    assert second.extra == [extra_key("french")]


def test_blocks_of_a_sliding_window_are_told_apart() -> None:
    event = ["BlockStored", [7], None, [1, 2], 2, None, "GPU", None, None, 1, "sliding_window"]
    [stored] = read_batch(batch(event)).events
    assert isinstance(stored, Stored)
    assert (stored.group, stored.whole) == (1, False)


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode("text"), msgspec.msgpack.encode([1.0])])
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        read_batch(payload)
