"""The Python face of scripts/share.lua: what gateway workers that use the same model's replicas tell each other, and
what each is granted of these. That file says what it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ._coalescer import Call
from ._keys import ModelKeys

Growth = dict[str, float]
"""Cost that tenants were given, by the names that the queue gives them."""

Limited = tuple[str, int, int, int]
"""A replica, and what all workers may have there: sequences, prefill tokens, resident tokens (-1: no bound)."""

Wanted = tuple[str, int, int]
"""A replica, sequences of it, and whether with the lane (1) or not (0)."""

Granted = tuple[str, int, int, int]
"""As what was wanted, and how many sequences are left."""


class ShareReply(msgspec.Struct, frozen=True, array_like=True):
    """One call's answer. `after` is what to read on from; `growths` are other workers', told since, and `others` what
    each of them told last. `leads` is 1 for the one that adapts the limits."""

    after: str
    growths: list[str]
    leads: int
    limits: list[Limited]
    grants: list[Granted]
    others: list[tuple[str, str]]


_pack = msgspec.msgpack.Encoder().encode
_encode = msgspec.json.Encoder().encode
_decode_growth = msgspec.json.Decoder(Growth).decode
_decode = msgspec.msgpack.Decoder(ShareReply).decode


def packed_growth(growth: Mapping[str, float]) -> bytes:
    """As other workers read it, JSON; nothing where it is empty."""
    return _encode(growth) if growth else b""


def share_call(
    keys: ModelKeys,
    worker: str,
    *,
    number: int,
    growth: bytes,
    after: str,
    told: bytes,
    limits: Sequence[Limited],
    wants: Sequence[Wanted],
) -> Call:
    """One call of share.lua. `growth` is packed; `number` is its own for as long as it is not known to be written.
    `told` is text for the other workers; `limits` are as this worker knows them, `wants` what it wants."""
    return Call(
        [keys.gateways, keys.given, keys.knee],
        [worker.encode(), b"%d" % number, growth, after.encode(), told, _pack(limits), _pack(wants)],
    )


def share_reply(reply: bytes) -> ShareReply:
    """Reads share.lua's answer."""
    return _decode(reply)


def total_growth(growths: list[str]) -> Growth:
    """What several workers gave together."""
    total: Growth = {}
    for growth in growths:
        for name, cost in _decode_growth(growth).items():
            total[name] = total.get(name, 0.0) + cost
    return total
