"""What one gateway may admit by itself while Redis is away: a share of what was left, and of what refills meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.policy import LimitsSpec

from ._values import Ask, Standing

MINUTE_MS = 60_000


@dataclass(slots=True)
class _Bucket:
    """A share of a limit per minute. `level` is in requests or tokens."""

    capacity: float
    level: float
    at_ms: int

    def holds(self, amount: int, now_ms: int) -> bool:
        elapsed_ms = max(0, now_ms - self.at_ms)
        self.level = min(self.capacity, self.level + elapsed_ms * self.capacity / MINUTE_MS)
        self.at_ms = max(self.at_ms, now_ms)
        return amount <= self.level


class Allowance:
    """One tenant's, in one worker, for one outage.

    Bound: while Redis is away for T minutes a worker admits at most `share` x (what was left + limit x T) of requests
    and of tokens, and at any time at most max(1, `share` x limit) requests at once. So n workers admit at most
    n x `share` of a limit: nothing is overrun for n x `share` <= 1, but for the one request at once.
    Dollars are never spent so, nor a day's tokens: whoever has a budget is refused, since what other gateways have
    spent is not known. So is whoever has one of the limits that only Redis counts: tokens at once, input or output.
    """

    def __init__(self, limits: LimitsSpec, *, share: float, last: Standing | None, now_ms: int) -> None:
        """`last` is how the limits stood when Redis last told; a tenant that was never heard of has a whole minute."""
        assert 0 < share <= 1
        self.limits = limits
        self.running = 0
        self._is_hard = bool(limits.budgets) or any(
            limit is not None
            for limit in (
                limits.tokens_per_day,
                limits.concurrent_tokens,
                limits.input_tokens_per_minute,
                limits.output_tokens_per_minute,
            )
        )
        self._most = None if limits.concurrent_requests is None else max(1, int(share * limits.concurrent_requests))
        requests_left, tokens_left = (None, None) if last is None else (last.requests_remaining, last.tokens_remaining)
        self._requests = _bucket(limits.requests_per_minute, share, requests_left, now_ms)
        self._tokens = _bucket(limits.tokens_per_minute, share, tokens_left, now_ms)

    def take(self, ask: Ask, now_ms: int) -> bool:
        """Whether this request may run; takes its share if so."""
        if self._is_hard or (self._most is not None and self.running >= self._most):
            return False
        if self._requests is not None and not self._requests.holds(1, now_ms):
            return False
        if self._tokens is not None:
            if not self._tokens.holds(ask.tokens, now_ms):
                return False
            self._tokens.level -= ask.tokens
        if self._requests is not None:
            self._requests.level -= 1
        self.running += 1
        return True

    def give_back(self) -> None:
        """A request that was admitted so has ended. What it did not use of its tokens stays taken: the bound is kept
        without knowing what others used."""
        assert self.running > 0
        self.running -= 1


def _bucket(limit: int | None, share: float, remaining: int | None, now_ms: int) -> _Bucket | None:
    if limit is None:
        return None
    left = limit if remaining is None or remaining < 0 else min(limit, remaining)
    return _Bucket(share * limit, share * left, now_ms)
