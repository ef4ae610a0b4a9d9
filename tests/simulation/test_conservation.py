"""A day that adds up: idle hours, bursts, scaling, spot losses, price steps, 50 tenants. What GPUs cost is billed, lost
or idle, to the nano-dollar, whatever the price was smoothed over; and every bill can be computed again.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.billing import make_bill, parse_month, sold
from gateway.costing import Epoch, Tariffs, decide, measured_window
from gateway.economics import make_economics
from gateway.economics._report import ModelSpan
from gateway.metering import UsageEvent
from gateway.policy import Policies, load
from gateway.pricing import GpuSpan, Measured, cost_nanousd, weighted_tokens
from gateway.usage import Billed
from gateway.wire import Usage
from tests.recompute_bills import recompute

DAY_S, HOUR_S, EPOCH_S = 86_400, 3600, 300
MONTH = parse_month("2026-11")
START_S = MONTH.start_s + 3 * DAY_S
TENANTS = 50
INPUT_RATIO, CACHED_RATIO = Decimal("0.28"), Decimal("0.1")

POLICY = """
models:
  tiny:
    replicas: [{{url: "http://a:1"}}]
    gpu: {{usd_per_hour: 2.99}}
    price: {{mode: live, output_usd_per_mtok: 0.4, smooth: {smooth}, overhead: 1.5, max_step: 0.25,
             floor_usd_per_mtok: 0.05, ceiling_usd_per_mtok: 3}}
