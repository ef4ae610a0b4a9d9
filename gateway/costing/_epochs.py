"""An epoch's prices: what was measured before it, and what follows from that. Pure; once written it never changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Context, Decimal

from msgspec import Struct

from gateway.policy import Policies, PriceSpec, Smoothing
from gateway.pricing import GpuSpan, LivePrice, Measured, Price, live_price

LEAD_S = 15
"""Prices are made so long before they hold: a gateway that reads every five seconds has them in time."""
BOOKED_AFTER_S = 5
"""Usage is in the minute's sums a second or two after an answer has ended."""
MINUTE_S = 60

_SMOOTHING_S: dict[Smoothing, int] = {"hour": 3600, "day": 86_400}
_EXACT = Context(prec=120)


class EpochPrice(Struct, frozen=True, kw_only=True):
    """A model's live price in one epoch, dollars per million tokens, and all that it was made of.

    `live_usd_per_mtok` is output before the margin, after the bounds; `bound` names the one that decided. Cost and
    tokens are those of `pool`, the models that share its replicas, in [window_start_s, window_end_s).
    """

    output_usd_per_mtok: Decimal
    input_usd_per_mtok: Decimal
    cached_usd_per_mtok: Decimal
    live_usd_per_mtok: Decimal
    before_usd_per_mtok: Decimal
    measured_usd_per_mtok: Decimal | None
    bound: str
    window_start_s: int
    window_end_s: int
    pool: tuple[str, ...]
    cost_nanousd: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    input_ratio: Decimal
    cached_ratio: Decimal
    overhead: Decimal
    margin: Decimal


class Epoch(Struct, frozen=True, kw_only=True):
    """The prices from `start_s` on, for `epoch_s` seconds or until the next epoch is made.

    `policy` is the version of the policies they were made by, `fence` how often the lease had changed hands, `volumes`
    the tokens of tenants with tiers in their month so far.
    """

    start_s: int
    epoch_s: int
    decided_s: int
    policy: str
    fence: int
    prices: dict[str, EpochPrice]
    volumes: dict[str, dict[str, int]] = {}

    @property
    def name(self) -> str:
        """What events carry."""
        return epoch_name(self.start_s)

    def price(self, model: str) -> Price | None:
        """The model's price, ready to charge; None where it has no live one."""
        told = self.prices.get(model)
        if told is None:
            return None
        return Price.in_usd(
            epoch=self.name,
            output=told.output_usd_per_mtok,
            input=told.input_usd_per_mtok,
            cached=told.cached_usd_per_mtok,
        )


def epoch_start(at_s: int, epoch_s: int) -> int:
    """When the epoch began that holds at `at_s`."""
    return at_s - at_s % epoch_s


def epoch_name(start_s: int) -> str:
    """An epoch by its start, such as 2026-11-25T10:05:00Z."""
    return datetime.fromtimestamp(start_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pools(policies: Policies) -> dict[str, tuple[str, ...]]:
    """For each model those that share a replica with it, itself too: they are paid for together."""
    together: dict[str, set[str]] = {}
    by_url: dict[str, set[str]] = {}
    for model in policies.models.values():
        pool = {model.name}.union(*(by_url.get(replica.url, set()) for replica in model.replicas))
        for name in tuple(pool):
            pool |= together.get(name, set())
        for name in pool:
            together[name] = pool
            for replica in policies.models[name].replicas:
                by_url[replica.url] = pool
        for replica in model.replicas:
            by_url[replica.url] = pool
    return {name: tuple(sorted(pool)) for name, pool in together.items()}


def of_pool(spans: Iterable[GpuSpan], pool: Collection[str]) -> list[GpuSpan]:
    """The GPU time that these models have in common."""
    models = set(pool)
    return [span for span in spans if not models.isdisjoint(span.models)]


def measured_window(start_s: int, epoch_s: int, smooth: Smoothing) -> tuple[int, int]:
    """Which minutes the price of the epoch from `start_s` on is measured in; they are over when it is made."""
    end_s = (start_s - min(LEAD_S, epoch_s // 4) - BOOKED_AFTER_S) // MINUTE_S * MINUTE_S
    length_s = _SMOOTHING_S.get(smooth, max(MINUTE_S, -(-epoch_s // MINUTE_S) * MINUTE_S))
    return end_s - length_s, end_s


def decide(
    policies: Policies,
    start_s: int,
    *,
    before: Epoch | None,
    measured: Mapping[str, Measured],
    input_ratios: Mapping[str, Decimal],
    volumes: dict[str, dict[str, int]],
    decided_s: int,
    fence: int,
) -> Epoch:
    """The epoch from `start_s` on, from what each model's pool cost and made in its window.

    `input_ratios` are those that were measured, of models that want that. A model's first price is its policy's.
    """
    shared = pools(policies)
    prices = {
        model.name: _price(
            model.price,
            measured_window(start_s, policies.pricing.epoch_s, model.price.smooth),
            shared[model.name],
            measured[model.name],
            before=None if before is None else before.prices.get(model.name),
            input_ratio=input_ratios.get(model.name, model.price.input_ratio),
        )
        for model in policies.models.values()
        if model.price is not None and model.price.follows_cost
    }
    return Epoch(
        start_s=start_s,
        epoch_s=policies.pricing.epoch_s,
        decided_s=decided_s,
        policy=policies.version,
        fence=fence,
        prices=prices,
        volumes=volumes,
    )


def _price(
    spec: PriceSpec,
    window_s: tuple[int, int],
    pool: tuple[str, ...],
    measured: Measured,
    *,
    before: EpochPrice | None,
    input_ratio: Decimal,
) -> EpochPrice:
    was = spec.output_usd_per_mtok if before is None else before.live_usd_per_mtok
    terms = replace(
        spec,
        input_ratio=input_ratio,
        cached_ratio=min(spec.cached_ratio, input_ratio),
        max_step=None if before is None else spec.max_step,
    )
    live: LivePrice = live_price(was, measured, terms)
    output = _EXACT.multiply(live.output_usd_per_mtok, 1 + spec.margin)
    return EpochPrice(
        output_usd_per_mtok=output,
        input_usd_per_mtok=_EXACT.multiply(output, terms.input_ratio),
        cached_usd_per_mtok=_EXACT.multiply(output, terms.cached_ratio),
        live_usd_per_mtok=live.output_usd_per_mtok,
        before_usd_per_mtok=was,
        measured_usd_per_mtok=live.measured_usd_per_mtok,
        bound=live.bound,
        window_start_s=window_s[0],
        window_end_s=window_s[1],
        pool=pool,
        cost_nanousd=measured.cost_nanousd,
        input_tokens=measured.input_tokens,
        cached_tokens=measured.cached_tokens,
        output_tokens=measured.output_tokens,
        input_ratio=terms.input_ratio,
        cached_ratio=terms.cached_ratio,
        overhead=terms.overhead,
        margin=spec.margin,
    )
