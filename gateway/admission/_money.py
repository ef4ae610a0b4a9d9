"""Nano-dollars as the decimal strings people read; exact, without floats."""

from __future__ import annotations

from gateway.pricing import NANOUSD_PER_USD


def usd(nanousd: int) -> str:
    """`12.50` for 12_500_000_000: as many decimals as it takes, at least two."""
    sign = "-" if nanousd < 0 else ""
    whole, nano = divmod(abs(nanousd), NANOUSD_PER_USD)
    decimals = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"
