"""Headers about limits, sent with 200 and with 429: OpenAI's, and Mtok's own of soft ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ._values import Denial, Grant, Note

SOFT_LIMIT: Final = b"x-mtok-soft-limit"
_TENANTS_OWN: Final = ("tenant", "key", "group")
"""How full a model or the fleet is, is the operator's to know."""


def ratelimit_headers(decision: Grant | Denial) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; unlimited ones are left out."""
    standing = decision.standing
    headers: list[tuple[bytes, bytes]] = []
    if standing.requests_limit is not None:
        headers += (
            (b"x-ratelimit-limit-requests", b"%d" % standing.requests_limit),
            (b"x-ratelimit-remaining-requests", b"%d" % standing.requests_remaining),
            (b"x-ratelimit-reset-requests", go_duration(standing.requests_reset_ms)),
        )
    if standing.tokens_limit is not None:
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % standing.tokens_limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % standing.tokens_remaining),
            (b"x-ratelimit-reset-tokens", go_duration(standing.tokens_reset_ms)),
        )
    return headers


def soft_limit_headers(notes: Iterable[Note]) -> list[tuple[bytes, bytes]]:
    """`x-mtok-soft-limit: usd_per_month 83%, key acme-ci tokens_per_day 60%`: what is used of the tenant's own soft
    limits, of its key's and its group's; none where nothing is used by half."""
    used = [
        f"{note.scope} {note.dimension} {note.percent}%".lstrip()
        for note in notes
        if note.percent is not None and note.kind in _TENANTS_OWN
    ]
    return [(SOFT_LIMIT, ", ".join(used).encode())] if used else []


def go_duration(ms: int) -> bytes:
    """A duration as OpenAI writes it: `12ms`, `1s`, `6m0s`, `1h2m3s`.

    Without fractions, since some clients read it with `(\\d+)([hms]+)`: from a second on it is rounded up.
    """
    if ms < 1000:
        return b"%dms" % ms if ms else b"0s"
    seconds = -(-ms // 1000)
    if seconds < 60:
        return b"%ds" % seconds
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return b"%dm%ds" % (minutes, seconds)
    return b"%dh%dm%ds" % (*divmod(minutes, 60), seconds)
