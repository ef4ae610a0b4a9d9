"""The figures as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date as Date
from decimal import Decimal
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

STALE_DAYS = 90
"""GPU lists moved by 40 % within a year (AWS, June 2025) and hosted ones by more: an older figure is flagged."""

Purchase = Literal["on_demand", "reserved", "spot"]
Precision = Literal["fp16", "fp8", "fp4", "int8", "int4"]
Count = Annotated[int, Meta(ge=1)]

PURCHASES: tuple[Purchase, ...] = get_args(Purchase)


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that was read somewhere on some day."""

    date: Date
    source: str
    note: str = ""

    def age_days(self, today: Date) -> int:
        """How old it is."""
        return (today - self.date).days

    def is_stale(self, today: Date) -> bool:
        """Whether it is older than `STALE_DAYS`."""
        return self.age_days(today) > STALE_DAYS


class Hourly(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one GPU costs, US dollars per hour: what to calculate with, and the range it is from."""

    usd_per_hour: Decimal
    low: Decimal
    high: Decimal

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.usd_per_hour <= self.high:
            raise ValueError("usd_per_hour lies between low and high, and none is below 0")


class Offer(Figure, frozen=True, kw_only=True):
    """What a provider asks for an instance of `gpus` GPUs, US dollars per hour."""

    provider: str
    instance: str
    usd_per_hour: Decimal
    gpus: Count = 1
    purchase: Purchase = "on_demand"

    def __post_init__(self) -> None:
        if self.usd_per_hour < 0:
            raise ValueError("usd_per_hour is 0 or more")

    @property
    def usd_per_gpu_hour(self) -> Decimal:
        """Of one of its GPUs."""
        return self.usd_per_hour / self.gpus


class Gpu(Figure, frozen=True, kw_only=True):
    """One SKU: memory in GB of 10^9 bytes, bandwidth in GB/s, dense FP16 in TFLOPS, and what an hour of one costs.

    A way to buy it is None where nobody says what it costs.
    """

    sku: str
    memory_gb: Count
    bandwidth_gb_s: Count
    fp16_tflops: Count
    precisions: tuple[Precision, ...]
    on_demand: Hourly | None = None
    reserved: Hourly | None = None
    spot: Hourly | None = None
    offers: tuple[Offer, ...] = ()

    def hourly(self, purchase: Purchase = "on_demand") -> Hourly | None:
        """What one costs, bought so."""
        match purchase:
            case "on_demand":
                return self.on_demand
            case "reserved":
                return self.reserved
            case "spot":
                return self.spot


class HostedModel(Figure, frozen=True, kw_only=True):
    """What a provider asks for a million tokens of one model, US dollars. Without a `cached` price of its own, cached
    input costs what input costs."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None

    def __post_init__(self) -> None:
        if min(self.input, self.output, self.cached_usd_per_mtok) < 0:
            raise ValueError("prices are 0 or more")

    @property
    def cached_usd_per_mtok(self) -> Decimal:
        """Of cached input."""
        return self.input if self.cached is None else self.cached


class Hosted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hosted provider's models, by the name that is common to all providers."""

    provider: str
    models: dict[str, HostedModel]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """GPUs by SKU, hosted providers by name."""

    gpus: Mapping[str, Gpu] = field(default_factory=dict)
    hosted: Mapping[str, Hosted] = field(default_factory=dict)

    def with_(self, other: Catalogue) -> Catalogue:
        """This one with the other's entries in place of those of the same name."""
        hosted = dict(self.hosted)
        for name, provider in other.hosted.items():
            known = hosted.get(name)
            models = provider.models if known is None else {**known.models, **provider.models}
            hosted[name] = Hosted(provider=name, models=models, note=provider.note or (known.note if known else ""))
        return Catalogue({**self.gpus, **other.gpus}, hosted)

    def providers_of(self, model: str) -> dict[str, HostedModel]:
        """What each hosted provider asks for this model."""
        return {name: provider.models[model] for name, provider in self.hosted.items() if model in provider.models}
