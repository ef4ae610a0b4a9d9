"""Numbers as people write them: exact from the text, and a proposal when a unit or a comma came along."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from ._problems import shown
from ._shapes import Number, Unit

_PLAIN = re.compile(r"-?(?:0|[1-9][0-9_]*)(?:\.[0-9]{1,12})?")
_WITH_UNIT = re.compile(r"[$€£]?\s*(-?[0-9][0-9.,_]*)\s*([^0-9\s].*)?", re.DOTALL)
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")

SECONDS = Unit(
    name="seconds",
    suffixes={
        "ms": Decimal("0.001"),
        **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Decimal(1)),
        **dict.fromkeys(("m", "min", "mins", "minutes"), Decimal(60)),
        "h": Decimal(3600),
    },
)
MILLISECONDS = Unit(
    name="milliseconds",
    suffixes={"us": Decimal("0.001"), "ms": Decimal(1), **dict.fromkeys(("s", "sec", "seconds"), Decimal(1000))},
)
DAYS = Unit(
    name="days",
    suffixes={
        **dict.fromkeys(("d", "day", "days"), Decimal(1)),
        **dict.fromkeys(("w", "week", "weeks"), Decimal(7)),
        **dict.fromkeys(("y", "year", "years"), Decimal(365)),
    },
)
CONTEXT_TOKENS = Unit(
    name="tokens",
    suffixes={"tokens": Decimal(1), **dict.fromkeys(("k", "ki", "kib"), Decimal(1024)), "m": Decimal(1024**2)},
)
"""Context lengths are powers of two: 4k is 4096."""
TOKENS = Unit(name="tokens", suffixes={"tokens": Decimal(1), "k": Decimal(1000), "m": Decimal(1_000_000)})
TOKENS_PER_MINUTE = Unit(name="tokens per minute", suffixes={**TOKENS.suffixes, "tpm": Decimal(1), "/min": Decimal(1)})
REQUESTS_PER_MINUTE = Unit(
    name="requests per minute",
    suffixes={"rpm": Decimal(1), "/min": Decimal(1), "/m": Decimal(1), "/s": Decimal(60), "k": Decimal(1000)},
)
REQUESTS = Unit(name="requests", suffixes={"k": Decimal(1000)})
USD = Unit(name="US dollars", suffixes={"usd": Decimal(1), "$": Decimal(1), "dollars": Decimal(1), "k": Decimal(1000)})
USD_PER_MTOK = Unit(
    name="US dollars per million tokens", suffixes={"usd": Decimal(1), "$": Decimal(1), "/mtok": Decimal(1)}
)
USD_PER_HOUR = Unit(
    name="US dollars per hour for one GPU", suffixes={"usd": Decimal(1), "$": Decimal(1), "/h": Decimal(1)}
)
SHARE_OF_OUTPUT = Unit(name="a share of the output price, 0 to 1", suffixes={"%": Decimal("0.01")})
GPU_COUNT = Unit(name="GPUs", suffixes={"x": Decimal(1)})
PLAIN = Unit(name="")


def read_number(text: str, number: Number, *, quoted: bool) -> Decimal | str:
    """The number in a scalar's text, or what is wrong with it and what was meant."""
    if quoted or not _PLAIN.fullmatch(text):
        meant = _meant(text, number)
        if quoted and meant == text:
            return f"{_must(number)}: write {meant} without quotes"
        proposal = f": write {meant}, not {shown(text)}" if meant else f", not {shown(text)}"
        return f"{_must(number)}{proposal}"
    value = Decimal(text.replace("_", ""))
    if number.whole and value != value.to_integral_value():
        return f"{_must(number)}, not {text}{_slip(value, number)}"
    bound = _bound(value, number)
    return f"{bound}, not {text}{_slip(value, number)}" if bound else value


def plain(value: Decimal) -> str:
    """A decimal as one would type it: no exponent, no trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _must(number: Number) -> str:
    name, kind = number.unit.name, "whole" if number.whole else "plain"
    if name.startswith("a share"):
        return f"is {name}, a plain number"
    return f"is in {name}, a {kind} number" if name else f"is a {kind} number"


def _bound(value: Decimal, number: Number) -> str | None:
    if value < number.minimum or (number.exclusive and value == number.minimum):
        least = "more than" if number.exclusive else "at least"
        absent = f" (leave it out for {number.absent})" if number.absent else ""
        return f"must be {least} {plain(number.minimum)}{_of(number)}{absent}"
    if value > number.maximum:
        return f"must be at most {plain(number.maximum)}{_of(number)}"
    return None


def _of(number: Number) -> str:
    name = number.unit.name
    return f" {name}" if name and not name.startswith("a share") else ""


def _slip(value: Decimal, number: Number) -> str:
    """What a number out of bounds was probably meant to be in another unit; empty when there is no telling."""
    slips = {
        "milliseconds": (Decimal(1000), f"for {plain(value)} s write"),
        "seconds": (Decimal("0.001"), "if milliseconds were meant write"),
        SHARE_OF_OUTPUT.name: (Decimal("0.01"), f"for {plain(value)} % write"),
    }
    if number.unit.name not in slips:
        return ""
    factor, words = slips[number.unit.name]
    meant = value * factor
    if (number.whole and meant != meant.to_integral_value()) or _bound(meant, number):
        return ""
    return f"; {words} {plain(meant)}"


def _meant(text: str, number: Number) -> str | None:
    """The plain number behind `2000ms`, `$50`, `4k`, `28 %`, `200,000` or a quoted "600"; None when unclear."""
    match = _WITH_UNIT.fullmatch(text.strip())
    if match is None:
        return None
    digits, suffix = match[1].replace("_", ""), (match[2] or "").strip().lower()
    if "," in digits:
        digits = digits.replace(",", "" if _THOUSANDS.fullmatch(digits) else ".")
    factor = number.unit.suffixes.get(suffix) if suffix else Decimal(1)
    try:
        value = Decimal(digits) * factor if factor is not None else None
    except InvalidOperation:
        return None
    if value is None or (number.whole and value != value.to_integral_value()) or _bound(value, number):
        return None
    meant = plain(value)
    if number.unit is CONTEXT_TOKENS and suffix == "k":
        meant += f" (or {plain(Decimal(digits) * 1000)})"
    return meant
