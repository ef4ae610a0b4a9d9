"""The $/Mtok identity against the worked examples of the economics, and money in both units."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue import builtin
from gateway.pricing import blended_usd_per_mtok, nanousd_of_usd, output_usd_per_mtok, quote, usd_of_nanousd

THREE = Decimal("0.001")


def hourly(sku: str) -> Decimal:
    found = builtin().gpus[sku].on_demand
    assert found is not None
    return found.usd_per_hour


def test_scenario_a_two_h100_at_4800_tokens_per_second() -> None:
    """2 x H100 at 2.99 $/h and 4,800 output tokens/s: 17.28 Mtok/h, 0.346 output, 0.097 input, 0.159 blended 3:1."""
    quoted = quote(usd_per_hour=2 * hourly("H100"), output_tokens_per_second=Decimal(4800))
    assert quoted.output_mtok_per_hour == Decimal("17.28")
    assert quoted.output_usd_per_mtok.quantize(THREE) == Decimal("0.346")
    assert quoted.input_usd_per_mtok.quantize(THREE) == Decimal("0.097")
    assert quoted.blended_usd_per_mtok.quantize(THREE) == Decimal("0.159")


def test_scenario_b_one_b200_at_7200_tokens_per_second() -> None:
    """1 x B200 at 5.99 $/h and 7,200 output tokens/s: 0.231 output, 0.065 input, 0.106 blended 3:1."""
    quoted = quote(usd_per_hour=hourly("B200"), output_tokens_per_second=Decimal(7200))
    assert quoted.output_usd_per_mtok.quantize(THREE) == Decimal("0.231")
    assert quoted.input_usd_per_mtok.quantize(THREE) == Decimal("0.065")
    assert quoted.blended_usd_per_mtok.quantize(THREE) == Decimal("0.106")


def test_three_to_one_at_0_30_is_0_475_of_the_output_price() -> None:
    """The blend of the economics page: (3 x 0.30 + 1) / 4 = 0.475."""
    blended = blended_usd_per_mtok(output_usd=Decimal(1), input_usd=Decimal("0.30"), blend_ratio=Decimal(3))
    assert blended == Decimal("0.475")


def test_ten_to_one_leans_to_the_input_price() -> None:
    """Agents and RAG at 10:1 pay (10 x 0.28 + 1) / 11 of the output price."""
    blended = blended_usd_per_mtok(output_usd=Decimal(1), input_usd=Decimal("0.28"), blend_ratio=Decimal(10))
    assert blended.quantize(Decimal("0.0001")) == Decimal("0.3455")


def test_overhead_multiplies_every_price() -> None:
    """A fleet with 1.5 overhead sells at one and a half times the bare price."""
    bare = quote(usd_per_hour=Decimal(3), output_tokens_per_second=Decimal(1000))
    full = quote(usd_per_hour=Decimal(3), output_tokens_per_second=Decimal(1000), overhead=Decimal("1.5"))
    assert full.output_usd_per_mtok == bare.output_usd_per_mtok * Decimal("1.5")


def test_the_identity_takes_hours_and_tokens_as_measured() -> None:
    """A day of 2 $/h that made 480 million tokens cost 0.1 dollars per million."""
    assert output_usd_per_mtok(
        usd_per_hour=Decimal(2), hours=Decimal(24), output_tokens=Decimal(480_000_000)
    ) == Decimal("0.1")


def test_a_quote_does_not_depend_on_the_callers_decimal_context() -> None:
    """A caller that rounds to three digits gets the same quote as everybody else."""
    with localcontext() as context:
        context.prec = 3
        rough = quote(usd_per_hour=Decimal("5.98"), output_tokens_per_second=Decimal(4800))
    assert rough == quote(usd_per_hour=Decimal("5.98"), output_tokens_per_second=Decimal(4800))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"usd_per_hour": Decimal(0)}, "usd_per_hour must be more than 0"),
        ({"output_tokens_per_second": Decimal(0)}, "output_tokens_per_second must be more than 0"),
        ({"input_ratio": Decimal(28)}, "input_ratio is a share of the output price"),
        ({"cached_ratio": Decimal("-0.1")}, "cached_ratio is a share of the output price"),
        ({"overhead": Decimal("0.5")}, "overhead is a factor of 1 or more"),
        ({"blend_ratio": Decimal(-1)}, "blend_ratio is input tokens for each output token"),
    ],
)
def test_what_cannot_be_priced_is_refused_by_name(change: dict[str, Decimal], words: str) -> None:
    """Each impossible number is refused with its name and what it should be."""
    given_: dict[str, Decimal] = {"usd_per_hour": Decimal(3), "output_tokens_per_second": Decimal(1000), **change}
    with pytest.raises(ValueError, match=words):
        quote(**given_)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_nano_dollars_survive_the_way_to_dollars_and_back(nanousd: int) -> None:
    """Dollars with nine places hold every nano-dollar."""
    assert nanousd_of_usd(usd_of_nanousd(nanousd)) == nanousd


def test_a_budget_of_50_dollars_in_nano_dollars() -> None:
    """50 dollars are 5e10 nano-dollars; a fraction of a nano-dollar is cut off, never rounded up."""
    assert nanousd_of_usd(Decimal(50)) == 50_000_000_000
    assert nanousd_of_usd(Decimal("0.0000000019")) == 1
    assert str(usd_of_nanousd(1)) == "1E-9"
    assert f"{usd_of_nanousd(1):f}" == "0.000000001"
