"""Days for a replay: arrivals that are drawn, and policies to send them through."""

from __future__ import annotations

import random
from decimal import Decimal

from gateway.policy import (
    ClassSpec,
    LimitsSpec,
    ModelSpec,
    Policies,
    PriceSpec,
    ReplicaSpec,
    SloSpec,
    TenantSpec,
)
from gateway.replay import Arrival
from gateway.simulator import PROFILES, Profile

T0_MS = 1_790_000_000_000
H200 = PROFILES["h200-llama-8b"].override(long_prefill_token_threshold=1024)
SIGMA = 0.8326
"""Of lengths with a coefficient of variation of 1."""


def h200(_: str) -> Profile:
    return H200


def arrival(at_ms: int = 0, tenant: str = "acme", **fields: object) -> Arrival:
    """A short chat request for the only model, so long after the first."""
    sizes = {"input_tokens": 100, "output_tokens": 50, "model": "llama"} | fields
    return Arrival(arrived_ms=T0_MS + at_ms, tenant=tenant, **sizes)  # type: ignore[arg-type]


def poisson(
    tenant: str, per_s: float, *, seconds: float, seed: int, prompt: int = 800, answer: int = 200
) -> list[Arrival]:
    """Chat as measured: lognormal lengths with these means."""
    dice, at_s, drawn = random.Random(seed), 0.0, []
    while (at_s := at_s + dice.expovariate(per_s)) < seconds:
        lengths = [max(2, int(mean * dice.lognormvariate(-(SIGMA**2) / 2, SIGMA))) for mean in (prompt, answer)]
        drawn.append(arrival(int(at_s * 1000), tenant, input_tokens=lengths[0], output_tokens=lengths[1]))
    return drawn


def policies(
    *,
    replicas: int = 1,
    service: ClassSpec | None = None,
    price: PriceSpec | None = None,
    model: str = "llama",
    **limits: LimitsSpec,
) -> Policies:
    """Tenants by the names of their limits, all of one class, and one model."""
    urls = tuple(ReplicaSpec(url=f"http://10.0.0.{number}:8000") for number in range(replicas))
    class_name = None if service is None else service.name
    tenants = {
        name: TenantSpec(name=name, limits=of, class_name=class_name, time_zone=of.time_zone)
        for name, of in limits.items()
    }
    return Policies(
        models={model: ModelSpec(name=model, replicas=urls, price=price)},
        tenants=tenants,
        classes={} if service is None else {service.name: service},
        sha256="0" * 64,
    )


CHAT = ClassSpec(name="chat", max_wait_s=Decimal("0.4"), slo=SloSpec(ttft_p99_ms=600, itl_p99_ms=80))
"""Requests of this class wait for room."""

PRICE = PriceSpec(output_usd_per_mtok=Decimal(1), input_ratio=Decimal("0.5"), cached_ratio=Decimal("0.1"))
