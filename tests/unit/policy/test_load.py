"""Documents that can be served: what they become, across files, with defaults and exact numbers."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gateway.policy import (
    AlertsSpec,
    ClassSpec,
    ContextSpec,
    GpuSpec,
    KeySpec,
    LimitsSpec,
    ModelSpec,
    PolicyError,
    PriceSpec,
    ReplicaSpec,
    ScopeLimitsSpec,
    SloSpec,
    TagsSpec,
    TenantSpec,
    load,
)
from gateway.wire import Usage

SHA = "abcdef7890123456789012345678901234567890123456789012345678901234"

FULL = f"""
models:
  tiny:
    engine: vllm
    replicas: [{{url: "http://127.0.0.1:9001"}}, {{url: "https://gpu-2:9002/"}}]
    aliases: [small, vendor/tiny]
    context_tokens: 4096
    gpu: {{sku: H100, count: 2}}
    price: {{output_usd_per_mtok: 0.35, input_ratio: 0.28, cached_ratio: 0.1}}
tenants:
  acme:
    keys: [{{id: acme-ci, sha256: "{SHA.upper()}"}}]
    models: ["*"]
    class: interactive
    limits: {{requests_per_minute: 600, tokens_per_minute: 200_000, concurrent_requests: 32, budget_usd: 50.5,
             budget_period: day, max_input_tokens: 3000, max_output_tokens: 1000}}
classes:
  interactive: {{priority: 10, weight: 1.5, max_wait_s: 0.5, slo: {{ttft_p99_ms: 600, itl_p99_ms: 80}}}}
"""
MODEL = 'models: {tiny: {replicas: [{url: "http://a:1"}]}}\n'


def directory(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_every_field_becomes_its_value(tmp_path: Path) -> None:
    """The whole document of the field table, value by value; money and ratios are exact decimals."""
    policies = load(directory(tmp_path, a=FULL))
    assert policies.models == {
        "tiny": ModelSpec(
            name="tiny",
            replicas=(ReplicaSpec(url="http://127.0.0.1:9001"), ReplicaSpec(url="https://gpu-2:9002")),
            aliases=("small", "vendor/tiny"),
            context_tokens=4096,
            gpu=GpuSpec(sku="H100", count=2),
            price=PriceSpec(
                output_usd_per_mtok=Decimal("0.35"), input_ratio=Decimal("0.28"), cached_ratio=Decimal("0.1")
            ),
        )
    }
    limits = LimitsSpec(
        requests_per_minute=600,
        tokens_per_minute=200_000,
        concurrent_requests=32,
        budget_usd=Decimal("50.5"),
        budget_period="day",
        max_input_tokens=3000,
        max_output_tokens=1000,
    )
    keys = (KeySpec(id="acme-ci", sha256=SHA),)
    assert policies.tenants == {"acme": TenantSpec(name="acme", keys=keys, class_name="interactive", limits=limits)}
    assert policies.classes == {
        "interactive": ClassSpec(
            name="interactive",
            priority=10,
            weight=Decimal("1.5"),
            max_wait_s=Decimal("0.5"),
            slo=SloSpec(ttft_p99_ms=600, itl_p99_ms=80),
        )
    }


def test_a_tenants_time_zone_is_its_limits(tmp_path: Path) -> None:
    """Written with the tenant, and where its budget's days and months begin; UTC for the others."""
    text = MODEL + "tenants: {acme: {time_zone: Europe/Berlin, limits: {requests_per_minute: 5}}, rival: {}}\n"
    tenants = load(directory(tmp_path, a=text)).tenants
    assert tenants["acme"].limits == LimitsSpec(requests_per_minute=5, time_zone="Europe/Berlin")
    assert tenants["rival"].limits.time_zone == "UTC"


