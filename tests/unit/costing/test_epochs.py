"""Epochs and tariffs: which price a tenant pays, what it was made of, and that every worker makes the same."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.costing import Epoch, Tariffs, decide, epoch_name, measured_window, pools
from gateway.policy import Policies, TenantSpec, load
from gateway.pricing import Measured, Price
from gateway.wire import Usage

POLICY = """
models:
  live:
    replicas: [{url: "http://a:1"}]
    gpu: {usd_per_hour: 3.6}
    price: {mode: live, output_usd_per_mtok: 0.5, max_step: 0.5, ceiling_usd_per_mtok: 5}
  adapter:
    replicas: [{url: "http://a:1"}, {url: "http://b:1"}]
    gpu: {usd_per_hour: 3.6}
    price: {mode: cost_plus, margin: 0.2, output_usd_per_mtok: 0.5}
  fixed:
    replicas: [{url: "http://c:1"}]
    price: {output_usd_per_mtok: 1}
tenants:
  plain: {}
  night:
    time_zone: Europe/Berlin
    prices: {"*": {off_peak: {from_hour: 22, to_hour: 6, discount: 0.5}}}
  big:
    prices:
      fixed: {output_usd_per_mtok: 0.8, tiers: [{from_mtok: 1, discount: 0.1}, {from_mtok: 10, discount: 0.25}]}
  partner: {prices: {live: {mode: cost_plus, margin: 0.1}}}
  batch: {class: batch}
classes:
  batch: {price_multiplier: 0.5}
"""
NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp())
NOTHING = Measured(cost_nanousd=0, input_tokens=0, cached_tokens=0, output_tokens=0)
HOUR = Measured(cost_nanousd=3_600_000_000, input_tokens=0, cached_tokens=0, output_tokens=6_000_000)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    directory: Path = tmp_path_factory.mktemp("policies")
    (directory / "policy.yaml").write_text(POLICY)
    return load(directory)


def made(
    policies: Policies,
    start_s: int = NOON,
    *,
    before: Epoch | None = None,
    measured: Measured = HOUR,
    volumes: dict[str, dict[str, int]] | None = None,
) -> Epoch:
    return decide(
        policies,
        start_s,
        before=before,
        measured={"live": measured, "adapter": measured},
        input_ratios={},
        volumes=volumes or {},
        decided_s=start_s - 15,
        fence=1,
    )


def paid(policies: Policies, tenant: str, model: str, epoch: Epoch | None) -> tuple[str, Decimal]:
    price = Tariffs(policies, epoch).of(policies.tenants[tenant], model)
    assert price is not None
    return price.epoch, price.output_usd_per_mtok


def test_before_anything_was_measured_the_policys_price_holds(policies: Policies) -> None:
    """No epoch yet: 0.5 under the policies' own name."""
    assert paid(policies, "plain", "live", None) == (policies.price_epoch, Decimal("0.5"))


def test_an_epoch_costs_what_the_hour_before_it_cost(policies: Policies) -> None:
    """3.60 $ over 6 M output tokens: 0.60 $/Mtok, under the epoch's name; cost_plus takes a fifth more."""
    epoch = made(policies)
    assert paid(policies, "plain", "live", epoch) == ("2026-11-25T12:00:00Z", Decimal("0.600000"))
    assert paid(policies, "plain", "adapter", epoch) == ("2026-11-25T12:00:00Z", Decimal("0.720000"))
    assert paid(policies, "plain", "fixed", epoch) == (policies.price_epoch, Decimal(1))


def test_an_epoch_says_what_it_was_made_of(policies: Policies) -> None:
    """The window, the pool, cost and tokens, the price before and the bound: enough to make it again."""
    told = made(policies).prices["live"]
    assert (told.cost_nanousd, told.output_tokens, told.before_usd_per_mtok) == (
        3_600_000_000,
        6_000_000,
        Decimal("0.5"),
    )
    assert told.pool == ("adapter", "live")
    assert (told.window_start_s, told.window_end_s) == (NOON - 60 - 3600, NOON - 60)


def test_the_step_is_from_the_epoch_before(policies: Policies) -> None:
    """The first measured price is taken as it is; from then on none moves by more than half."""
    first = made(policies)
    dear = Measured(cost_nanousd=36_000_000_000, input_tokens=0, cached_tokens=0, output_tokens=6_000_000)
    second = made(policies, NOON + 300, before=first, measured=dear)
    assert second.prices["live"].live_usd_per_mtok == Decimal("0.9")
    assert second.prices["live"].bound == "step"


