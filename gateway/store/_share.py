"""The Python face of scripts/share.lua: what gateway workers that use the same model's replicas tell each other."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ._coalescer import Call
from ._keys import ModelKeys

Growth = dict[str, float]
"""Cost that tenants were given, by the names that the queue gives them."""


class ShareReply(msgspec.Struct, frozen=True, array_like=True):
    """One call's answer. `after` is what to read on from; `growths` are other workers', told since."""

    after: str
    growths: list[str]


_encode = msgspec.json.Encoder().encode
_decode_growth = msgspec.json.Decoder(Growth).decode
_decode = msgspec.msgpack.Decoder(ShareReply).decode


def packed_growth(growth: Mapping[str, float]) -> bytes:
    """As other workers read it, JSON; nothing where it is empty."""
    return _encode(growth) if growth else b""


def share_call(keys: ModelKeys, worker: str, *, number: int, growth: bytes, after: str) -> Call:
    """One call of share.lua. `growth` is packed; `number` is its own for as long as it is not known to be written."""
    return Call([keys.gateways, keys.given], [worker.encode(), b"%d" % number, growth, after.encode()])


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