def test_tags_to_split_usage_by(tmp_path: Path) -> None:
    """None unless the policy names them; a header's name is lower case, as servers hand it over."""
    ledger = load(directory(tmp_path, a=MODEL)).ledger
    assert (ledger.users_max, ledger.tags) == (1000, TagsSpec())
    text = MODEL + "ledger: {users_max: 0, tags: {names: [team, app], header: X-Tags, values_max: 7}}\n"
    ledger = load(directory(tmp_path, a=text)).ledger
    assert (ledger.users_max, ledger.tags) == (0, TagsSpec(names=("team", "app"), header="x-tags", values_max=7))


def test_alerts_go_to_one_address_or_nowhere(tmp_path: Path) -> None:
    """Which may be a secret itself: nothing shows it that shows policies."""
    assert load(directory(tmp_path, a=MODEL)).alerts is None
    policies = load(directory(tmp_path, a=MODEL, b="alerts: {url: 'https://hooks.example.com/T0/B1?x=1'}\n"))
    assert policies.alerts == AlertsSpec(url="https://hooks.example.com/T0/B1?x=1")
    assert "hooks.example.com" not in repr(policies)
    with pytest.raises(PolicyError, match=r"b\.yaml:1: alerts: is written already in .*a\.yaml:2; keep one"):
        load(directory(tmp_path, a=MODEL + "alerts: {url: http://a}\n"))


def test_numbers_are_read_from_their_text(tmp_path: Path) -> None:
    """A price that no float can hold arrives digit by digit."""
    text = 'models: {m: {replicas: [{url: "http://a:1"}], price: {output_usd_per_mtok: 123456789.123456789012}}}'
    price = load(directory(tmp_path, a=text)).models["m"].price
    assert price is not None
    assert str(price.output_usd_per_mtok) == "123456789.123456789012"


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    """A model needs only replicas, a tenant nothing at all: every model, no limits."""
    policies = load(directory(tmp_path, a=MODEL + "tenants: {acme: {}}\nclasses: {slow: {}}\n"))
    assert policies.models["tiny"] == ModelSpec(name="tiny", replicas=(ReplicaSpec(url="http://a:1"),))
    assert policies.tenants["acme"] == TenantSpec(name="acme")
    assert policies.tenants["acme"].limits == LimitsSpec()
    assert policies.classes["slow"] == ClassSpec(name="slow", max_wait_s=Decimal(2))
    assert policies.class_of(policies.tenants["acme"]) == ClassSpec(name="default")


def test_files_are_one_policy_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Models, tenants and classes may each have their own file, and refer to each other; empty sections say nothing."""
    files = {
        "b": "tenants: {acme: {models: [tiny], class: slow}}\nclasses:\n",
        "a": MODEL.replace("tiny", "other"),
        "c": MODEL + "classes: {slow: {}}\n",
        "d": "# only a comment\n",
    }
    policies = load(directory(tmp_path, **files))
    assert list(policies.models) == ["other", "tiny"]
    assert policies.tenants["acme"].class_name == "slow"


def test_files_that_are_no_policies_are_left_alone(tmp_path: Path) -> None:
    """Editors' hidden files, schemas and directories beside the documents do not matter."""
    (tmp_path / ".#a.yaml").write_text("not: [yaml")
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "..data").mkdir()
    assert list(load(directory(tmp_path, a=MODEL)).models) == ["tiny"]


def test_anchors_and_merges_are_yaml_like_any_other(tmp_path: Path) -> None:
    """Limits written once serve several tenants, and a tenant's own field wins over a merged one."""
    text = """
tenants:
  a: {limits: &usual {requests_per_minute: 600, tokens_per_minute: 1000}}
  b: {limits: *usual}
  c: {limits: {<<: *usual, requests_per_minute: 5}}
"""
    tenants = load(directory(tmp_path, a=MODEL + text)).tenants
    assert tenants["b"].limits == LimitsSpec(requests_per_minute=600, tokens_per_minute=1000)
    assert tenants["c"].limits == LimitsSpec(requests_per_minute=5, tokens_per_minute=1000)


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    """One byte more, a comment even, is another policy; the same bytes are the same one."""
    first = load(directory(tmp_path, a=MODEL)).sha256
    assert load(directory(tmp_path, a=MODEL + "# note\n")).sha256 != first
    policies = load(directory(tmp_path, a=MODEL))
    assert policies.sha256 == first
    assert policies.price_epoch == f"policy:{first[:12]}"


