"""Where a span's GPU cost went: to bills, to the platform's losses, to nobody. Pure.

    cost = billed + lost + idle

Idle is what is left, so it is less than nothing in a span whose price recovered more than it cost. Of a pool of models
that share replicas each has the part of the cost that its weighted tokens are of the pool's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

from msgspec import Struct

from gateway.catalogue import HostedModel
from gateway.pricing import usd_of_nanousd, usd_per_mtok, weighted_tokens
from gateway.usage import Billed

_WIDE = Context(prec=60)
MONTH_S = 30 * 86_400

HOSTED_ALERT = Decimal("1.5")
"""An own token that costs more than 1.5 times a hosted one is worth an alarm: the economics article's rule."""


class Beside(Struct, frozen=True, kw_only=True):
    """A hosted provider at this model's real mix: dollars per million tokens of any kind, the own price over that, and
    from how many million tokens a month on the own fleet, as it is, costs less."""

    provider: str
    usd_per_mtok: Decimal
    ratio: Decimal | None
    break_even_mtok_per_month: Decimal | None
    date: str
    is_stale: bool

    @property
    def is_alarming(self) -> bool:
        """Whether the own price is more than `HOSTED_ALERT` times this one."""
        return self.ratio is not None and self.ratio > HOSTED_ALERT


class ModelEconomics(Struct, frozen=True, kw_only=True):
    """One model's span. Money is nano-dollars, prices are dollars per million tokens and None where nothing was made.

    `utilisation` is what was made per GPU second over the most that an hour of the span made, 0 to 1.
    `cache_saved_nanousd` is what cached input would have cost beyond its own price.
    """

    model: str
    gpu_seconds: int
    cost_nanousd: int
    billed_nanousd: int
    lost_nanousd: int
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    weighted_tokens: Decimal
    utilisation: Decimal | None
    output_usd_per_mtok: Decimal | None
    input_usd_per_mtok: Decimal | None
    cached_usd_per_mtok: Decimal | None
    blended_usd_per_mtok: Decimal | None
    cache_saved_nanousd: int
    hosted: list[Beside]

    @property
    def idle_nanousd(self) -> int:
        """GPU cost that nobody paid for; below 0: more was billed than was spent."""
        return self.cost_nanousd - self.billed_nanousd - self.lost_nanousd


class TenantEconomics(Struct, frozen=True, kw_only=True):
    """What a tenant's tokens cost, by their weight among all, and what it paid."""

    tenant: str
    cost_nanousd: int
    billed_nanousd: int

    @property
    def margin_nanousd(self) -> int:
        """What is left of what it paid."""
        return self.billed_nanousd - self.cost_nanousd


class Economics(Struct, frozen=True, kw_only=True):
    """A span, [start_s, end_s), of all models and tenants."""

    start_s: int
    end_s: int
    models: list[ModelEconomics]
    tenants: list[TenantEconomics]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpan:
    """What is known of a model: its cost, what each tenant was billed, what was lost, by which ratios tokens weigh.

    `best_per_gpu_s` is the most weighted tokens that an hour made per GPU second.
    """

    model: str
    gpu_seconds: int
    cost_nanousd: int
    lost_nanousd: int
    billed: Mapping[str, Billed]
    input_ratio: Decimal
    cached_ratio: Decimal
    best_per_gpu_s: Decimal | None
    hosted: Mapping[str, HostedModel]


