"""What is left of limits, and what the account would say to a request: decided here as in `store/scripts/account.lua`,
for those who only ask. Nothing is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gateway.policy import RuleMode

from ._account import RETRY_SOON_MS, UNIT
from ._values import Ask, Denial, Dimension, Standing

ASKED: Final[dict[Dimension, Callable[[Ask], int]]] = {
    "budget_usd": lambda ask: ask.nanousd,
    "tokens_per_day": lambda ask: ask.most_tokens,
    "usd_per_hour": lambda ask: ask.nanousd,
    "usd_per_day": lambda ask: ask.nanousd,
    "usd_per_month": lambda ask: ask.nanousd,
    "concurrent_tokens": lambda ask: ask.most_tokens,
    "input_tokens_per_minute": lambda ask: ask.input_tokens,
    "output_tokens_per_minute": lambda ask: ask.output_tokens,
    "tokens_per_minute": lambda ask: ask.tokens,
    "requests_per_minute": lambda ask: 1,
    "concurrent_requests": lambda ask: 1,
}
"""What a limit counts of a request, in the order in which the script looks at them."""

_WINDOWS: Final = ("tokens_per_day", "usd_per_hour", "usd_per_day", "usd_per_month")
_RANK: Final = {dimension: 1 if dimension in _WINDOWS else rank for rank, dimension in enumerate(ASKED)}


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """How one limit stands. `used` and `reserved` by running requests are in the dimension's unit; of a limit per
    minute `level` is what is left, in 1/60000, below 0 where requests used more than they had asked for.

    `period` and `resets_at_s` (Unix seconds) are of limits that begin anew. `scope` is whose limit it is, as `Denial`
    has it; only one whose `mode` is enforce refuses.
    """

    dimension: Dimension
    limit: int
    used: int = 0
    reserved: int = 0
    level: int | None = None
    period: str = ""
    resets_at_s: int = 0
    scope: str = ""
    mode: RuleMode = "enforce"

    @property
    def remaining(self) -> int:
        """What a request may still ask for, at least 0."""
        if self.level is not None:
            return max(0, self.level // UNIT)
        return max(0, self.limit - self.used - self.reserved)

    @property
    def full_in_ms(self) -> int:
        """Of a limit per minute: until all of it is there again."""
        return 0 if self.level is None else _refill_ms(self, self.limit)

    def asked(self, ask: Ask) -> int:
        """What the request asks of it."""
        return ASKED[self.dimension](ask)

    def wait_ms(self, ask: Ask, now_ms: int) -> int | None:
        """Milliseconds until it may let the request pass: 0 is now, None that waiting does not help."""
        asked = self.asked(ask)
        if self.level is not None:
            if self.level >= asked * UNIT:
                return 0
            return None if asked > self.limit or self.limit == 0 else _refill_ms(self, asked)
        if self.used + self.reserved + asked <= self.limit:
            return 0
        if asked > self.limit and self.dimension != "concurrent_requests":
            return None
        if self.used + asked <= self.limit or self.dimension == "concurrent_requests":
            return RETRY_SOON_MS
        return None if self.dimension == "budget_usd" else max(1, self.resets_at_s * 1000 - now_ms)


def denial(left: Sequence[Left], ask: Ask, now_ms: int) -> Denial | None:
    """What the account would refuse the request with; None: it would be granted. `left` are the tenant's own limits,
    then those of each other scope. Of several refusing limits it is the one that takes longest, of equals the first."""
    refusing: Left | None = None
    longest = 0.0
    enforced = [one for one in left if one.mode == "enforce"]
    scopes = list(dict.fromkeys(one.scope for one in enforced))
    for one in sorted(enforced, key=lambda one: (scopes.index(one.scope), _RANK[one.dimension])):
        wait_ms = one.wait_ms(ask, now_ms)
        wait = float("inf") if wait_ms is None else wait_ms
        if wait > longest:
            refusing, longest = one, wait
    if refusing is None:
        return None
    begins_anew = bool(refusing.period)
    return Denial(
        dimension=refusing.dimension,
        limit=refusing.limit,
        asked=refusing.asked(ask),
        remaining=refusing.remaining,
        retry_after_ms=refusing.wait_ms(ask, now_ms),
        standing=_standing(enforced),
        spent_nanousd=refusing.used if begins_anew else 0,
        reserved_nanousd=refusing.reserved if begins_anew else 0,
        period=refusing.period,
        resets_at_s=refusing.resets_at_s,
        scope=refusing.scope,
    )


def _refill_ms(left: Left, amount: int) -> int:
    assert left.level is not None
    return -(-max(0, amount * UNIT - left.level) // left.limit) if left.limit else 0


def _standing(left: Sequence[Left]) -> Standing:
    """Of the limits with the least left."""
    requests, tokens = (
        min((one for one in left if one.dimension == name), key=lambda one: one.remaining, default=None)
        for name in ("requests_per_minute", "tokens_per_minute")
    )
    return Standing(
        requests.limit if requests else None,
        requests.remaining if requests else -1,
        requests.full_in_ms if requests else -1,
        tokens.limit if tokens else None,
        tokens.remaining if tokens else -1,
        tokens.full_in_ms if tokens else -1,
    )
