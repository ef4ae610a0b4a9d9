"""The price of a request: exact decimals in, nano-dollars out, rounded once."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import PriceSpec
from gateway.pricing import Price
from gateway.wire import Usage

ratios = st.decimals(min_value=0, max_value=1, places=6)
prices = st.decimals(min_value=Decimal("0.000001"), max_value=10_000, places=6)
tokens = st.integers(min_value=0, max_value=10**12)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    input_tokens = draw(tokens)
    cached = draw(st.integers(min_value=0, max_value=input_tokens))
    return Usage(input_tokens=input_tokens, input_cached_tokens=cached, output_tokens=draw(tokens))


@st.composite
def terms(draw: st.DrawFn) -> PriceSpec:
    return PriceSpec(output_usd_per_mtok=draw(prices), input_ratio=draw(ratios), cached_ratio=draw(ratios))


def price_of(output: str, input_ratio: str = "0.28", cached_ratio: str = "0.1") -> Price:
    spec = PriceSpec(
        output_usd_per_mtok=Decimal(output), input_ratio=Decimal(input_ratio), cached_ratio=Decimal(cached_ratio)
    )
    return Price.of(spec, epoch="policy:test")


def exact(spec: PriceSpec, usage: Usage) -> Fraction:
    """The oracle: the same sum in fractions, written apart from the code."""
    output = Fraction(spec.output_usd_per_mtok) * 1000
    uncached = usage.input_tokens - usage.input_cached_tokens
    return (
        usage.output_tokens * output
        + uncached * output * Fraction(spec.input_ratio)
        + usage.input_cached_tokens * output * Fraction(spec.cached_ratio)
    )


def test_a_request_costs_the_sum_of_its_three_parts() -> None:
    """900 uncached, 100 cached and 33 output tokens at 0.35 $/Mtok are 88,200 + 3,500 + 11,550 nano-dollars."""
    usage = Usage(input_tokens=1000, input_cached_tokens=100, output_tokens=33)
    assert price_of("0.35").cost_nanousd(usage) == 88_200 + 3_500 + 11_550


def test_a_million_output_tokens_cost_the_price_itself() -> None:
    """1e6 output tokens at 0.35 $/Mtok are 0.35 dollars, 350 million nano-dollars."""
    assert price_of("0.35").cost_nanousd(Usage(output_tokens=1_000_000)) == 350_000_000


@pytest.mark.parametrize(("output_tokens", "cost"), [(1, 0), (3, 2), (5, 2), (7, 4), (2, 1)])
def test_half_a_nano_dollar_rounds_to_the_even_one(output_tokens: int, cost: int) -> None:
    """At half a nano-dollar a token, 1, 3, 5 and 7 tokens cost 0.5, 1.5, 2.5 and 3.5: 0, 2, 2 and 4."""
    assert price_of("0.0005").cost_nanousd(Usage(output_tokens=output_tokens)) == cost


def test_prices_of_input_are_exact_products() -> None:
    """Input and cached input cost their ratio of output, to the last digit."""
    price = price_of("0.123456789", "0.987654321", "0.111111111")
    assert price.input_usd_per_mtok == Decimal("0.121932631112635269")
    assert price.cached_usd_per_mtok == Decimal("0.013717420986282579")


def test_cached_tokens_beyond_the_input_are_not_charged() -> None:
    """An engine that reports more cached than input tokens does not make a cost negative or larger."""
    usage = Usage(input_tokens=10, input_cached_tokens=30)
    assert price_of("1").cost_nanousd(usage) == 10 * 100


def test_the_ceiling_rounds_up() -> None:
    """What is reserved covers the last fraction: one token at half a nano-dollar reserves one."""
    assert price_of("0.0005").ceiling_nanousd(0, 1) == 1


@given(terms(), usages())
def test_cost_is_the_exact_sum_rounded_half_to_even(spec: PriceSpec, usage: Usage) -> None:
    """For every price and usage the integers give what fractions give, rounded once as Python's `round` does."""
    assert Price.of(spec, epoch="e").cost_nanousd(usage) == round(exact(spec, usage))


@given(terms(), usages(), usages())
def test_the_whole_costs_its_parts_within_one_rounding_each(spec: PriceSpec, one: Usage, other: Usage) -> None:
    """Two requests cost what one with their sums costs, give or take half a nano-dollar per rounding."""
    price = Price.of(spec, epoch="e")
    both = Usage(
        input_tokens=one.input_tokens + other.input_tokens,
        input_cached_tokens=one.input_cached_tokens + other.input_cached_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
    )
    assert abs(price.cost_nanousd(one) + price.cost_nanousd(other) - price.cost_nanousd(both)) <= 1


@given(terms(), usages())
def test_the_ceiling_covers_every_usage_within_it(spec: PriceSpec, usage: Usage) -> None:
    """No split of the input into cached and uncached costs more than was reserved, and nothing is below zero."""
    price = Price.of(spec, epoch="e")
    assert 0 <= price.cost_nanousd(usage) <= price.ceiling_nanousd(usage.input_tokens, usage.output_tokens)


@given(terms(), tokens, st.integers(0, 2**53))
def test_what_a_sum_holds_of_output_is_exact(spec: PriceSpec, input_tokens: int, nanousd: int) -> None:
    """So many tokens more than the input fit into it, and not one more."""
    price = Price.of(spec, epoch="e")
    most = price.output_within(nanousd, input_tokens)
    assert most is not None
    if most >= 0:
        assert price.ceiling_nanousd(input_tokens, most) <= nanousd < price.ceiling_nanousd(input_tokens, most + 1)
    else:
        assert price.ceiling_nanousd(input_tokens, 0) > nanousd


@given(terms())
def test_nothing_costs_nothing(spec: PriceSpec) -> None:
    """A request without tokens is free at every price."""
    assert Price.of(spec, epoch="e").cost_nanousd(Usage()) == 0


@given(st.lists(terms(), min_size=1, max_size=3), usages())
def test_the_dearest_of_some_prices_covers_whatever_is_charged_at_any_of_them(
    specs: list[PriceSpec], usage: Usage
) -> None:
    charged = [Price.of(spec, epoch=f"policy:{number}") for number, spec in enumerate(specs)]
    dearest = Price.dearest(charged)
    held = dearest.ceiling_nanousd(usage.input_tokens, usage.output_tokens)
    assert all(price.cost_nanousd(usage) <= held for price in charged)
    assert dearest.epoch == "policy:0"