def shares(total_nanousd: int, weights: Mapping[str, Decimal]) -> dict[str, int]:
    """`total_nanousd` by weight, in whole nano-dollars that add up to it: what rounding leaves goes to the largest
    remainders, equal ones by name. Without any weight nobody has a share."""
    whole = sum(weights.values(), Decimal(0))
    if whole <= 0:
        return dict.fromkeys(weights, 0)
    exact = {name: _WIDE.divide(_WIDE.multiply(Decimal(total_nanousd), one), whole) for name, one in weights.items()}
    given = {name: int(share // 1) for name, share in exact.items()}
    left = total_nanousd - sum(given.values())
    for name in sorted(exact, key=lambda name: (given[name] - exact[name], name))[:left]:
        given[name] += 1
    return given


def make_economics(start_s: int, end_s: int, spans: Sequence[ModelSpan], *, is_stale: Mapping[str, bool]) -> Economics:
    """The span's report. `is_stale` says by provider and model, `provider/model`, whose hosted figures are old."""
    paid: dict[str, int] = {}
    cost: dict[str, int] = {}
    models = []
    for span in spans:
        weights = {
            tenant: weighted_tokens(billed, input_ratio=span.input_ratio, cached_ratio=span.cached_ratio)
            for tenant, billed in span.billed.items()
        }
        for tenant, share in shares(span.cost_nanousd, weights).items():
            cost[tenant] = cost.get(tenant, 0) + share
            paid[tenant] = paid.get(tenant, 0) + span.billed[tenant].cost_nanousd
        models.append(_model(span, sum(weights.values(), Decimal(0)), (end_s - start_s), is_stale))
    return Economics(
        start_s=start_s,
        end_s=end_s,
        models=models,
        tenants=[
            TenantEconomics(tenant=tenant, cost_nanousd=cost[tenant], billed_nanousd=paid[tenant])
            for tenant in sorted(cost)
        ],
    )


def _model(span: ModelSpan, weighted: Decimal, seconds: int, is_stale: Mapping[str, bool]) -> ModelEconomics:
    total = sum(span.billed.values(), Billed())
    output = _per_mtok(span.cost_nanousd, weighted)
    blended = _per_mtok(span.cost_nanousd, Decimal(total.tokens))
    saved = Decimal(0)
    if output is not None:
        saved = total.cached_tokens * (span.input_ratio - span.cached_ratio) * output * 1000
    per_gpu_s = _WIDE.divide(weighted, Decimal(span.gpu_seconds)) if span.gpu_seconds else None
    used = None
    if per_gpu_s is not None and span.best_per_gpu_s:
        used = min(Decimal(1), _WIDE.divide(per_gpu_s, span.best_per_gpu_s))
    return ModelEconomics(
        model=span.model,
        gpu_seconds=span.gpu_seconds,
        cost_nanousd=span.cost_nanousd,
        billed_nanousd=total.cost_nanousd,
        lost_nanousd=span.lost_nanousd,
        requests=total.requests,
        input_tokens=total.input_tokens,
        cached_tokens=total.cached_tokens,
        output_tokens=total.output_tokens,
        weighted_tokens=weighted,
        utilisation=used,
        output_usd_per_mtok=output,
        input_usd_per_mtok=None if output is None else output * span.input_ratio,
        cached_usd_per_mtok=None if output is None else output * span.cached_ratio,
        blended_usd_per_mtok=blended,
        cache_saved_nanousd=int(saved),
        hosted=[
            _beside(
                provider,
                told,
                total,
                own=blended,
                month_usd=usd_of_nanousd(span.cost_nanousd) * MONTH_S / Decimal(seconds),
                stale=is_stale[f"{provider}/{span.model}"],
            )
            for provider, told in span.hosted.items()
            if total.tokens
        ],
    )


def _beside(
    provider: str, told: HostedModel, mix: Billed, *, own: Decimal | None, month_usd: Decimal, stale: bool
) -> Beside:
    dollars = (
        mix.input_tokens * told.input + mix.cached_tokens * told.cached_usd_per_mtok + mix.output_tokens * told.output
    )
    theirs = _WIDE.divide(dollars, Decimal(mix.tokens))
    return Beside(
        provider=provider,
        usd_per_mtok=theirs,
        ratio=None if own is None or not theirs else _WIDE.divide(own, theirs),
        break_even_mtok_per_month=_WIDE.divide(month_usd, theirs) if theirs else None,
        date=told.date.isoformat(),
        is_stale=stale,
    )


def _per_mtok(nanousd: int, tokens: Decimal) -> Decimal | None:
    """Their price; None where there are none."""
    return usd_per_mtok(usd_of_nanousd(nanousd), tokens) if tokens > 0 else None
