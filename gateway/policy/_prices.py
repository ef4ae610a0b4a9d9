"""What tokens cost, as SREs write it: of a model, and for a tenant."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from gateway.pricing import CACHED_RATIO, INPUT_RATIO

PriceMode = Literal["fixed", "live", "cost_plus"]
TenantPriceMode = Literal["live", "fixed", "cost_plus", "contract"]
Smoothing = Literal["epoch", "hour", "day"]
Ratios = Literal["set", "measured"]

EVERY_MODEL = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSpec:
    """Dollars per million output tokens; input and cached input cost that ratio of it.

    `fixed` is that price. `live` follows what the GPUs cost over what they produced, `cost_plus` is live and `margin`;
    both start with that price, and `overhead`, floor, ceiling, the largest step of one epoch (a share) and the time
    it is smoothed over bound them.
    `ratios: measured` takes the input ratio from where the engines' time went.
    """

    output_usd_per_mtok: Decimal
    input_ratio: Decimal = INPUT_RATIO
    cached_ratio: Decimal = CACHED_RATIO
    mode: PriceMode = "fixed"
    overhead: Decimal = Decimal(1)
    margin: Decimal = Decimal(0)
    floor_usd_per_mtok: Decimal | None = None
    ceiling_usd_per_mtok: Decimal | None = None
    max_step: Decimal | None = None
    smooth: Smoothing = "hour"
    ratios: Ratios = "set"

    @property
    def follows_cost(self) -> bool:
        """Whether it changes with what the fleet costs and makes."""
        return self.mode != "fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """From so many million tokens of a month on, this share is taken off."""

    from_mtok: Decimal
    discount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPeakSpec:
    """From one hour of the day to another, in the tenant's time zone, this share is taken off. 22 to 6 is a night."""

    from_hour: int
    to_hour: int
    discount: Decimal

    def holds(self, hour: int) -> bool:
        """Whether this hour of the day is in it."""
        if self.from_hour <= self.to_hour:
            return self.from_hour <= hour < self.to_hour
        return hour >= self.from_hour or hour < self.to_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPriceSpec:
    """What one tenant pays for a model; `name` is the model's, or "*". Without a price of its own the model's holds.

    `committed_usd_per_month` is paid even where less is used.
    """

    name: str
    mode: TenantPriceMode = "contract"
    output_usd_per_mtok: Decimal | None = None
    input_ratio: Decimal | None = None
    cached_ratio: Decimal | None = None
    margin: Decimal = Decimal(0)
    discount: Decimal = Decimal(0)
    tiers: tuple[TierSpec, ...] = ()
    off_peak: OffPeakSpec | None = None
    committed_usd_per_month: Decimal | None = None

    def tier(self, mtok: Decimal) -> int:
        """How many of its tiers a month with so many million tokens has reached."""
        return sum(mtok >= tier.from_mtok for tier in self.tiers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingSpec:
    """How long a live price holds, and which share of idle GPU cost is put on the bills."""

    epoch_s: int = 300
    recover_idle: Decimal = Decimal(0)