def test_a_model_answers_to_its_name_and_its_aliases(tmp_path: Path) -> None:
    """Clients may send either; anything else is no model."""
    policies = load(directory(tmp_path, a=FULL))
    tiny = policies.models["tiny"]
    assert (policies.model_named("tiny"), policies.model_named("vendor/tiny")) == (tiny, tiny)
    assert policies.model_named("Tiny") is None


@pytest.mark.parametrize(("models", "may"), [('["*"]', True), ("[tiny]", True), ("[small]", True), ("[other]", False)])
def test_a_tenant_may_use_what_its_list_names(tmp_path: Path, models: str, may: bool) -> None:
    """By name, by alias, or all with a star; nothing else."""
    text = MODEL.replace("{replicas", "{aliases: [small], replicas", 1).rstrip("\n").rstrip("}")
    text += '}, other: {replicas: [{url: "http://a:1"}]}}\n' + f"tenants: {{acme: {{models: {models}}}}}\n"
    policies = load(directory(tmp_path, a=text))
    tenant = policies.tenants["acme"]
    assert tenant.may_use(policies.models["tiny"]) is may
    assert (policies.models["tiny"] in policies.models_of(tenant)) is may


def test_prices_are_ready_to_charge(tmp_path: Path) -> None:
    """Each priced model has a `Price` in the documents' own epoch: 1,000 output tokens cost 350,000 nano-dollars."""
    policies = load(directory(tmp_path, a=FULL))
    assert policies.prices["tiny"].cost_nanousd(Usage(output_tokens=1000)) == 350_000
    assert policies.prices["tiny"].epoch == policies.price_epoch


@pytest.mark.parametrize(
    ("gpu", "hourly"),
    [
        ("{sku: H100, count: 2}", "5.98"),
        ("{usd_per_hour: 1.25, count: 4}", "5.00"),
        ("{sku: H100, purchase: spot}", "1.05"),
    ],
)
def test_a_replica_costs_all_its_gpus(tmp_path: Path, gpu: str, hourly: str) -> None:
    """By the catalogue's price or one's own, times the count."""
    text = f'models: {{m: {{replicas: [{{url: "http://a:1"}}], gpu: {gpu}}}}}'
    policies = load(directory(tmp_path, a=text))
    spec = policies.models["m"].gpu
    assert spec is not None
    assert spec.replica_usd_per_hour(policies.catalogue) == Decimal(hourly)


def test_the_example_is_valid_as_it_stands() -> None:
    """`policies/` can be served without an edit."""
    policies = load(Path("policies"))
    assert list(policies.models) == ["tiny"]
    assert policies.tenants["acme"].limits.budget_usd == Decimal(50)


def test_the_examples_commented_lines_are_valid_too(tmp_path: Path) -> None:
    """Whoever takes the `#` off an optional line of the example gets a policy that loads."""
    lines = Path("policies/example.yaml").read_text().splitlines()
    taken = []
    for line in lines:
        body = line.lstrip()
        optional = body.startswith("# ") and line != body  # comments of the top level are prose
        taken.append(line[: len(line) - len(body)] + body[2:] if optional else line)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.touch()
    text = "\n".join(line for line in taken if "gpu: {sku" not in line)
    text = text.replace("/srv/models/tiny/tokenizer.json", str(tokenizer))
    policies = load(directory(tmp_path, a=text))
    assert policies.models["tiny"].context_tokens == 4096
    assert policies.models["tiny"].tokenizer == str(tokenizer)
    assert policies.models["tiny"].gpu == GpuSpec(usd_per_hour=Decimal("2.99"))
    assert policies.tenants["batch-team"].class_name == "batch"


