"""A denial as the client reads it: which limit, how much of it is left, when it refills, what to change."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.errors import Refusal

from ._money import usd
from ._values import Denial


def refusal(denial: Denial) -> Refusal:
    """The 429 for `denial`."""
    match denial.dimension:
        case "requests_per_minute":
            return _rate_limit(
                denial,
                f"Rate limit reached: {_count(denial.limit, 'request')} per minute, {denial.remaining} left. "
                f"{_try_again(denial)} Send requests more slowly or ask for a higher limit.",
            )
        case "tokens_per_minute" if denial.asked > denial.limit:
            return _rate_limit(
                denial,
                f"Request too large: it may use up to {_count(denial.asked, 'token')} (prompt and max_tokens), more "
                f"than the limit of {_count(denial.limit, 'token')} per minute can ever hold. Shorten the prompt or "
                "lower max_tokens.",
            )
        case "tokens_per_minute":
            return _rate_limit(
                denial,
                f"Rate limit reached: {_count(denial.limit, 'token')} per minute, {denial.remaining} left, and this "
                f"request may use up to {denial.asked} (prompt and max_tokens). {_try_again(denial)} "
                "A lower max_tokens asks for less.",
            )
        case "concurrent_requests":
            return _rate_limit(
                denial,
                f"Too many requests at once: {_count(denial.limit, 'request')} may run at the same time and none is "
                "left. Wait for a running request to end, then try again.",
            )
        case "budget_usd":
            return _budget(denial)


def _rate_limit(denial: Denial, message: str) -> Refusal:
    return Refusal(
        status=429,
        code="rate_limit_exceeded",
        message=message,
        retry_after_ms=denial.retry_after_ms,
        should_retry=False if denial.retry_after_ms is None else None,
    )


def _budget(denial: Denial) -> Refusal:
    kind = denial.period.partition(":")[0]
    resets = datetime.fromtimestamp(denial.resets_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    budget = f"the budget of ${usd(denial.limit)} for this {kind}"
    if denial.retry_after_ms is not None:
        return _rate_limit(
            denial,
            f"This request may cost up to ${usd(denial.asked)}, and of {budget} only ${usd(denial.remaining)} is free: "
            f"${usd(denial.spent_nanousd)} is spent and ${usd(denial.reserved_nanousd)} is reserved, not spent, by "
            "requests that still run. Try again when they end, or lower max_tokens.",
        )
    left = max(0, denial.limit - denial.spent_nanousd)
    if left == 0:
        message = f"You have used up {budget}. It resets at {resets}; ask for a higher budget to go on before."
    else:
        message = (
            f"This request may cost up to ${usd(denial.asked)}, but ${usd(denial.spent_nanousd)} of {budget} is spent "
            f"and ${usd(left)} is left. Lower max_tokens, shorten the prompt, or ask for a higher budget; it resets "
            f"at {resets}."
        )
    return Refusal(
        status=429, code="insufficient_quota", type="insufficient_quota", message=message, should_retry=False
    )


def _try_again(denial: Denial) -> str:
    if denial.retry_after_ms is None:
        return "Waiting does not help."
    if denial.retry_after_ms < 1000:
        return f"Try again in {denial.retry_after_ms} ms."
    return f"Try again in {-(-denial.retry_after_ms // 1000)} s."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