tenants:
{tenants}
classes: {{batch: {{price_multiplier: 0.5}}}}
"""


def policies(directory: Path, smooth: str) -> Policies:
    tenants = [f"  t{n}: {{class: batch}}" if n % 5 == 0 else f"  t{n}: {{}}" for n in range(TENANTS)]
    tenants[7] = "  t7: {prices: {tiny: {off_peak: {from_hour: 22, to_hour: 6, discount: 0.4}}}}"
    (directory / "policy.yaml").write_text(POLICY.format(smooth=smooth, tenants="\n".join(tenants)))
    return load(directory)


@dataclass
class Day:
    """A fleet and its tenants, played once."""

    policies: Policies
    chance: random.Random
    spans: list[GpuSpan] = field(default_factory=list)
    events: list[UsageEvent] = field(default_factory=list)
    lost: dict[int, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))

    def rent(self) -> None:
        """One GPU all day, more at noon, spot ones that come and go, one whose price changes."""
        self._there("base", 0, DAY_S, "2.99")
        self._there("step", 6 * HOUR_S, 12 * HOUR_S + 17, "3.49")
        self._there("step", 12 * HOUR_S + 17, 20 * HOUR_S, "2.87")
        at = 8 * HOUR_S
        while at < 18 * HOUR_S:
            until = at + self.chance.randrange(200, 5000)
            self._there("spot", at, until, "1.05")
            at = until + self.chance.randrange(1, 2000)

    def _there(self, replica: str, start: int, end: int, usd_per_hour: str) -> None:
        self.spans.append(
            GpuSpan(
                replica=replica,
                models=("tiny",),
                start_s=START_S + start,
                end_s=START_S + end,
                nanousd_per_hour=int(Decimal(usd_per_hour) * 10**9),
            )
        )

    def play(self) -> None:
        epoch: Epoch | None = None
        for at in range(0, DAY_S, EPOCH_S):
            epoch = self._decide(START_S + at, epoch)
            tariffs = Tariffs(self.policies, epoch)
            hour = at // HOUR_S
            busy = 0 if 2 <= hour < 5 else 1 if hour < 8 or hour > 20 else 4
            for tenant in self.chance.sample(range(TENANTS), 4 * busy):
                self._serve(f"t{tenant}", tariffs, START_S + at + self.chance.randrange(EPOCH_S))

    def _decide(self, start_s: int, before: Epoch | None) -> Epoch:
        spec = self.policies.models["tiny"].price
        assert spec is not None
        first, last = measured_window(start_s, EPOCH_S, spec.smooth)
        sums = [0, 0, 0]
        for minute_s in range(first, last, 60):
            for index, n in enumerate(self.tokens.get(minute_s, ())):
                sums[index] += n
        measured = Measured(
            cost_nanousd=cost_nanousd(self.spans, first, last),
            input_tokens=sums[0],
            cached_tokens=sums[1],
            output_tokens=sums[2],
        )
        return decide(
            self.policies,
            start_s,
            before=before,
            measured={"tiny": measured},
            input_ratios={},
            volumes={},
            decided_s=start_s,
            fence=1,
        )

    def _serve(self, tenant: str, tariffs: Tariffs, at_s: int) -> None:
        price = tariffs.of(self.policies.tenants[tenant], "tiny")
        assert price is not None
        prompt = self.chance.randrange(1, 400_000)
        usage = Usage(
            input_tokens=prompt,
            input_cached_tokens=self.chance.randrange(prompt),
            output_tokens=self.chance.randrange(200_000),
        )
        if self.chance.random() < 0.02:  # a replica died with it
            self.lost[at_s // HOUR_S * HOUR_S] += usage.output_tokens + INPUT_RATIO * usage.input_tokens
        uncached = usage.input_tokens - usage.input_cached_tokens
        for index, n in enumerate((uncached, usage.input_cached_tokens, usage.output_tokens)):
            self.tokens[at_s // 60 * 60][index] += n
        self.events.append(
            UsageEvent(
                id=f"r{len(self.events)}",
                tenant=tenant,
                key="k",
                model="tiny",
                endpoint="/v1/chat/completions",
                status="ok",
                usage=usage,
                cost_nanousd=price.cost_nanousd(usage),
                price_epoch=price.epoch,
                arrived_ms=at_s * 1000,
                ended_ms=at_s * 1000,
            )
        )
        self.book[price.epoch, "tiny"] = price

    def __post_init__(self) -> None:
        self.book = {}  # type: ignore[var-annotated]
        self.rent()
        self.play()

    def hours(self) -> Iterator[ModelSpan]:
        by_hour: dict[int, dict[str, Billed]] = defaultdict(dict)
        for event in self.events:
            of_hour = by_hour[event.ended_ms // 1000 // HOUR_S * HOUR_S]
            cached = event.usage.input_cached_tokens
            of_hour[event.tenant] = of_hour.get(event.tenant, Billed()) + Billed(
                requests=1,
                input_tokens=event.usage.input_tokens - cached,
                cached_tokens=cached,
                output_tokens=event.usage.output_tokens,
                cost_nanousd=event.cost_nanousd,
            )
        for hour_s in range(START_S, START_S + DAY_S, HOUR_S):
            billed = by_hour[hour_s]
            cost = cost_nanousd(self.spans, hour_s, hour_s + HOUR_S)
            made = sum(
                (weighted_tokens(one, input_ratio=INPUT_RATIO, cached_ratio=CACHED_RATIO) for one in billed.values()),
                Decimal(0),
            )
            lost = self.lost[hour_s]
            yield ModelSpan(
                model="tiny",
                gpu_seconds=HOUR_S,
                cost_nanousd=cost,
                lost_nanousd=int(cost * lost / (made + lost)) if lost else 0,
                billed=billed,
                input_ratio=INPUT_RATIO,
                cached_ratio=CACHED_RATIO,
                best_per_gpu_s=None,
                hosted={},
            )


@pytest.mark.parametrize("smooth", ["epoch", "hour", "day"])
def test_a_day_adds_up(tmp_path: Path, smooth: str) -> None:
    """Bills, losses and idle dollars are what the GPUs cost; a tenant's costs are too; bills come out of the events
    again, by code that knows nothing of the gateway."""
    day = Day(policies(tmp_path, smooth), random.Random(f"a day by the {smooth}"))
    reports = [
        make_economics(span_s, span_s + HOUR_S, [span], is_stale={})
        for span_s, span in zip(range(START_S, START_S + DAY_S, HOUR_S), day.hours(), strict=True)
    ]
    models = [report.models[0] for report in reports]
    whole = sum(span.cost_nanousd(START_S, START_S + DAY_S) for span in day.spans)

    billed = sum(model.billed_nanousd for model in models)
    lost = sum(model.lost_nanousd for model in models)
    idle = sum(model.idle_nanousd for model in models)
    assert billed + lost + idle == whole
    assert lost > 0
    assert any(model.billed_nanousd == 0 < model.idle_nanousd for model in models), "the dead hours are idle"
    busy = [model for model in models if model.requests]
    of_tenants = sum(one.cost_nanousd for report in reports for one in report.tenants)
    assert of_tenants == sum(model.cost_nanousd for model in busy)

    bills = {
        tenant: make_bill(
            tenant, MONTH, sold(e for e in day.events if e.tenant == tenant), day.book, committed_nanousd={}
        )
        for tenant in day.policies.tenants
    }
    assert sum(bill.total_nanousd for bill in bills.values()) == billed
    assert not any(bill.unpriced_epochs for bill in bills.values())

    rows = [
        {
            "event_id": event.id,
            "tenant": event.tenant,
            "time": "2026-11-04T00:00:00Z",
            "status": event.status,
            "model": event.model,
            "input_tokens": event.usage.input_tokens,
            "input_cached_tokens": event.usage.input_cached_tokens,
            "output_tokens": event.usage.output_tokens,
            "cost_nanousd": event.cost_nanousd,
            "price_epoch": event.price_epoch,
        }
        for event in day.events
    ]
    book = {
        f"{epoch}|{model}": {
            "input": str(price.input_usd_per_mtok),
            "cached": str(price.cached_usd_per_mtok),
            "output": str(price.output_usd_per_mtok),
        }
        for (epoch, model), price in day.book.items()
    }
    owed, wrong = recompute(rows, book)
    assert wrong == []
    assert owed == {(t, "2026-11"): bill.total_nanousd for t, bill in bills.items() if bill.requests}


def test_the_price_follows_what_the_fleet_costs(tmp_path: Path) -> None:
    """Over the busy hours the bills recover what the GPUs cost with their overhead, within a quarter: the price comes
    from the hour before, and half of a fifth of the tenants pay half."""
    day = Day(policies(tmp_path, "hour"), random.Random("follows"))
    busy = range(START_S + 10 * HOUR_S, START_S + 18 * HOUR_S)
    billed = sum(event.cost_nanousd for event in day.events if event.ended_ms // 1000 in busy)
    cost = cost_nanousd(day.spans, busy.start, busy.stop)
    assert Decimal("1.1") < Decimal(billed) / cost < Decimal("1.7")
