"""FOCUS rows: every token and nano-dollar of the hour buckets, in the columns FinOps tools read."""

from __future__ import annotations

import asyncio
import csv
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from typer.testing import CliRunner

from gateway.cli import app
from gateway.export import Ratios, focus_rows, split_cost
from gateway.metering import CACHED, COST, INPUT, OUTPUT, Dimensions, sum_field
from tests.integration.store.ledgers import T0_MS, PatientLedger, event

USUAL = Ratios(Decimal("0.28"), Decimal("0.1"))
HOUR_S = T0_MS // 3_600_000 * 3600


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.fractions(0, 10**9), min_size=1, max_size=4).filter(any),
)
def test_a_split_cost_adds_up(total: int, weights: list[Fraction]) -> None:
    """Each part is within a nano-dollar of its share, and their sum is the cost."""
    parts = split_cost(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    assert all(abs(part - total * weight / whole) < 1 for part, weight in zip(parts, weights, strict=True))


sums = st.fixed_dictionaries(
    {INPUT: st.integers(0, 10**9), OUTPUT: st.integers(0, 10**9), COST: st.integers(-(10**12), 10**12)}
).flatmap(lambda of: st.integers(0, of[INPUT]).map(lambda cached: of | {CACHED: cached}))
groups = st.builds(
    Dimensions,
    model=st.sampled_from(["tiny", "big"]),
    key=st.sampled_from(["ci", "=web"]),
    endpoint=st.sampled_from(["chat", "completions"]),
    status=st.sampled_from(["ok", "client_gone", "correction"]),
    replica=st.just(""),
    user=st.just(""),
    tags=st.sampled_from(["", "app=chat&team=search"]),
)


@given(st.dictionaries(groups, sums, max_size=6))
@settings(deadline=None)
def test_the_rows_keep_the_buckets_sums(bucket: dict[Dimensions, dict[str, int]]) -> None:
    """To the token and the nano-dollar, whatever the bucket holds."""
    fields = {sum_field(group, metric): n for group, of in bucket.items() for metric, n in of.items()}
    rows = focus_rows("acme", HOUR_S, fields, {"big": Ratios(Decimal(0), Decimal(0))}, USUAL)
    for cost in ("billed_cost", "effective_cost", "list_cost", "contracted_cost"):
        billed = sum(Fraction(getattr(row, cost)) for row in rows)
        assert billed * 10**9 == sum(of[COST] for of in bucket.values())
    tokens = sum(int(row.consumed_quantity or 0) for row in rows)
    assert tokens == sum(of[INPUT] + of[OUTPUT] for of in bucket.values())
    places = [(row.sku_id, row.resource_id, row.tags, row.charge_class) for row in rows]
    assert len(places) == len(set(places)), "one row for each kind of token"


async def test_an_export_in_focus(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """The command's CSV: one row per kind of token, corrections marked, hours and months in UTC."""
    async with PatientLedger(redis, tmp_path / "journal") as ledger:
        usage = {"input_tokens": 1000, "cached_tokens": 400, "output_tokens": 50, "cost_nanousd": 258_000}
        for n in range(3):
            await ledger.record(event(f"r{n}", **usage))  # type: ignore[arg-type]
        await ledger.record(event("c1", status="correction", cost_nanousd=-1000))
    output = tmp_path / "focus.csv"
    arguments = ["--start", str(HOUR_S), "--end", str(HOUR_S + 3600), "--output", str(output)]
    command = ["usage", "export", "--format", "focus", "--tenant", "acme", *arguments]
    done = await asyncio.to_thread(CliRunner().invoke, app, command, env={"MTOK_REDIS_URL": valkey_url})
    assert (done.exit_code, done.stderr) == (0, "mtok: 4 rows\n")
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["SkuId"], row["ConsumedQuantity"], row["BilledCost"], row["ChargeClass"]) for row in rows] == [
        ("tiny/input", "1800", "0.000504", ""),
        ("tiny/cached-input", "1200", "0.00012", ""),
        ("tiny/output", "150", "0.00015", ""),
        ("tiny/adjustment", "", "-0.000001", "Correction"),
    ]
    assert rows[0] | {"ChargeDescription": "", "ListCost": "", "ContractedCost": "", "EffectiveCost": ""} == {
        "BilledCost": "0.000504",
        "BillingAccountId": "mtok",
        "BillingAccountName": "Mtok",
        "BillingCurrency": "USD",
        "BillingPeriodStart": "2026-09-01T00:00:00Z",
        "BillingPeriodEnd": "2026-10-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": "",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": "2026-09-21T14:00:00Z",
        "ChargePeriodEnd": "2026-09-21T15:00:00Z",
        "ConsumedQuantity": "1800",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "",
        "EffectiveCost": "",
        "InvoiceIssuerName": "Mtok",
        "ListCost": "",
        "PricingCategory": "Standard",
        "PricingQuantity": "1800",
        "PricingUnit": "Tokens",
        "ProviderName": "Mtok",
        "PublisherName": "Mtok",
        "ResourceId": "ci",
        "ResourceName": "ci",
        "ResourceType": "API Key",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Mtok Inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "tiny/input",
        "SkuMeter": "input",
        "SkuPriceId": "tiny/input",
        "SubAccountId": "acme",
        "SubAccountName": "acme",
        "Tags": "{}",
    }
