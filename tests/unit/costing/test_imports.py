"""GPU cost from OpenCost and FOCUS: what it says is what is charged, and what it does not say is refused."""

from __future__ import annotations

import json

import pytest

from gateway.costing import CostImportError, focus_spans, opencost_spans
from gateway.pricing import cost_nanousd

HOUR = {"start": "2026-11-25T10:00:00Z", "end": "2026-11-25T11:00:00Z"}
TEN = 1_795_600_800
ANSWER = {
    "code": 200,
    "data": [
        {
            "llama": {"name": "llama", **HOUR, "gpuCost": 3.0, "totalCost": 3.200000001},
            "__idle__": {**HOUR, "totalCost": 9.0},
        },
        None,
    ],
}
FOCUS = """ResourceId,ChargePeriodStart,ChargePeriodEnd,BilledCost,EffectiveCost,BillingCurrency
i-1,2026-11-25T10:00:00Z,2026-11-25T11:00:00Z,55.04,27.123456789,USD
i-2,2026-11-25T10:00:00Z,2026-11-25T11:00:00Z,1,1,USD
i-1,2026-11-25T11:00:00Z,2026-11-25T11:00:01Z,0.01,0.01,USD
"""


def test_opencosts_hour_costs_what_it_says() -> None:
    """To the nano-dollar; what is somebody else's is left out."""
    spans = opencost_spans(json.dumps(ANSWER).encode(), {"llama": "tiny"})
    assert [(span.models, span.start_s, span.end_s) for span in spans] == [(("tiny",), TEN, TEN + 3600)]
    assert cost_nanousd(spans, 0, TEN * 2) == 3_200_000_001


def test_a_focus_file_is_read_by_the_column_that_names_the_machines() -> None:
    """Effective cost, which has discounts in it, goes before billed cost."""
    spans = focus_spans(FOCUS, "ResourceId", {"i-1": "tiny"})
    assert [span.cost_nanousd(0, TEN * 2) for span in spans] == [27_123_456_789, 10_000_000]
    assert {span.models for span in spans} == {("tiny",)}


def test_the_same_row_is_the_same_span() -> None:
    """Imported twice, it counts once."""
    once, again = (focus_spans(FOCUS, "ResourceId", {"i-1": "tiny"}) for _ in range(2))
    assert once == again
    assert len({(span.replica, span.start_s) for span in once}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FOCUS.replace("EffectiveCost", "Effective").replace("BilledCost", "Billed"), "no column EffectiveCost"),
        (FOCUS.replace("ResourceId", "Resource"), "no column ResourceId"),
        (FOCUS.replace("USD", "EUR"), "line 2 is in EUR"),
        (FOCUS.replace("27.123456789", "much"), "line 2: EffectiveCost 'much' is no number"),
        (FOCUS.replace("T11:00:00Z,55", "T10:00:00Z,55"), "that is no cost of a time"),
        (FOCUS.replace("2026-11-25T10:00:00Z,2026-11-25T11", "yesterday,2026-11-25T11"), "'yesterday' is no time"),
    ],
)
def test_what_is_no_cost_is_refused(text: str, words: str) -> None:
    """With the line and what is wrong there."""
    with pytest.raises(CostImportError, match=words):
        focus_spans(text, "ResourceId", {"i-1": "tiny"})


def test_what_is_no_answer_of_opencost_is_refused() -> None:
    """An error page instead of JSON."""
    with pytest.raises(CostImportError, match="no answer of OpenCost"):
        opencost_spans(b"<html>", {})
