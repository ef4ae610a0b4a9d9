"""GPU list prices: dollars per hour for one GPU, on demand.

Source: "vLLM Cost Economics: 2026 Deep Dive on $/Million Tokens" (June 2026), illustrative list prices of mid-2026.
They start a calculation; a fleet's own bill (`usd_per_hour` in the policies) is always better. B100 is missing because
no public list price was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

CATALOGUE_DATE = "2026-06"
CATALOGUE_SOURCE = "vLLM Cost Economics: 2026 Deep Dive on $/Million Tokens, illustrative list prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One SKU. Prices are US dollars per GPU and hour; `usd_per_hour` is used when only the SKU is known."""

    sku: str
    memory_gb: int
    usd_per_hour_low: Decimal
    usd_per_hour_high: Decimal
    usd_per_hour: Decimal
    date: str = CATALOGUE_DATE
    source: str = CATALOGUE_SOURCE


def _gpu(sku: str, memory_gb: int, low: str, high: str, usual: str | None = None) -> Gpu:
    """`usual` is the price the source calculates with; without one, the middle of the range."""
    middle = (Decimal(low) + Decimal(high)) / 2
    return Gpu(
        sku=sku,
        memory_gb=memory_gb,
        usd_per_hour_low=Decimal(low),
        usd_per_hour_high=Decimal(high),
        usd_per_hour=Decimal(usual) if usual else middle,
    )


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.sku: gpu
        for gpu in (
            _gpu("A100", 80, "1.50", "2.20"),
            _gpu("H100", 80, "2.49", "3.50", "2.99"),
            _gpu("H200", 141, "3.49", "4.99"),
            _gpu("L4", 24, "0.43", "0.80"),
            _gpu("L40S", 48, "0.99", "1.69"),
            _gpu("B200", 192, "4.99", "6.50", "5.99"),
            _gpu("MI300X", 192, "2.49", "3.99"),
        )
    }
)
"""The catalogue, by SKU as the policies spell it."""
