"""Where the money went, what hosted providers would have asked, and what a lever would do."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue import HostedModel, builtin
from gateway.economics import Need, make_economics, plan, what_if
from gateway.economics._report import ModelSpan, shares
from gateway.usage import Billed

DOLLAR = 1_000_000_000
HOUR = 3600
HOSTED = HostedModel(
    date=date(2026, 11, 1), source="s", input=Decimal("0.20"), cached=Decimal("0.10"), output=Decimal("0.60")
)


def span(**changes: object) -> ModelSpan:
    told = {
        "model": "m",
        "gpu_seconds": 2 * HOUR,
        "cost_nanousd": 6 * DOLLAR,
        "lost_nanousd": 0,
        "billed": {
            "a": Billed(requests=10, input_tokens=10_000_000, output_tokens=7_200_000, cost_nanousd=4 * DOLLAR),
            "b": Billed(requests=5, cached_tokens=10_000_000, output_tokens=1_000_000, cost_nanousd=1 * DOLLAR),
        },
        "input_ratio": Decimal("0.28"),
        "cached_ratio": Decimal("0.1"),
        "best_per_gpu_s": Decimal(2000),
        "hosted": {"p": HOSTED},
    }
    return ModelSpan(**{**told, **changes})  # type: ignore[arg-type]


def report(*spans: ModelSpan):  # type: ignore[no-untyped-def]
    return make_economics(0, HOUR, spans, is_stale={"p/m": False})


def test_cost_is_billed_lost_or_idle() -> None:
    """6 $ of GPUs, 5 billed, half a dollar lost: half a dollar idle."""
    model = report(span(lost_nanousd=DOLLAR // 2)).models[0]
    assert (model.cost_nanousd, model.billed_nanousd, model.idle_nanousd) == (6 * DOLLAR, 5 * DOLLAR, DOLLAR // 2)


def test_prices_are_the_identity_over_weighted_tokens() -> None:
    """7.2 + 2.8 and 1 + 1 M weigh 12 M: 0.50 $/Mtok output, 0.14 input, 0.05 cached; over all 28.2 M tokens 0.2128."""
    model = report(span()).models[0]
    assert model.weighted_tokens == 12_000_000
    assert (model.output_usd_per_mtok, model.input_usd_per_mtok) == (Decimal("0.5"), Decimal("0.14"))
    assert model.cached_usd_per_mtok == Decimal("0.05")
    assert model.blended_usd_per_mtok is not None
    assert round(model.blended_usd_per_mtok, 4) == Decimal("0.2128")


def test_hosted_prices_are_at_the_same_mix() -> None:
    """10 x 0.20 + 10 x 0.10 + 8.2 x 0.60 = 7.92 $ for 28.2 M tokens; the fleet costs 0.76 of it, and 4,320 $ a month
    pay from 15,382 Mtok on."""
    beside = report(span()).models[0].hosted[0]
    assert round(beside.usd_per_mtok, 4) == Decimal("0.2809")
    assert beside.ratio is not None
    assert round(beside.ratio, 3) == Decimal("0.758")
    assert beside.break_even_mtok_per_month is not None
    assert round(beside.break_even_mtok_per_month) == 15382
    assert not beside.is_alarming


def test_an_own_token_at_more_than_one_and_a_half_times_a_hosted_one_alarms() -> None:
    """The article's rule."""
    assert report(span(cost_nanousd=12 * DOLLAR)).models[0].hosted[0].is_alarming


def test_a_tenants_margin_is_what_it_paid_less_what_its_tokens_cost() -> None:
    """a made 10 of 12 M weighted tokens: 5 of 6 $."""
    tenants = report(span()).tenants
    assert [(one.tenant, one.cost_nanousd, one.margin_nanousd) for one in tenants] == [
        ("a", 5 * DOLLAR, -1 * DOLLAR),
        ("b", 1 * DOLLAR, 0),
    ]


def test_caching_saved_what_its_tokens_would_have_cost_more() -> None:
    """10 M cached at 0.05 instead of 0.14: 0.90 $."""
    assert report(span()).models[0].cache_saved_nanousd == 900_000_000


def test_an_hour_that_made_nothing_has_no_price() -> None:
    """Its cost is all idle, and nobody's."""
    model = report(span(billed={})).models[0]
    assert (model.output_usd_per_mtok, model.blended_usd_per_mtok, model.hosted) == (None, None, [])
    assert model.idle_nanousd == 6 * DOLLAR


@given(
    total=st.integers(0, 10**15),
    weights=st.dictionaries(
        st.text(max_size=3), st.decimals(min_value=0, max_value=10**9, places=2), min_size=1, max_size=8
    ),
)
def test_shares_add_up_to_the_nano_dollar(total: int, weights: dict[str, Decimal]) -> None:
    """Whatever the weights, nothing is lost to rounding and nobody gets more than a nano-dollar too much."""
    given_ = shares(total, weights)
    whole = sum(weights.values())
    assert sum(given_.values()) == (total if whole else 0)
    for name, share in given_.items():
        assert not whole or abs(share - total * weights[name] / whole) <= Decimal("1.000001")


