"""The live price and GPU time: what an hour cost over what it made, and parts that add up to the nano-dollar."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pricing import GpuSpan, Measured, cost_nanousd, gpu_seconds, live_price, opencost_input_ratio

HOUR = 3600
DOLLAR = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Rules:
    input_ratio: Decimal = Decimal("0.28")
    cached_ratio: Decimal = Decimal("0.1")
    overhead: Decimal = Decimal(1)
    floor_usd_per_mtok: Decimal | None = None
    ceiling_usd_per_mtok: Decimal | None = None
    max_step: Decimal | None = None


def made(usd: str, *, output: int, input_: int = 0, cached: int = 0) -> Measured:
    return Measured(
        cost_nanousd=int(Decimal(usd) * DOLLAR), input_tokens=input_, cached_tokens=cached, output_tokens=output
    )


def span(start_s: int, end_s: int, usd_per_hour: str = "2.99", count: int = 1) -> GpuSpan:
    rate = int(Decimal(usd_per_hour) * DOLLAR) * count
    return GpuSpan(
        replica="a:1", models=("m",), start_s=start_s, end_s=end_s, nanousd_per_hour=rate, sku="H100", count=count
    )


def test_output_alone_costs_what_the_identity_says() -> None:
    """2 x H100 at 2.99 $/h for an hour that made 17.28 Mtok: 0.346065 $/Mtok."""
    price = live_price(Decimal(1), made("5.98", output=17_280_000), Rules())
    assert price.output_usd_per_mtok == Decimal("0.346065")
    assert price.bound == ""


def test_input_and_cached_tokens_pay_their_part() -> None:
    """10 M output, 30 M uncached at 0.28 and 20 M cached at 0.1 weigh 20.4 M; 5.10 $ over them is 0.25 $/Mtok."""
    hour = made("5.10", output=10_000_000, input_=30_000_000, cached=20_000_000)
    assert live_price(Decimal(1), hour, Rules()).output_usd_per_mtok == Decimal("0.25")


def test_overhead_is_on_top() -> None:
    """1.5 times the GPUs' own cost."""
    hour = made("2.00", output=10_000_000)
    assert live_price(Decimal(1), hour, Rules(overhead=Decimal("1.5"))).output_usd_per_mtok == Decimal("0.30")


@pytest.mark.parametrize(
    ("output", "price", "bound"),
    [
        (10_000_000, "0.500000", ""),
        (1, "2.000000", "ceiling"),
        (1_000_000_000, "0.100000", "floor"),
        (0, "0.400000", "no tokens"),
    ],
)
def test_an_idle_hour_does_not_price_itself_to_infinity(output: int, price: str, bound: str) -> None:
    """The ceiling holds what a single token would have to pay, the floor what a record hour would give away; an hour
    without tokens says nothing, and the price stays."""
    rules = Rules(floor_usd_per_mtok=Decimal("0.1"), ceiling_usd_per_mtok=Decimal(2))
    found = live_price(Decimal("0.4"), made("5.00", output=output), rules)
    assert (str(found.output_usd_per_mtok), found.bound) == (price, bound)


def test_a_price_moves_no_further_than_its_step() -> None:
    """From 0.40 to a measured 1.00 with a step of a quarter: 0.50, and down likewise."""
    rules = Rules(max_step=Decimal("0.25"))
    up = live_price(Decimal("0.4"), made("10.00", output=10_000_000), rules)
    down = live_price(Decimal("0.4"), made("1.00", output=10_000_000), rules)
    assert (up.output_usd_per_mtok, up.bound, up.measured_usd_per_mtok) == (Decimal("0.5"), "step", Decimal(1))
    assert (down.output_usd_per_mtok, down.bound) == (Decimal("0.3"), "step")


def test_opencosts_split_of_the_engines_time() -> None:
    """12 M prompt and 3 M generated tokens with half of the time each: an input token costs a quarter of an output
    token, OpenCost's own example."""
    half = Decimal(100)
    ratio = opencost_input_ratio(prefill_s=half, decode_s=half, input_tokens=12_000_000, output_tokens=3_000_000)
    assert ratio == Decimal("0.25")
    assert opencost_input_ratio(prefill_s=half, decode_s=Decimal(0), input_tokens=1, output_tokens=1) is None


def test_two_gpus_for_an_hour_and_a_half() -> None:
    """2 x 2.99 $/h for 90 minutes are 8.97 $, and three GPU hours."""
    there = span(1000, 1000 + 5400, count=2)
    assert there.cost_nanousd(0, 10_000) == 8_970_000_000
    assert gpu_seconds([there], 0, 10_000) == 3 * HOUR


def test_what_is_not_there_costs_nothing() -> None:
    """Scaled to zero between two spans."""
    spans = [span(0, 600), span(1800, 2400)]
    assert cost_nanousd(spans, 600, 1800) == 0
    assert cost_nanousd(spans, 0, 2400) == 2 * span(0, 600).cost_nanousd(0, 600)


@given(
    start=st.integers(0, 10**6),
    length=st.integers(1, 10**6),
    rate=st.integers(0, 10**13),
    cuts=st.lists(st.integers(0, 3 * 10**6), max_size=20),
)
def test_parts_add_up_to_the_whole_wherever_time_is_cut(start: int, length: int, rate: int, cuts: list[int]) -> None:
    """No nano-dollar is lost or charged twice by rounding, and the whole is what the rate says."""
    there = GpuSpan(replica="a", models=("m",), start_s=start, end_s=start + length, nanousd_per_hour=rate)
    edges = [0, *sorted(cuts), 4 * 10**6]
    parts = [there.cost_nanousd(a, b) for a, b in pairwise(edges)]
    assert sum(parts) == there.cost_nanousd(0, 4 * 10**6) == int(Fraction(rate * length, HOUR))
    assert min(parts) >= 0
