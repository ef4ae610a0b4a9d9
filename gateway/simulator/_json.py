"""JSON as the simulator reads and writes it: compact, not escaped beyond need, keys in the order given."""

from __future__ import annotations

import json
from typing import TypeAlias

import msgspec

# Recursive aliases defeat mypy's inference of literals here; what is read is checked field by field anyway.
Json: TypeAlias = object

_encode = msgspec.json.Encoder().encode


def dumps(value: Json) -> bytes:
    """Its JSON; lone surrogates, which a client can send and UTF-8 cannot hold, as escapes."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
