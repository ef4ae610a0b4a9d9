"""What each tenant pays for each model now: the model's price, or what its own terms and its class make of it.

Pure, and the same in every worker: the same policies and the same epoch make the same tariffs.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Context, Decimal
from zoneinfo import ZoneInfo

from gateway.policy import Policies, TenantPriceSpec, TenantSpec
from gateway.pricing import CACHED_RATIO, INPUT_RATIO, Price

from ._epochs import Epoch

_EXACT = Context(prec=200)
_MILLION = Decimal(1_000_000)


class Tariffs:
    """The prices of one version of the policies in one epoch; without one, those that the policies say."""

    def __init__(self, policies: Policies, epoch: Epoch | None = None) -> None:
        self._policies = policies
        self._epoch = epoch
        self._known: dict[tuple[str, str], Price | None] = {}
        self._models = {name: self._of_model(name) for name in policies.models}

    def model(self, model: str) -> Price | None:
        """What a tenant without terms of its own pays."""
        return self._models.get(model)

    def of(self, tenant: TenantSpec, model: str) -> Price | None:
        """What this tenant pays for a million tokens; None: nothing."""
        asked = (tenant.name, model)
        if asked not in self._known:
            self._known[asked] = self._of_tenant(tenant, model)
        return self._known[asked]

    def pool(self, model: str, pool: str) -> Price | None:
        """What everybody pays where a pool has a price of its own: it is another provider's, so that no tenant's terms
        and no class change it. None: it has none."""
        return self._policies.pool_prices.get((model, pool))

    def all(self) -> Iterator[tuple[str, Price]]:
        """Every price that may be charged by these, with its model: what the price book has to hold."""
        for name, price in self._models.items():
            if price is not None:
                yield name, price
        for (name, _), price in self._policies.pool_prices.items():
            yield name, price
        for tenant in self._policies.tenants.values():
            if tenant.prices or self._policies.class_of(tenant).price_multiplier != 1:
                for model in self._policies.models_of(tenant):
                    price = self.of(tenant, model.name)
                    if price is not None:
                        yield model.name, price

    def _of_model(self, name: str) -> Price | None:
        spec = self._policies.models[name].price
        live = self._epoch.price(name) if self._epoch is not None and spec is not None and spec.follows_cost else None
        return live or self._policies.prices.get(name)

    def _of_tenant(self, tenant: TenantSpec, model: str) -> Price | None:
        base = self._models.get(model)
        terms = tenant.price_of(model)
        service = self._policies.class_of(tenant)
        if base is None or (terms is None and service.price_multiplier == 1):
            return base
        output, input_, cached = base.output_usd_per_mtok, base.input_usd_per_mtok, base.cached_usd_per_mtok
        factor, marks = service.price_multiplier, [tenant.name]
        if terms is not None:
            if terms.output_usd_per_mtok is not None:
                output, input_, cached = _own(terms, terms.output_usd_per_mtok)
            of_terms, marked = self._factor(tenant, terms, model)
            factor, marks = _EXACT.multiply(factor, of_terms), marks + marked
        version = "" if base.epoch == self._policies.price_epoch else f"/{self._policies.version}"
        return Price.in_usd(
            epoch=f"{base.epoch}{version}~{'~'.join(marks)}",
            output=_EXACT.multiply(output, factor),
            input=_EXACT.multiply(input_, factor),
            cached=_EXACT.multiply(cached, factor),
        )

    def _factor(self, tenant: TenantSpec, terms: TenantPriceSpec, model: str) -> tuple[Decimal, list[str]]:
        """What a contract's price is multiplied by, and what of it depends on more than the policies."""
        factor = _EXACT.multiply(1 + terms.margin, 1 - terms.discount)
        marks: list[str] = []
        if self._epoch is None:
            return factor, marks
        if terms.tiers:
            tokens = self._epoch.volumes.get(tenant.name, {}).get(model, 0)
            tier = terms.tier(Decimal(tokens) / _MILLION)
            if tier:
                factor = _EXACT.multiply(factor, 1 - terms.tiers[tier - 1].discount)
                marks.append(f"tier{tier}")
        if terms.off_peak is not None:
            hour = datetime.fromtimestamp(self._epoch.start_s, UTC).astimezone(ZoneInfo(tenant.time_zone)).hour
            if terms.off_peak.holds(hour):
                factor = _EXACT.multiply(factor, 1 - terms.off_peak.discount)
                marks.append("off_peak")
        return factor, marks


def _own(terms: TenantPriceSpec, output: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    input_ratio = INPUT_RATIO if terms.input_ratio is None else terms.input_ratio
    cached_ratio = CACHED_RATIO if terms.cached_ratio is None else terms.cached_ratio
    return output, _EXACT.multiply(output, input_ratio), _EXACT.multiply(output, cached_ratio)
