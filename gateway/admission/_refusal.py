"""A denial as the client reads it: which limit, how much of it is left, when it refills, what to change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from gateway.errors import Refusal, RefusedBy

from ._money import usd
from ._values import Denial, Dimension


def refusal(denial: Denial) -> Refusal:
    """The 429 for `denial`."""
    match denial.dimension:
        case "requests_per_minute":
            return _rate_limit(
                denial,
                f"Rate limit reached: {_count(denial.limit, 'request')} per minute{_of(denial)}, {denial.remaining} "
                "left. "
                f"{_try_again(denial)} Send requests more slowly or ask for a higher limit.",
            )
        case "concurrent_requests":
            return _rate_limit(
                denial,
                f"Too many requests at once: {_count(denial.limit, 'request')}{_of(denial)} may run at the same time "
                "and none is left. Wait for a running request to end, then try again.",
            )
        case "budget_usd" | "usd_per_hour" | "usd_per_day" | "usd_per_month":
            return _budget(denial)
        case _:
            return _tokens(denial)


_TOKENS: Final[dict[Dimension, tuple[str, str, str]]] = {
    "tokens_per_minute": ("token", "per minute", "prompt and max_tokens"),
    "input_tokens_per_minute": ("input token", "per minute", "the prompt"),
    "output_tokens_per_minute": ("output token", "per minute", "max_tokens"),
    "tokens_per_day": ("token", "per day", "prompt and max_tokens"),
    "concurrent_tokens": ("token", "in running requests", "prompt and max_tokens"),
}
"""What is limited, over what, and what of the request counts."""


def _tokens(denial: Denial) -> Refusal:
    noun, per, of = _TOKENS[denial.dimension]
    per += _of(denial)
    if denial.asked > denial.limit:
        less = {"the prompt": "Shorten the prompt", "max_tokens": "Lower max_tokens"}.get(
            of, "Shorten the prompt or lower max_tokens"
        )
        return _rate_limit(
            denial,
            f"Request too large: it may use up to {_count(denial.asked, noun)} ({of}), more than the limit of "
            f"{_count(denial.limit, noun)} {per} can ever hold. {less}.",
        )
    smaller = "shorter prompt" if of == "the prompt" else "lower max_tokens"
    return _rate_limit(
        denial,
        f"Rate limit reached: {_count(denial.limit, noun)} {per}, {denial.remaining} left, and this request may use up "
        f"to {denial.asked} ({of}). {_try_again(denial)} A {smaller} asks for less.",
    )


def _rate_limit(denial: Denial, message: str) -> Refusal:
    return Refusal(
        status=429,
        code="rate_limit_exceeded",
        message=message,
        retry_after_ms=denial.retry_after_ms,
        should_retry=False if denial.retry_after_ms is None else None,
        refused_by=_refused_by(denial),
    )


def _budget(denial: Denial) -> Refusal:
    kind = denial.period.partition(":")[0]
    resets = datetime.fromtimestamp(denial.resets_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    budget = f"the budget of ${usd(denial.limit)} for this {kind}"
    if denial.scope:
        budget = f"the budget of {denial.scope}, ${usd(denial.limit)} for this {kind}"
    if denial.reserved_nanousd > 0 and denial.spent_nanousd + denial.asked <= denial.limit:
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
        status=429,
        code="insufficient_quota",
        type="insufficient_quota",
        message=message,
        retry_after_ms=denial.retry_after_ms,
        should_retry=False,
        refused_by=_refused_by(denial),
    )


def _refused_by(denial: Denial) -> RefusedBy:
    return RefusedBy(
        dimension=denial.dimension,
        scope=denial.scope,
        limit=denial.limit,
        asked=denial.asked,
        remaining=denial.remaining,
        reserved=denial.reserved_nanousd,
        retry_after_ms=denial.retry_after_ms,
    )


def _of(denial: Denial) -> str:
    return f" for {denial.scope}" if denial.scope else ""


def _try_again(denial: Denial) -> str:
    if denial.retry_after_ms is None:
        return "Waiting does not help."
    if denial.retry_after_ms < 1000:
        return f"Try again in {denial.retry_after_ms} ms."
    return f"Try again in {-(-denial.retry_after_ms // 1000)} s."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
