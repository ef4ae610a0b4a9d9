"""The policy documents as values: what the YAML of an SRE becomes once it has been checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

Engine = Literal["vllm"]
BudgetPeriod = Literal["hour", "day", "month"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One engine process. `url` is scheme://host:port without a trailing slash."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """What one replica runs on: a SKU of the catalogue with a count, or a price of its own."""

    sku: str | None = None
    count: int = 1
    usd_per_hour: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSpec:
    """Dollars per million output tokens; input and cached input cost that ratio of it."""

    output_usd_per_mtok: Decimal
    input_ratio: Decimal = Decimal("0.28")
    cached_ratio: Decimal = Decimal("0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A served model. `name` is what clients send; engines know it by the same name."""

    name: str
    replicas: tuple[ReplicaSpec, ...]
    engine: Engine = "vllm"
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None
    gpu: GpuSpec | None = None
    price: PriceSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """A key by its public id and the SHA-256 of the whole key, in lower-case hex."""

    id: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSpec:
    """A tenant's limits; None means unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    budget_usd: Decimal | None = None
    budget_period: BudgetPeriod = "month"
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """Who may use what. `models` holds model names, or "*" for all."""

    name: str
    keys: tuple[KeySpec, ...] = ()
    models: tuple[str, ...] = ("*",)
    class_name: str | None = None
    limits: LimitsSpec = field(default_factory=LimitsSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class SloSpec:
    """Latency targets of a class, in milliseconds."""

    ttft_p99_ms: int | None = None
    itl_p99_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """A service class: strict priority band, weight within it, longest wait in the queue."""

    name: str
    priority: int = 0
    weight: Decimal = Decimal(1)
    max_wait_s: Decimal = Decimal(2)
    slo: SloSpec = field(default_factory=SloSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """Everything one directory of policy documents says, checked as a whole."""

    models: dict[str, ModelSpec]
    tenants: dict[str, TenantSpec]
    classes: dict[str, ClassSpec]
    sha256: str
