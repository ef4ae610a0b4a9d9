"""OpenAI's rate-limit headers, sent with 200 and with 429."""

from __future__ import annotations

from ._values import Denial, Grant


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
