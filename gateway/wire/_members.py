"""Finds a member of a JSON object in its bytes, so that it can be cut out and nothing else touched."""

from __future__ import annotations

import re

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]', re.DOTALL)


def member_span(json: bytes, name: bytes) -> tuple[int, int] | None:
    """Start and end of the member `name` of the root object, with the one comma that must go with it.

    `json` is valid JSON: the caller has decoded it. The last member of that name counts; None: there is none.
    """
    members = _root_members(json)
    for position, (key, start, end) in reversed(list(enumerate(members))):
        if key == name:
            if position:
                return members[position - 1][2], end
            return start, members[1][1] if len(members) > 1 else end
    return None


def _root_members(json: bytes) -> list[tuple[bytes, int, int]]:
    """(name, start, end) of every member of the root object; end is where its comma or the closing brace stands."""
    members: list[tuple[bytes, int, int]] = []
    depth = 0
    key: tuple[bytes, int] | None = None
    for match in _TOKEN.finditer(json):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0 and key is not None:
                members.append((key[0], key[1], match.start()))
        elif depth == 1 and token == b",":
            assert key is not None
            members.append((key[0], key[1], match.start()))
            key = None
        elif depth == 1 and key is None and token != b":":
            key = (token[1:-1], match.start())
    return members
