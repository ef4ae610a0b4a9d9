"""What a request says of itself for splitting usage, its user and its tags: cleaned, and bounded in number.

Every further value is a further field in the buckets of usage, so it is the policy that says how many there may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import msgspec

from gateway.policy import LedgerSpec

from ._settings import DAY_S

OTHER: Final = "other"
"""The value of all users, or of all of one tag's values, that came after the policy's bound was reached."""

LABEL_CHARACTERS_MAX: Final = 128
COMBINATIONS_MAX: Final = 10_000
"""Users times tags would be more than each of them: so many combinations of one tenant, worker and day."""

_json = msgspec.json.Decoder()


class _Seen:
    """What one tenant's requests of one day have said so far."""

    __slots__ = ("combinations", "day", "values")

    def __init__(self, day: int) -> None:
        self.day = day
        self.values: dict[str, set[str]] = {}
        self.combinations: set[tuple[str, ...]] = set()

    def bounded(self, name: str, value: str, most: int) -> str:
        values = self.values.setdefault(name, set())
        if value not in values:
            if len(values) >= most:
                return OTHER
            values.add(value)
        return value


class Labels:
    """Reads users and tags as the policy wants them. One per worker: what it has seen bounds what it lets through."""

    def __init__(self, spec: LedgerSpec) -> None:
        self._users_max = spec.users_max
        self._names = spec.tags.names
        self._values_max = spec.tags.values_max
        self._header = (spec.tags.header or "").encode()
        self._seen: dict[str, _Seen] = {}

    @property
    def tagged(self) -> bool:
        """Whether the policy names tags. If not, only a request that names its user has anything to read."""
        return bool(self._names)

    def read(
        self, tenant: str, now_ms: int, *, user: bytes, metadata: bytes, headers: Mapping[bytes, bytes]
    ) -> tuple[str, dict[str, str]]:
        """User and tags of one request. `user` and `metadata` are raw JSON; what is no text is left out, since it is
        the engine's to refuse. A tag in the header, `team=search, app=chat` with escapes as in URLs, wins over one in
        the metadata."""
        name = _clean(_decoded(user)) if user and self._users_max else ""
        said = self._said(metadata, headers) if self._names else {}
        if not name and not said:
            return "", {}
        day = now_ms // (DAY_S * 1000)
        seen = self._seen.get(tenant)
        if seen is None or seen.day != day:
            seen = self._seen[tenant] = _Seen(day)
        if name:
            name = seen.bounded("", name, self._users_max)
        tags = {tag: seen.bounded(tag, value, self._values_max) for tag, value in said.items()}
        combination = (name, *(tags.get(tag, "") for tag in self._names))
        if combination not in seen.combinations:
            if len(seen.combinations) >= COMBINATIONS_MAX:
                return name and OTHER, dict.fromkeys(tags, OTHER)
            seen.combinations.add(combination)
        return name, tags

    def _said(self, metadata: bytes, headers: Mapping[bytes, bytes]) -> dict[str, str]:
        members = _decoded(metadata) if metadata else None
        given: dict[str, object] = dict(members) if isinstance(members, dict) else {}
        if self._header and (line := headers.get(self._header)):
            for pair in line.decode("latin-1").split(","):
                tag, separator, value = pair.partition("=")
                if separator:
                    given[tag.strip()] = unquote(value.partition(";")[0])
        values = {tag: _clean(given.get(tag)) for tag in self._names}
        return {tag: value for tag, value in values.items() if value}


def _decoded(json: bytes) -> object:
    try:
        return _json.decode(json)
    except msgspec.DecodeError:  # half a surrogate: JSON to the engine's parser, but no text
        return None


def _clean(value: object) -> str:
    """Text that is safe in a field's name, a log and a table; empty for anything else."""
    if not isinstance(value, str):
        return ""
    if not value.isprintable():
        value = "".join(character for character in value if character.isprintable())
    return value[:LABEL_CHARACTERS_MAX].strip()
