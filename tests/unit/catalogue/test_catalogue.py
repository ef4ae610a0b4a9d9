"""The catalogue: what an SRE finds in it, and what happens to figures of their own."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.catalogue import CatalogueError, builtin, read
from gateway.policy import PolicyError, load

OWN = """
gpus:
  H100:
    memory_gb: 80
    bandwidth_gb_s: 3350
    fp16_tflops: 989
    precisions: [fp16, fp8]
    on_demand: {usd_per_hour: 2.05, low: 2.00, high: 2.10}
    date: 2026-11-20
    source: our contract
"""
MODEL = 'models: {m: {replicas: [{url: "http://a:1"}], gpu: {sku: H100}}}'


def test_every_gpu_that_is_asked_for_is_there_with_its_figures() -> None:
    """A100 40/80, H100 SXM/PCIe, H200, L4, L40S, B100, B200, MI300X; only B100 has no public price."""
    gpus = builtin().gpus
    assert list(gpus) == ["A100-40GB", "A100", "H100", "H100-PCIe", "H200", "L4", "L40S", "B100", "B200", "MI300X"]
    assert [sku for sku, gpu in gpus.items() if gpu.on_demand is None] == ["B100"]
    assert gpus["H200"].memory_gb == 141
    assert "fp8" not in gpus["A100"].precisions
    h100 = gpus["H100"].on_demand
    assert h100 is not None
    assert (h100.low, h100.usd_per_hour, h100.high) == (Decimal("2.49"), Decimal("2.99"), Decimal("3.50"))


def test_a_node_is_divided_by_its_gpus() -> None:
    """p5.48xlarge asks 55.04 $/h for eight: 6.88 for one."""
    offers = {offer.instance: offer for offer in builtin().gpus["H100"].offers}
    assert offers["p5.48xlarge"].usd_per_gpu_hour == Decimal("6.88")


@pytest.mark.parametrize(
    "instance", ["p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5e.48xlarge", "p6-b200.48xlarge"]
)
def test_the_instances_that_are_asked_for_are_there(instance: str) -> None:
    """Each of them is an offer of some GPU."""
    assert any(offer.instance == instance for gpu in builtin().gpus.values() for offer in gpu.offers)


def test_the_hosted_providers_that_are_asked_for_are_there() -> None:
    """All eight; Anyscale's closed, which is said."""
    hosted = builtin().hosted
    assert {"together", "fireworks", "anyscale", "deepinfra", "groq", "cerebras", "bedrock", "vertex"} <= set(hosted)
    assert "closed" in hosted["anyscale"].note
    assert builtin().providers_of("llama-3.3-70b")["fireworks"].cached == Decimal("0.45")
    assert builtin().providers_of("llama-3.3-70b")["together"].cached_usd_per_mtok == Decimal("0.88")


def test_every_figure_has_a_date_and_a_source() -> None:
    """So that each can be looked up, and flagged once it is older than 90 days."""
    catalogue = builtin()
    figures = [*catalogue.gpus.values(), *(offer for gpu in catalogue.gpus.values() for offer in gpu.offers)]
    figures += [model for provider in catalogue.hosted.values() for model in provider.models.values()]
    assert len(figures) > 70
    assert all(figure.source and date(2024, 1, 1) < figure.date < date(2027, 1, 1) for figure in figures)
    h100 = catalogue.gpus["H100"]
    assert not h100.is_stale(h100.date + timedelta(days=90))
    assert h100.is_stale(h100.date + timedelta(days=91))


def test_a_directorys_own_figures_replace_the_catalogues(tmp_path: Path) -> None:
    """`gpus.yaml` beside the policies says what an H100 costs there; all others stay."""
    (tmp_path / "gpus.yaml").write_text(OWN)
    (tmp_path / "policy.yaml").write_text(MODEL)
    policies = load(tmp_path)
    gpu = policies.models["m"].gpu
    assert gpu is not None
    assert gpu.replica_usd_per_hour(policies.catalogue) == Decimal("2.05")
    assert policies.catalogue.gpus["L4"] == builtin().gpus["L4"]


def test_what_is_wrong_with_a_figure_is_said_with_its_line(tmp_path: Path) -> None:
    """File, line, entry and what is wrong; nothing is half loaded."""
    (tmp_path / "gpus.yaml").write_text(OWN.replace("low: 2.00", "low: 2.07"))
    (tmp_path / "policy.yaml").write_text(MODEL)
    with pytest.raises(PolicyError) as refused:
        load(tmp_path)
    assert "gpus.yaml:3: gpus.H100: usd_per_hour lies between low and high" in str(refused.value)


def test_a_price_is_read_as_it_is_written() -> None:
    """No float on the way: 21.957642 is 21.957642."""
    offers = {(offer.instance, offer.purchase): offer for offer in builtin().gpus["A100-40GB"].offers}
    assert offers["p4d.24xlarge", "on_demand"].usd_per_hour == Decimal("21.957642")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "is no mapping"),
        ("prices: {}", "is not known here"),
        ("gpus: {X: 1}", "gpus.X: is no mapping"),
        ("gpus: {X: {memory_gb: 80}}", "missing required field"),
        ("hosted: {x: {models: {m: {input: -1, output: 1, date: 2026-01-01, source: s}}}}", "prices are 0 or more"),
        ("gpus: {X: {date: yesterday}}", "gpus.X"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_figures_are_refused_with_what_is_wrong(text: str, words: str) -> None:
    """Whatever is wrong, the message names it."""
    with pytest.raises(CatalogueError, match=words):
        read(text)
