"""Body edits: what was not asked for is untouched."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import add_fields, ask_usage, set_fields
from gateway.wire._members import member_span

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.one_of(st.text(max_size=6), st.sampled_from(["stream_options", "max_tokens", "usage", "a"]))
BODIES = st.dictionaries(NAMES, VALUES, min_size=1, max_size=6)
STYLES = st.builds(
    lambda indent, escaped, separators: {"indent": indent, "ensure_ascii": escaped, "separators": separators},
    st.none() | st.just(2),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\n:")]),
)
SPACE = st.sampled_from(["", " ", "\r\n\t"])


def written(body: dict[str, Any], style: dict[str, Any], space: str = "") -> bytes:
    return (space + json.dumps(body, **style) + space).encode()


@settings(max_examples=150, deadline=None)
@given(body=BODIES, style=STYLES, space=SPACE)
def test_added_fields_leave_every_byte(body: dict[str, Any], style: dict[str, Any], space: str) -> None:
    """Fields put in front: taken out again, the body is what it was, byte for byte."""
    before = written(body, style, space)
    after = add_fields(before, b'"new":[1]')
    assert after.replace(b'"new":[1],', b"", 1) == before
    assert json.loads(after) == {"new": [1], **body}


@settings(max_examples=150, deadline=None)
@given(body=BODIES, style=STYLES, space=SPACE, fields=st.dictionaries(NAMES, VALUES, max_size=3))
def test_set_fields_keep_every_other_member(
    body: dict[str, Any], style: dict[str, Any], space: str, fields: dict[str, Any]
) -> None:
    """Members that are set have their value; all others keep value, bytes and place."""
    sendable = json.loads(json.dumps(fields), parse_int=float)  # what is set is ours: numbers of ordinary size
    after = set_fields(written(body, style, space), sendable)
    assert json.loads(after) == {**body, **sendable}
    assert list(json.loads(after)) == list({**body, **sendable})


def test_numbers_keep_their_digits() -> None:
    """Members that are not set are not read: no number is rounded, no escape rewritten."""
    body = b'{"seed":123456789012345678901234567890,"t":0.10,"e":1E+2,"s":"\\u0041\\/","model":"x"}'
    assert set_fields(body, {"model": "y"}) == body.replace(b'"x"', b'"y"')


@settings(max_examples=100, deadline=None)
@given(body=BODIES, options=st.none() | st.dictionaries(NAMES, VALUES, max_size=3), style=STYLES)
def test_usage_is_asked_for_beside_what_the_client_asked(
    body: dict[str, Any], options: dict[str, Any] | None, style: dict[str, Any]
) -> None:
    """With and without `stream_options` of the client's: both are on, nothing else has changed."""
    asked = {"include_usage": True, "continuous_usage_stats": True}
    body = {name: value for name, value in body.items() if name != "stream_options"} or {"model": "x"}
    assert json.loads(ask_usage(written(body, style), client_set=False)) == {"stream_options": asked, **body}
    both = {"stream_options": options, **body}
    after = json.loads(ask_usage(written(both, style), client_set=True))
    assert after == {**body, "stream_options": {**(options or {}), **asked}}


@settings(max_examples=200, deadline=None)
@given(body=BODIES, style=STYLES, name=NAMES)
def test_a_member_cut_out_leaves_the_rest(body: dict[str, Any], style: dict[str, Any], name: str) -> None:
    """The span of a member, taken out, leaves JSON with exactly the other members."""
    data = written(body, style)
    key = json.dumps(name, ensure_ascii=style["ensure_ascii"])[1:-1].encode()
    span = member_span(data, key)
    if name not in body:
        assert span is None
        return
    assert span is not None
    rest = {other: value for other, value in body.items() if other != name}
    assert json.loads(data[: span[0]] + data[span[1] :]) == rest
