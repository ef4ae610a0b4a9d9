"""vLLM's KV events, as they come over ZMQ: which blocks its cache has stored and removed.

A message is a MessagePack batch `[ts, [events], rank]`. Its events were arrays once, with their tag in front and
members left out at the end, and are maps now, with their tag under "type"; members have been added five times. So every
event is read for itself, whichever of the two it is, and what is not known is left alone: a batch that were refused for
one of its events would take the removals in it along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Struct

Hash = int | bytes
"""An engine's own name of a block."""

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode

_STORED = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_REMOVED = ("block_hashes", "medium", "group_idx")
_MEMBERS: Mapping[str, tuple[str, ...]] = {"BlockStored": _STORED, "BlockRemoved": _REMOVED, "AllBlocksCleared": ()}
"""In the order in which arrays have them."""


class Stored(Struct, frozen=True, kw_only=True):
    """Blocks that follow each other, after the block `parent` (None: at the beginning). `token_ids` are all their
    tokens; `extra` is what else a block's content depends on, one for each: empty, or the LoRA, pictures and salt.
    `whole`: each token's attention reaches back to the beginning, so that only what is contiguous counts as cached."""

    hashes: list[Hash]
    parent: Hash | None
    token_ids: list[int]
    block_size: int
    extra: list[bytes]
    group: int
    whole: bool


class Removed(Struct, frozen=True):
    """Blocks that are no longer there."""

    hashes: list[Hash]
    group: int


class Cleared(Struct, frozen=True):
    """Nothing is cached any more."""


Event = Stored | Removed | Cleared


class Batch(Struct, frozen=True):
    """`undecodable` are events that could not be read; those of other memory than the GPU's are left out."""

    events: list[Event]
    undecodable: int


def read_batch(payload: bytes) -> Batch:
    """Raises `ValueError`: it is no batch."""
    try:
        told = _decode(payload)
    except msgspec.DecodeError as error:
        raise ValueError(f"no MessagePack: {error}") from error
    if isinstance(told, Mapping):
        found = cast(Mapping[str, object], told).get("events")
    else:
        found = told[1] if isinstance(told, list) and len(told) > 1 else None
    if not isinstance(found, list):
        raise ValueError("a batch has a list of events")  # noqa: TRY004 - of what was read, not of an argument
    events: list[Event] = []
    undecodable = 0
    for one in found:
        try:
            event = _event(one)
        except (ValueError, TypeError, KeyError):
            undecodable += 1
        else:
            if event is not None:
                events.append(event)
    return Batch(events, undecodable)


def extra_key(*keys: object) -> bytes:
    """What a block's content depends on beside its tokens and those before it, as `Stored` has it."""
    return _encode(keys) if keys else b""


def _event(told: object) -> Event | None:
    if isinstance(told, Mapping):
        members = cast(Mapping[str, object], told)
        tag = members["type"]
    elif isinstance(told, list) and told:
        tag = told[0]
        members = dict(zip(_MEMBERS[tag], told[1:], strict=False))
    else:
        raise ValueError("an event is a map or an array")
    if tag == "AllBlocksCleared":
        return Cleared()
    if tag not in _MEMBERS:
        raise ValueError("an event of another kind")
    if str(members.get("medium") or "GPU").upper() != "GPU":
        return None
    hashes = [_hash(one) for one in _list(members["block_hashes"])]
    group = _int(members.get("group_idx") or 0)
    if tag == "BlockRemoved":
        return Removed(hashes, group)
    token_ids = [_int(token) for token in _list(members["token_ids"])]
    block_size = _int(members["block_size"])
    if block_size <= 0 or len(token_ids) != block_size * len(hashes):
        raise ValueError("blocks and tokens do not match")
    parent, kind = members.get("parent_block_hash"), members.get("kv_cache_spec_kind")
    return Stored(
        hashes=hashes,
        parent=None if parent is None else _hash(parent),
        token_ids=token_ids,
        block_size=block_size,
        extra=_extra(members.get("extra_keys"), members.get("lora_name"), len(hashes)),
        group=group,
        whole=kind is None or "full" in str(kind) or "mla" in str(kind),
    )


def _extra(told: object, lora: object, count: int) -> list[bytes]:
    """Where nothing is told of the blocks one by one, their LoRA."""
    if isinstance(told, list) and len(told) == count:
        return [extra_key(*_list(keys)) if keys else b"" for keys in told]
    return [extra_key(lora) if lora else b""] * count


def _list(told: object) -> Sequence[object]:
    if not isinstance(told, list):
        raise TypeError("a list is expected")
    return told


def _int(told: object) -> int:
    if not isinstance(told, int):
        raise TypeError("an integer is expected")
    return told


def _hash(told: object) -> Hash:
    if not isinstance(told, int | bytes):
        raise TypeError("a block's hash is an integer or bytes")
    return told
