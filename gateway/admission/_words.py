"""A rule and its numbers in an operator's words: what was asked, what was left, and what would have let it pass."""

from __future__ import annotations

from typing import Final, Literal

from gateway.errors import RefusedBy

from ._money import usd

Unit = Literal["requests", "tokens", "nanousd", "ms"]

_LENGTHS: Final = ("max_input_tokens", "max_output_tokens", "max_total_tokens", "context_tokens")
"""Rules that hold for each request by itself: nothing of them is used up."""


def unit_of(dimension: str) -> Unit:
    """What the numbers of a rule count; its name in the policies says so."""
    if "usd" in dimension:
        return "nanousd"
    if "tokens" in dimension:
        return "tokens"
    return "ms" if dimension.endswith("_wait_s") else "requests"


def amount(dimension: str, number: int) -> str:
    """A number of that rule with its unit: `1 request`, `4096 tokens`, `$0.25`, `1.5 s`."""
    match unit_of(dimension):
        case "nanousd":
            return f"${usd(number)}"
        case "ms":
            return seconds(number)
        case unit:
            return f"{number} {unit[:-1] if number == 1 else unit}"


def seconds(ms: int) -> str:
    """`1.5 s`; what is short in milliseconds."""
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.1f}".removesuffix(".0") + " s"


def decided(rule: RefusedBy) -> str:
    """One sentence: which rule, and its numbers."""
    if rule.dimension == "models":
        return f"There is no {rule.scope} here, or the tenant may not use it."
    name = f"{rule.dimension} of {rule.scope or 'the tenant'}"
    limit, asked = amount(rule.dimension, rule.limit), amount(rule.dimension, rule.asked)
    if rule.dimension == "max_wait_s":
        return (
            f"It could wait for {limit} (max_wait_s of its class, or what ttft_p99_ms leaves of it), and would have "
            f"waited for {asked}."
        )
    if rule.dimension in _LENGTHS:
        return f"{name} is {limit}, and the request has or asks for {asked}."
    held = f" ({amount(rule.dimension, rule.reserved)} held by requests that still ran)" if rule.reserved else ""
    return f"{name} is {limit}: {amount(rule.dimension, rule.remaining)} left{held}, {asked} asked."


def would_pass(rule: RefusedBy) -> list[str]:
    """What would have let the request pass this rule, each by itself. Another rule may refuse it then."""
    return [way for way in (later(rule), _less(rule), otherwise(rule)) if way]


def later(rule: RefusedBy) -> str:
    """Waiting, where that helps."""
    return "" if rule.retry_after_ms is None else f"the same request {seconds(rule.retry_after_ms)} later"


def otherwise(rule: RefusedBy) -> str:
    """What the policies would have to say."""
    if rule.dimension == "models":
        return "a model of the tenant's: GET /v1/models lists them, `models` in the policies says them"
    if rule.dimension == "max_wait_s":
        left = amount(rule.dimension, rule.asked)
        return f"max_wait_s and ttft_p99_ms of its class that leave {left}, or more replicas"
    return f"{rule.dimension} of at least {amount(rule.dimension, rule.limit + max(1, _short(rule)))}"


def _less(rule: RefusedBy) -> str:
    """Asking for less, where the rule counts what can be less."""
    if rule.dimension in _LENGTHS:
        return f"{amount(rule.dimension, _short(rule))} less in {_counted(rule.dimension)}"
    if unit_of(rule.dimension) in ("tokens", "nanousd") and rule.remaining > 0:
        return f"a request for at most {amount(rule.dimension, rule.remaining)} ({_counted(rule.dimension)})"
    return ""


def _short(rule: RefusedBy) -> int:
    return rule.asked - (rule.limit if rule.dimension in _LENGTHS else rule.remaining)


def _counted(dimension: str) -> str:
    """What of a request a rule counts."""
    if "input" in dimension:
        return "the prompt"
    return "max_tokens" if "output" in dimension else "the prompt and max_tokens"
