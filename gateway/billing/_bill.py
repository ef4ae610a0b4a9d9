"""A bill from events and the price book. Pure: what it says can be computed again by anybody who has the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Literal

from msgspec import Struct

from gateway.metering import UsageEvent
from gateway.pricing import Price

from ._month import Month

Kind = Literal["input", "cached input", "output"]

_EXACT = Context(prec=80)
_NANOUSD_PER_USD_PER_MTOK = 1000


class BillLine(Struct, frozen=True, kw_only=True):
    """Tokens of one kind at one price. `nanousd` is exact and may have a fraction: one event is rounded once, a line
    is not."""

    model: str
    kind: Kind
    usd_per_mtok: Decimal
    tokens: int
    nanousd: Decimal


class Credit(Struct, frozen=True, kw_only=True):
    """A correction: what it refers to, why, and what it adds to the bill, mostly less than nothing."""

    id: str
    corrects: str
    model: str
    reason: str
    at_ms: int
    nanousd: int


class Shortfall(Struct, frozen=True, kw_only=True):
    """What a contract's commitment is short of at the month's end."""

    model: str
    committed_nanousd: int
    used_nanousd: int

    @property
    def nanousd(self) -> int:
        """What is missing."""
        return max(0, self.committed_nanousd - self.used_nanousd)


class Bill(Struct, frozen=True, kw_only=True):
    """What a tenant owes for a month. Nano-dollars but for the lines' exact amounts.

    `rounding_nanousd` is what rounding each event once has added to the exact lines. `subtotal_nanousd` is both, and
    with the corrections it is the ledger's own sum. `idle_nanousd` is the tenant's part of GPU cost that nobody used,
    where the policy puts that on bills.
    """

    tenant: str
    month: Month
    requests: int
    lines: list[BillLine]
    rounding_nanousd: Decimal
    subtotal_nanousd: int
    credits: list[Credit]
    shortfalls: list[Shortfall]
    idle_nanousd: int
    unpriced_epochs: list[str]

    @property
    def credits_nanousd(self) -> int:
        """All corrections together."""
        return sum(credit.nanousd for credit in self.credits)

    @property
    def ledger_nanousd(self) -> int:
        """What the ledger has: usage and corrections."""
        return self.subtotal_nanousd + self.credits_nanousd

    @property
    def total_nanousd(self) -> int:
        """What is owed."""
        return self.ledger_nanousd + sum(one.nanousd for one in self.shortfalls) + self.idle_nanousd


@dataclass(slots=True)
class Sold:
    """What events add up to: tokens by model and price epoch, and the corrections."""

    requests: int = 0
    nanousd: int = 0
    tokens: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    by_model: dict[str, int] = field(default_factory=dict)
    credits: list[Credit] = field(default_factory=list)

    def add(self, event: UsageEvent) -> None:
        """Counts an event."""
        if event.status == "refused":
            return
        self.by_model[event.model] = self.by_model.get(event.model, 0) + event.cost_nanousd
        if event.status == "correction":
            self.credits.append(
                Credit(
                    id=event.id,
                    corrects=event.corrects,
                    model=event.model,
                    reason=event.reason,
                    at_ms=event.ended_ms,
                    nanousd=event.cost_nanousd,
                )
            )
            return
        self.requests += 1
        self.nanousd += event.cost_nanousd
        usage = event.usage
        cached = min(usage.input_cached_tokens, usage.input_tokens)
        sums = self.tokens.setdefault((event.model, event.price_epoch), [0, 0, 0])
        for index, n in enumerate((usage.input_tokens - cached, cached, usage.output_tokens)):
            sums[index] += n


def sold(events: Iterable[UsageEvent]) -> Sold:
    """What these events add up to."""
    sums = Sold()
    for event in events:
        sums.add(event)
    return sums


def make_bill(
    tenant: str,
    month: Month,
    sums: Sold,
    book: Mapping[tuple[str, str], Price],
    *,
    committed_nanousd: Mapping[str, int],
    idle_nanousd: int = 0,
) -> Bill:
    """The bill. `committed_nanousd` is by model, of a contract; events whose epoch the book does not have are told in
    `unpriced_epochs`, and their cost is in the rounding."""
    tokens: dict[tuple[str, Kind, Decimal], int] = {}
    unpriced: set[str] = set()
    for (model, epoch), (uncached, cached, output) in sums.tokens.items():
        price = book.get((epoch, model))
        if price is None:
            if epoch:
                unpriced.add(f"{epoch}|{model}")
            continue
        parts: tuple[tuple[Kind, Decimal, int], ...] = (
            ("input", price.input_usd_per_mtok, uncached),
            ("cached input", price.cached_usd_per_mtok, cached),
            ("output", price.output_usd_per_mtok, output),
        )
        for kind, usd_per_mtok, n in parts:
            if n:
                place = (model, kind, usd_per_mtok.normalize())
                tokens[place] = tokens.get(place, 0) + n
    order = {"input": 0, "cached input": 1, "output": 2}
    lines = [
        BillLine(
            model=model,
            kind=kind,
            usd_per_mtok=usd_per_mtok,
            tokens=n,
            nanousd=_EXACT.multiply(usd_per_mtok, Decimal(n * _NANOUSD_PER_USD_PER_MTOK)),
        )
        for (model, kind, usd_per_mtok), n in sorted(
            tokens.items(), key=lambda item: (item[0][0], order[item[0][1]], item[0][2])
        )
    ]
    exact = sum((line.nanousd for line in lines), Decimal(0))
    return Bill(
        tenant=tenant,
        month=month,
        requests=sums.requests,
        lines=lines,
        rounding_nanousd=_EXACT.subtract(Decimal(sums.nanousd), exact),
        subtotal_nanousd=sums.nanousd,
        credits=sums.credits,
        shortfalls=[
            Shortfall(model=model, committed_nanousd=committed, used_nanousd=sums.by_model.get(model, 0))
            for model, committed in sorted(committed_nanousd.items())
        ],
        idle_nanousd=idle_nanousd,
        unpriced_epochs=sorted(unpriced),
    )
