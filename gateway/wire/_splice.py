"""Body edits on bytes: a field the client did not send is spliced in; only one it did send costs a re-encoding."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_optional_members = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_encode = msgspec.json.Encoder().encode


def add_fields(body: bytes, fields: bytes) -> bytes:
    """`body` (a JSON object with at least one member) with `fields` (`"name":value,...`) put first.

    First, so that nothing of the client's has to be looked at. The caller knows that the client sent none of them.
    """
    start = body.index(b"{") + 1
    return b"%b%b,%b" % (body[:start], fields, body[start:])


def merge_field(body: bytes, name: str, members: Mapping[str, object]) -> bytes:
    """`body` with these members set in its object `name`, whose others stay; null or absent, it becomes `members`."""
    present = _members.decode(body).get(name)
    inner = _optional_members.decode(present) if present is not None else None
    return set_fields(body, {name: {**(inner or {}), **members}})


def set_fields(body: bytes, fields: Mapping[str, object]) -> bytes:
    """`body` with these members replaced or added; every other member keeps its bytes and its place.

    A name that stood there twice stands there once afterwards, with its last value, as JSON readers take it.
    """
    members: dict[str, object] = dict(_members.decode(body))
    members.update(fields)
    return _encode(members)
