"""Dollars and nano-dollars: exact both ways."""

from __future__ import annotations

from decimal import Context, Decimal

NANOUSD_PER_USD = 1_000_000_000
NANOUSD_MAX = 2**53 - 1
"""The most that one request may be charged or hold: Redis' scripts count in doubles, exact up to here. $9 million."""

_EXACT = Context(prec=60)
"""Wide enough that shifting any amount by nine places stays exact, whatever the caller's own context says."""


def nanousd_of_usd(usd: Decimal) -> int:
    """Whole nano-dollars in an amount of dollars, e.g. of a budget; what is finer than a nano-dollar is cut off."""
    return int(_EXACT.scaleb(usd, 9))


def usd_of_nanousd(nanousd: int) -> Decimal:
    """Dollars as an exact decimal with nine places, so that amounts line up and sums stay sums."""
    return _EXACT.scaleb(Decimal(nanousd), -9)