def test_more_of_the_prompt_cached_costs_less() -> None:
    """8.2 M out and 20 M in, 80 % cached: 8.2 + 4 x 0.28 + 16 x 0.1 = 10.92 instead of 12 M, 0.91 x."""
    (effect,) = what_if(
        report(span()).models[0],
        input_ratio=Decimal("0.28"),
        cached_ratio=Decimal("0.1"),
        prefix_hit=Decimal("0.8"),
    )
    assert (effect.best, effect.worst, effect.basis) == (Decimal("0.91"), Decimal("0.91"), "measured")


def test_cited_levers_say_their_range() -> None:
    """FP8 KV: 1.3 to 1.8 times the tokens; speculation at 0.7: 2 times, or nothing at high batch."""
    effects = what_if(
        report(span()).models[0],
        levers=("fp8-kv",),
        input_ratio=Decimal("0.28"),
        cached_ratio=Decimal("0.1"),
        spec_accept=Decimal("0.7"),
    )
    assert [(one.lever, round(one.best, 2), round(one.worst, 2), one.basis) for one in effects] == [
        ("fp8-kv", Decimal("0.56"), Decimal("0.77"), "cited"),
        ("spec-accept 0.7", Decimal("0.50"), Decimal("1.00"), "cited"),
    ]


def test_another_gpu_is_its_price_over_its_bandwidth_or_arithmetic() -> None:
    """B200 for 2.0 times H100's price: 2.39 times the bandwidth, 2.28 the arithmetic."""
    gpus = builtin().gpus
    (effect,) = what_if(
        report(span()).models[0],
        input_ratio=Decimal("0.28"),
        cached_ratio=Decimal("0.1"),
        gpu=(gpus["H100"], gpus["B200"], "on_demand"),
    )
    assert (round(effect.best, 2), round(effect.worst, 2)) == (Decimal("0.84"), Decimal("0.88"))
    assert effect.basis == "modelled"
    with pytest.raises(ValueError, match="nobody says what B100 costs"):
        what_if(
            report(span()).models[0],
            input_ratio=Decimal("0.28"),
            cached_ratio=Decimal("0.1"),
            gpu=(gpus["H100"], gpus["B100"], "on_demand"),
        )


NEED = Need(
    parameters_b=Decimal(70),
    weights="fp8",
    kv_bytes_per_token=163_840,
    requests_per_s=Decimal("9.6"),
    input_tokens=Decimal(1500),
    cached_tokens=Decimal(600),
    output_tokens=Decimal(500),
)


def test_scenario_a_comes_out_of_the_model() -> None:
    """2 x H100 with Llama 3.3 70B in FP8: the article measured 4,800 output tokens/s; the model is within a tenth."""
    made = plan(NEED, builtin().gpus)
    two = next(one for one in made.candidates if (one.sku, one.gpus) == ("H100", 2))
    assert Decimal(4320) < two.output_tok_s < Decimal(5280)
    assert two.itl_ms <= 80
    assert not two.measured


def test_a_gpu_that_cannot_do_it_says_why() -> None:
    """No FP8 on an A100, and no room for the weights on one H100."""
    made = plan(NEED, builtin().gpus)
    assert made.unfit["A100"] == "A100 has no FP8"
    assert ("H100", 1) not in {(one.sku, one.gpus) for one in made.candidates}
    small = {"L4": builtin().gpus["L4"]}
    big = plan(Need(**{**{f: getattr(NEED, f) for f in NEED.__struct_fields__}, "parameters_b": Decimal(400)}), small)
    assert "400 GB of weights leave less than 30% of 192 GB to KV" in big.unfit["L4"]


def test_what_was_measured_goes_before_the_model() -> None:
    """A fleet that makes 4,000 a second on 2 x H100 plans with that, and scales the others by it."""
    gpus = builtin().gpus
    modelled = {(one.sku, one.gpus): one for one in plan(NEED, gpus).candidates}
    measured = {
        (one.sku, one.gpus): one for one in plan(NEED, gpus, measured_tok_s={("H100", 2): Decimal(4000)}).candidates
    }
    assert measured["H100", 2].output_tok_s == 4000
    scale = Decimal(4000) / modelled["H100", 2].output_tok_s
    assert round(measured["H200", 1].output_tok_s) == round(modelled["H200", 1].output_tok_s * scale)
    assert measured["H100", 2].replicas == 2
    assert all(one.measured for one in measured.values())


def test_an_idle_fleets_best_hour_measures_nothing() -> None:
    """What made a tenth of what the model says had nothing to do: the model's figures stand."""
    gpus = builtin().gpus
    idle = plan(NEED, gpus, measured_tok_s={("H100", 2): Decimal(400)})
    assert idle == plan(NEED, gpus)
    assert not any(one.measured for one in idle.candidates)
