"""How long answers are predicted to be."""

from __future__ import annotations

from gateway.admission import Predictor


def test_an_unknown_tenant_gets_the_default_cut_at_max_tokens() -> None:
    predictor = Predictor(default_output_tokens=256)

    assert predictor.output_tokens("a", "m", None) == 256
    assert predictor.output_tokens("a", "m", 100) == 100
    assert predictor.output_tokens("a", "m", 0) == 1


def test_it_follows_the_mean_of_the_last_answers() -> None:
    predictor = Predictor()
    for tokens in (100, 200):
        predictor.answered("a", "m", tokens)
    assert predictor.output_tokens("a", "m", None) == 120

    for _ in range(30):
        predictor.answered("a", "m", 1000)
    assert predictor.output_tokens("a", "m", None) in range(995, 1001)
    assert predictor.output_tokens("b", "m", None) == 256


def test_it_remembers_those_that_answered_last() -> None:
    predictor = Predictor(kept=2)
    for tenant in ("a", "b", "a", "c"):
        predictor.answered(tenant, "m", 10)

    assert len(predictor) == 2
    assert [predictor.output_tokens(tenant, "m", None) for tenant in ("a", "b", "c")] == [10, 256, 10]
