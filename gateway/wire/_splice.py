"""Body edits on bytes: a field the client did not send is spliced in; only one it did send costs a re-encoding."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_optional_members = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_encode = msgspec.json.Encoder().encode

_ASK_LAST = {"include_usage": True}
_ASK_RUNNING = {"include_usage": True, "continuous_usage_stats": True}
_STREAM_OPTIONS_LAST = b'"stream_options":' + _encode(_ASK_LAST)
_STREAM_OPTIONS_RUNNING = b'"stream_options":' + _encode(_ASK_RUNNING)
_TOKEN_IDS = b'"return_token_ids":true'
_AND_TOKEN_IDS = b"," + _TOKEN_IDS


def add_fields(body: bytes, fields: bytes) -> bytes:
    """`body` (a JSON object with at least one member) with `fields` (`"name":value,...`) put first.

    First, so that nothing of the client's has to be looked at. The caller knows that the client sent none of them.
    """
    start = body.index(b"{") + 1
    return b"%b%b,%b" % (body[:start], fields, body[start:])


def end_with_field(body: bytes, field: bytes) -> bytes:
    """`body` (a JSON object with at least one member) with `field` (`"name":value`) put last: of a name that stands
    there twice readers take the last, so that nothing before it can undo it."""
    end = body.rindex(b"}")
    return b"%b,%b%b" % (body[:end], field, body[end:])


def ask_usage(body: bytes, *, client_set: bool, running: bool = True, token_ids: bool = False) -> bytes:
    """`body` with `stream_options` that make an engine report usage at a stream's end and, if `running`, in every
    chunk; if not, it is not asked for that, whatever the client sent. `client_set`: it holds some already, whose other
    members stay. `token_ids`: ids are asked for too, of which the body says nothing yet."""
    if not client_set:
        fields = _STREAM_OPTIONS_RUNNING if running else _STREAM_OPTIONS_LAST
        return add_fields(body, fields + _AND_TOKEN_IDS if token_ids else fields)
    if token_ids:
        body = add_fields(body, _TOKEN_IDS)
    sent = _optional_members.decode(_members.decode(body)["stream_options"]) or {}
    if not running:
        sent.pop("continuous_usage_stats", None)
    return set_fields(body, {"stream_options": {**sent, **(_ASK_RUNNING if running else _ASK_LAST)}})


def set_fields(body: bytes, fields: Mapping[str, object]) -> bytes:
    """`body` with these members replaced or added; every other member keeps its bytes and its place.

    A name that stood there twice stands there once afterwards, with its last value, as JSON readers take it.
    """
    members: dict[str, object] = dict(_members.decode(body))
    members.update(fields)
    return _encode(members)