def test_nothing_is_half_loaded(tmp_path: Path) -> None:
    """One bad file among good ones refuses them all."""
    with pytest.raises(PolicyError):
        load(directory(tmp_path, a=MODEL, b="classes: {slow: {priority: x}}"))


def test_a_key_has_limits_of_its_own(tmp_path: Path) -> None:
    """Found by its public id; a price is needed for its budget as for its tenant's."""
    limits = "{tokens_per_day: 1000, usd_per_day: 2.5}"
    keys = f"keys: [{{id: a-ci, sha256: {SHA!r}, limits: {limits}}}, {{id: a-b, sha256: {SHA[::-1]!r}}}]"
    priced = MODEL.replace("}]}}", "}], price: {output_usd_per_mtok: 1}}}")
    policies = load(directory(tmp_path, a=priced + f"tenants: {{a: {{{keys}}}}}\n"))
    tenant = policies.tenants["a"]
    assert tenant.limits_of_key("a-ci") == ScopeLimitsSpec(tokens_per_day=1000, usd_per_day=Decimal("2.5"))
    assert tenant.limits_of_key("a-b") is None
    budgeted = [policies.scopes_of(tenant, key, "tiny").is_budgeted for key in ("a-ci", "a-b")]
    assert budgeted == [True, False]


def test_lengths_of_keys_tenants_classes_and_models(tmp_path: Path) -> None:
    """Each may have context limits of its own; where nothing else has lengths, `on_excess` alone is a mistake."""
    document = """\
models:
  tiny: {replicas: [{url: "http://h:1"}], context: {on_excess: cap}}
tenants:
  acme: {class: batch, keys: [{id: a-ci, sha256: "%s", context: {max_input_tokens: 5}}], context: {on_excess: cap}}
classes:
  batch: {context: {max_total_tokens: 9, max_output_tokens: 3, on_excess: refuse}}
"""
    (tmp_path / "all.yaml").write_text(document % ("0" * 64))
    policies = load(tmp_path)
    acme = policies.tenants["acme"]
    assert acme.context == policies.models["tiny"].context == ContextSpec(on_excess="cap")
    assert acme.context_of_key("a-ci") == ContextSpec(max_input_tokens=5)
    assert acme.context_of_key("other") is None
    assert policies.class_of(acme).context == ContextSpec(max_output_tokens=3, max_total_tokens=9)
    (tmp_path / "all.yaml").write_text((document % ("0" * 64)).replace("max_input_tokens: 5", "on_excess: cap"))
    with pytest.raises(PolicyError, match="on_excess: says nothing alone; add max_input_tokens"):
        load(tmp_path)


def test_a_budget_holds_the_dearest_that_a_model_may_cost(tmp_path: Path) -> None:
    """Its own output at 2 $/Mtok, a provider's dearer input; both are in force under names of their own."""
    pools = """pools:
      - {name: own, replicas: [{url: "http://a:1"}]}
      - {name: far, engine: openai, replicas: [{url: "https://b/v1"}],
         price: {output_usd_per_mtok: 1, input_ratio: 1, cached_ratio: 0.5}}"""
    price = "price: {output_usd_per_mtok: 2, input_ratio: 0.25, cached_ratio: 0.1}"
    policies = load(directory(tmp_path, a=f"models:\n  m:\n    {pools}\n    {price}\n"))
    cover, far = policies.covers["m"], policies.pool_prices["m", "far"]
    dollars = (cover.output_usd_per_mtok, cover.input_usd_per_mtok, cover.cached_usd_per_mtok)
    assert dollars == (2, 1, Decimal("0.5"))
    assert (policies.prices["m"].epoch, far.epoch) == (policies.price_epoch, f"{policies.price_epoch}/far")
    assert [replica.url for replica in policies.models["m"].replicas] == ["http://a:1"]