def test_an_hour_without_tokens_keeps_the_price(policies: Policies) -> None:
    """Nothing was learnt of what tokens cost."""
    after = made(policies, NOON + 300, before=made(policies), measured=NOTHING)
    assert after.prices["live"].live_usd_per_mtok == Decimal("0.6")
    assert after.prices["live"].bound == "no tokens"


def test_models_that_share_a_replica_are_paid_for_together(policies: Policies) -> None:
    """An adapter's replica is its base model's too: one cost, one pool."""
    assert pools(policies) == {
        "live": ("adapter", "live"),
        "adapter": ("adapter", "live"),
        "fixed": ("fixed",),
    }


@pytest.mark.parametrize(
    ("hour_utc", "name", "output"),
    [(12, "2026-11-25T12:00:00Z/{v}~night", "0.600000"), (21, "2026-11-25T21:00:00Z/{v}~night~off_peak", "0.300000")],
)
def test_off_peak_hours_are_the_tenants_own(policies: Policies, hour_utc: int, name: str, output: str) -> None:
    """22 o'clock in Berlin is 21 UTC in November."""
    epoch = made(policies, NOON + (hour_utc - 12) * 3600)
    expected = name.format(v=policies.version)
    assert paid(policies, "night", "live", epoch) == (expected, Decimal(output))


@pytest.mark.parametrize(
    ("tokens", "mark", "output"),
    [(999_999, "~big", "0.8"), (1_000_000, "~big~tier1", "0.72"), (40_000_000, "~big~tier2", "0.600")],
)
def test_a_months_volume_decides_the_tier(policies: Policies, tokens: int, mark: str, output: str) -> None:
    """From the first million on a tenth less, from the tenth on a quarter."""
    epoch = made(policies, volumes={"big": {"fixed": tokens}})
    assert paid(policies, "big", "fixed", epoch) == (policies.price_epoch + mark, Decimal(output))


def test_terms_of_ones_own_and_the_class_make_a_price_of_ones_own(policies: Policies) -> None:
    """A partner pays the live price and a tenth, a batch tenant half of it: each under a name of its own."""
    epoch = made(policies)
    assert paid(policies, "partner", "live", epoch)[1] == Decimal("0.66")
    assert paid(policies, "partner", "fixed", epoch) == (policies.price_epoch, Decimal(1))
    name, output = paid(policies, "batch", "fixed", epoch)
    assert (name, output) == (f"{policies.price_epoch}~batch", Decimal("0.5"))


def test_every_price_that_may_be_charged_goes_into_the_book(policies: Policies) -> None:
    """What `of` gives to any tenant is among `all`, and one name never means two prices."""
    epoch = made(policies, NOON + 9 * 3600, volumes={"big": {"fixed": 2_000_000}})
    tariffs = Tariffs(policies, epoch)
    book: dict[tuple[str, str], Price] = {}
    for model, price in tariffs.all():
        assert book.setdefault((price.epoch, model), price) == price
    tenants: list[TenantSpec] = list(policies.tenants.values())
    for tenant in tenants:
        for model in policies.models:
            price = tariffs.of(tenant, model)
            assert price is not None
            assert book[price.epoch, model].cost_nanousd(Usage(output_tokens=1000)) == price.cost_nanousd(
                Usage(output_tokens=1000)
            )


def test_two_workers_make_the_same_tariffs(policies: Policies) -> None:
    """The same policies and the same epoch: equal prices, whoever asks first."""
    epoch = made(policies)
    one, other = Tariffs(policies, epoch), Tariffs(policies, epoch)
    assert list(one.all()) == list(other.all())


def test_a_window_is_over_when_its_price_is_made() -> None:
    """The last whole minute before the price has to be made, and so much time before that."""
    assert measured_window(NOON, 300, "hour") == (NOON - 60 - 3600, NOON - 60)
    assert measured_window(NOON, 300, "epoch") == (NOON - 60 - 300, NOON - 60)
    assert measured_window(NOON + 10, 10, "epoch") == (NOON - 60, NOON)
    assert epoch_name(NOON) == "2026-11-25T12:00:00Z"
