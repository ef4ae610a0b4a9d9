"""A bill: lines at their prices, corrections, a commitment, and a total that is the ledger's to the nano-dollar."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing import Bill, bill_csv, bill_html, bill_text, make_bill, parse_month, sold
from gateway.metering import UsageEvent
from gateway.pricing import Price
from gateway.wire import Usage

NOVEMBER = parse_month("2026-11")
AT_MS = (NOVEMBER.start_s + 86_400) * 1000
BOOK = {
    ("e1", "tiny"): Price.in_usd(epoch="e1", output=Decimal("0.35"), input=Decimal("0.098"), cached=Decimal("0.035")),
    ("e2", "tiny"): Price.in_usd(epoch="e2", output=Decimal("0.40"), input=Decimal("0.112"), cached=Decimal("0.04")),
    ("e3", "tiny"): Price.in_usd(epoch="e3", output=Decimal("0.35"), input=Decimal("0.098"), cached=Decimal("0.035")),
}


def event(epoch: str, input_tokens: int, cached: int, output: int, **changes: object) -> UsageEvent:
    usage = Usage(input_tokens=input_tokens, input_cached_tokens=cached, output_tokens=output)
    told = {
        "id": "r",
        "tenant": "acme",
        "key": "k",
        "model": "tiny",
        "endpoint": "/v1/chat/completions",
        "status": "ok",
        "usage": usage,
        "cost_nanousd": BOOK[epoch, "tiny"].cost_nanousd(usage),
        "price_epoch": epoch,
        "arrived_ms": AT_MS,
        "ended_ms": AT_MS,
    }
    return UsageEvent(**{**told, **changes})  # type: ignore[arg-type]


def bill(*events: UsageEvent, committed: dict[str, int] | None = None, idle: int = 0) -> Bill:
    return make_bill("acme", NOVEMBER, sold(events), BOOK, committed_nanousd=committed or {}, idle_nanousd=idle)


def test_lines_are_per_model_kind_and_price() -> None:
    """Two epochs at one price are one line; another price is another."""
    made = bill(event("e1", 100, 0, 10), event("e2", 100, 40, 10), event("e3", 50, 50, 10))
    assert [(line.kind, str(line.usd_per_mtok), line.tokens, line.nanousd) for line in made.lines] == [
        ("input", "0.098", 100, Decimal(9800)),
        ("input", "0.112", 60, Decimal(6720)),
        ("cached input", "0.035", 50, Decimal(1750)),
        ("cached input", "0.04", 40, Decimal(1600)),
        ("output", "0.35", 20, Decimal(7000)),
        ("output", "0.4", 10, Decimal(4000)),
    ]
    assert made.subtotal_nanousd == made.total_nanousd == 30_870


def test_a_correction_is_on_it_with_its_reason() -> None:
    """The original stays; what was given back stands below it."""
    credit = event("e1", 0, 0, 0, status="correction", corrects="r", reason="garbled answer", cost_nanousd=-5000)
    made = bill(event("e1", 100, 0, 10), credit)
    assert (made.requests, made.subtotal_nanousd, made.ledger_nanousd) == (1, 13_300, 8_300)
    assert ("correction", "r: garbled answer", "", "", "-0.000005") in bill_text(made)


def test_what_is_refused_costs_nothing() -> None:
    """Refused requests are no requests on a bill."""
    made = bill(event("e1", 0, 0, 0, status="refused", cost_nanousd=0))
    assert (made.requests, made.total_nanousd, made.lines) == (0, 0, [])


def test_a_commitment_is_paid_even_where_less_was_used() -> None:
    """What is missing of it is a line; more than it is no credit."""
    used = event("e1", 100, 0, 10)
    assert bill(used, committed={"tiny": 100_000}).total_nanousd == 100_000
    assert bill(used, committed={"tiny": 10_000}).total_nanousd == 13_300


def test_idle_capacity_is_a_line_of_its_own() -> None:
    """Where the policy puts it on bills."""
    made = bill(event("e1", 100, 0, 10), idle=700)
    assert made.total_nanousd == 14_000
    assert ("idle capacity", "this tenant's part of it", "", "", "0.0000007") in bill_text(made)


@given(
    st.lists(st.tuples(st.sampled_from(["e1", "e2", "e3"]), st.integers(0, 10**7), st.integers(0, 10**7)), max_size=30)
)
def test_lines_and_rounding_are_the_ledgers_sum(parts: list[tuple[str, int, int]]) -> None:
    """Every event is rounded once, the lines are exact: what is between them is on the bill, to the last digit."""
    events = [event(epoch, n, n // 3, m) for epoch, n, m in parts]
    made = bill(*events)
    assert made.ledger_nanousd == sum(one.cost_nanousd for one in events)
    assert sum((line.nanousd for line in made.lines), Decimal(0)) + made.rounding_nanousd == made.subtotal_nanousd
    assert abs(made.rounding_nanousd) <= Decimal("0.5") * len(events)
    rows = list(csv.DictReader(io.StringIO(bill_csv(made))))
    amounts = {row["item"]: Decimal(row["usd"]) for row in rows}
    assert amounts["total"] * 10**9 == made.total_nanousd
    lines = [Decimal(row["usd"]) for row in rows if row["tokens"]]
    assert sum(lines, amounts["rounding"]) == amounts["subtotal"]


def test_an_event_whose_price_is_lost_is_told() -> None:
    """It is still charged what the ledger has; nobody can say why."""
    made = bill(event("e1", 100, 0, 10), event("e1", 100, 0, 10, price_epoch="e9"))
    assert made.unpriced_epochs == ["e9|tiny"]
    assert made.ledger_nanousd == 26_600


def test_a_page_has_everything_and_nothing_from_elsewhere() -> None:
    """It prints on A4; a tenant's odd reason is text, not HTML."""
    credit = event("e1", 0, 0, 0, status="correction", corrects="r", reason="<b>sorry</b>", cost_nanousd=-1)
    page = bill_html(bill(event("e1", 1_000_000, 0, 10), credit))
    assert "Bill for acme, 2026-11" in page
    assert "1,000,000" in page
    assert "&lt;b&gt;sorry&lt;/b&gt;" in page
    assert "<script" not in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("text", "zone", "start", "end"),
    [
        ("2026-11", "UTC", 1_793_491_200, 1_796_083_200),
        ("2026-12", "UTC", 1_796_083_200, 1_798_761_600),
        ("2026-10", "Europe/Berlin", 1_790_805_600, 1_793_487_600),
    ],
)
def test_a_month_has_its_zones_midnights(text: str, zone: str, start: int, end: int) -> None:
    """October in Berlin is an hour longer."""
    month = parse_month(text, zone)
    assert (month.start_s, month.end_s) == (start, end)


@pytest.mark.parametrize("text", ["2026", "2026-13", "11-2026", "2026-00"])
def test_what_is_no_month_is_refused(text: str) -> None:
    """With how to write one."""
    with pytest.raises(ValueError, match="write it as 2026-11"):
        parse_month(text)
