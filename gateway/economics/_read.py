"""A span's figures from Redis: GPU hours, what was billed, what the engines' counters say was lost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal

from redis.asyncio import Redis

from gateway.audit import audit, tenants
from gateway.costing import of_pool, pools, read_spans
from gateway.policy import Policies
from gateway.pricing import CACHED_RATIO, INPUT_RATIO, GpuSpan, cost_nanousd, gpu_seconds, weighted_tokens
from gateway.usage import Billed, billed_by_tenant_and_model

from ._report import Economics, ModelSpan, make_economics, shares

HOUR_S = 3600
AUDITED_S = 2 * 86_400
"""Losses are looked up in events, of so long a span at most: it takes 12 µs for each."""

_WIDE = Context(prec=60)
_Sold = Mapping[tuple[str, str], Billed]


async def economics(
    redis: Redis, policies: Policies, start_s: int, end_s: int, *, now_ms: int, with_use: bool = True
) -> Economics:
    """The report of [start_s, end_s), whole minutes; without `with_use` nobody looks how well GPUs were used, which
    every hour has to be read for. Raises `StoreUnavailable`."""
    names = await tenants(redis)
    spans = await read_spans(redis, start_s, end_s)
    sold = await billed_by_tenant_and_model(redis, names, start_s, end_s)
    lost = await _lost(redis, start_s, end_s, now_ms) if end_s - start_s <= AUDITED_S else {}
    best = await _best(redis, policies, names, spans, (start_s, end_s)) if with_use else {}
    shared = pools(policies)
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    stale: dict[str, bool] = {}
    models = []
    for model in policies.models.values():
        pool = shared[model.name]
        here = of_pool(spans, pool)
        weights = _weights(policies, pool, sold)
        hosted = policies.catalogue.providers_of(model.hosted_as or model.name)
        stale |= {f"{provider}/{model.name}": told.is_stale(today) for provider, told in hosted.items()}
        input_ratio, cached_ratio = ratios(policies, model.name)
        cost = _share_of(cost_nanousd(here, start_s, end_s), weights, model.name)
        loss_tokens = sum((lost.get(span.replica, Billed()) for span in _once(here)), Billed())
        loss = weighted_tokens(loss_tokens, input_ratio=input_ratio, cached_ratio=cached_ratio)
        made = sum(weights.values(), Decimal(0))
        models.append(
            ModelSpan(
                model=model.name,
                gpu_seconds=gpu_seconds(here, start_s, end_s),
                cost_nanousd=cost,
                lost_nanousd=int(_WIDE.divide(_WIDE.multiply(Decimal(cost), loss), made + loss)) if loss else 0,
                billed={tenant: billed for (tenant, name), billed in sold.items() if name == model.name},
                input_ratio=input_ratio,
                cached_ratio=cached_ratio,
                best_per_gpu_s=best.get(model.name),
                hosted=hosted,
            )
        )
    return make_economics(start_s, end_s, models, is_stale=stale)


async def idle_of_tenant(redis: Redis, policies: Policies, tenant: str, start_s: int, end_s: int) -> int:
    """The tenant's part, by weighted tokens, of what the policy puts on bills of GPU cost that nobody paid for."""
    end_s -= end_s % 60
    if end_s <= start_s:
        return 0
    told = await economics(redis, policies, start_s, end_s, now_ms=end_s * 1000, with_use=False)
    idle = sum(max(0, model.idle_nanousd) for model in told.models)
    spread = shares(
        int(idle * policies.pricing.recover_idle), {one.tenant: Decimal(one.cost_nanousd) for one in told.tenants}
    )
    return spread.get(tenant, 0)


def ratios(policies: Policies, model: str) -> tuple[Decimal, Decimal]:
    """What a model's uncached and cached input tokens weigh of an output token."""
    price = policies.models[model].price
    return (INPUT_RATIO, CACHED_RATIO) if price is None else (price.input_ratio, price.cached_ratio)


def _weights(policies: Policies, pool: tuple[str, ...], sold: _Sold) -> dict[str, Decimal]:
    """What each model of a pool made, in output tokens' worth."""
    weights = dict.fromkeys(pool, Decimal(0))
    for (_, model), billed in sold.items():
        if model in weights:
            input_ratio, cached_ratio = ratios(policies, model)
            weights[model] += weighted_tokens(billed, input_ratio=input_ratio, cached_ratio=cached_ratio)
    return weights


def _share_of(total_nanousd: int, weights: Mapping[str, Decimal], model: str) -> int:
    """A pool that made nothing cost its first model what it cost."""
    if not any(weights.values()):
        return total_nanousd if model == min(weights) else 0
    return shares(total_nanousd, weights)[model]


def _once(spans: list[GpuSpan]) -> list[GpuSpan]:
    """One span of each replica."""
    return list({span.replica: span for span in spans}.values())


async def _lost(redis: Redis, start_s: int, end_s: int, now_ms: int) -> dict[str, Billed]:
    """Tokens that failed attempts burnt and that were made for clients who had left, by replica."""
    found = await audit(redis, start_s=start_s, end_s=end_s, now_ms=now_ms)
    lost: dict[str, Billed] = {}
    for name, verdict in found.replicas.items():
        of_input, of_output = verdict.totals("input"), verdict.totals("output")
        lost[name] = Billed(
            input_tokens=of_input["loss"] + of_input["undelivered"],
            output_tokens=of_output["loss"] + of_output["undelivered"],
        )
    return lost


async def _best(
    redis: Redis, policies: Policies, names: list[str], spans: list[GpuSpan], span_s: tuple[int, int]
) -> dict[str, Decimal]:
    """Of each model the most weighted tokens that a whole hour made per GPU second, its pool's together."""
    best: dict[str, Decimal] = {}
    shared = pools(policies)
    for hour_s in range(span_s[0] - span_s[0] % HOUR_S, span_s[1], HOUR_S):
        sold = await billed_by_tenant_and_model(redis, names, hour_s, hour_s + HOUR_S)
        for pool in set(shared.values()):
            seconds = gpu_seconds(of_pool(spans, pool), hour_s, hour_s + HOUR_S)
            weights = _weights(policies, pool, sold)
            if seconds:
                for model, made in weights.items():
                    best[model] = max(best.get(model, Decimal(0)), made / seconds)
    return best
