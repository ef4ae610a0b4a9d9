"""GPU cost from outside: OpenCost's allocation API and FOCUS cost files, as spans beside those counted here. Pure.

OpenCost (opencost.io, `/allocation/compute`): `{"data": [{NAME: {"start", "end", "totalCost", ..}}]}`, NAME being what
it was aggregated by. FOCUS (focus.finops.org) 1.x: CSV with `ChargePeriodStart`, `ChargePeriodEnd`, `EffectiveCost` or
`BilledCost`, `BillingCurrency`, and any column to tell models by, `ResourceId` as a rule.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

import msgspec

from gateway.pricing import SECONDS_PER_HOUR, GpuSpan, nanousd_of_usd


class _Allocation(msgspec.Struct):
    start: str
    end: str
    totalCost: Decimal


class _Answer(msgspec.Struct):
    data: list[dict[str, _Allocation] | None]


class CostImportError(ValueError):
    """What was given holds no cost; the message says where and why."""


def opencost_spans(answer: bytes, model_of: Mapping[str, str]) -> list[GpuSpan]:
    """Spans of the models that `model_of` gives the names of; others are left out. Raises `CostImportError`."""
    try:
        told = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError as error:
        raise CostImportError(f"this is no answer of OpenCost's allocation API: {error}") from error
    return [
        _span("opencost", name, model_of[name], (one.start, one.end), one.totalCost)
        for step in told.data
        for name, one in (step or {}).items()
        if name in model_of
    ]


def focus_spans(text: str, column: str, model_of: Mapping[str, str]) -> list[GpuSpan]:
    """Spans of the rows whose `column` holds a name of `model_of`; others are left out. Raises `CostImportError`."""
    rows = csv.DictReader(io.StringIO(text))
    cost = next((name for name in ("EffectiveCost", "BilledCost") if name in (rows.fieldnames or ())), None)
    missing = [name for name in ("ChargePeriodStart", "ChargePeriodEnd", column) if name not in (rows.fieldnames or ())]
    if missing or cost is None:
        raise CostImportError(f"this FOCUS file has no column {', '.join(missing) or 'EffectiveCost or BilledCost'}")
    spans = []
    for number, row in enumerate(rows, start=2):
        name = row[column]
        if name not in model_of:
            continue
        if (currency := row.get("BillingCurrency") or "USD") != "USD":
            raise CostImportError(f"line {number} is in {currency}; costs here are US dollars")
        try:
            usd = Decimal(row[cost])
        except InvalidOperation as error:
            raise CostImportError(f"line {number}: {cost} {row[cost]!r} is no number") from error
        spans.append(
            _span("focus", f"{name}:{number}", model_of[name], (row["ChargePeriodStart"], row["ChargePeriodEnd"]), usd)
        )
    return spans


def _span(source: str, name: str, model: str, period: tuple[str, str], usd: Decimal) -> GpuSpan:
    """The same row makes the same span, so what is imported twice counts once."""
    start_s, end_s = (_unix_s(text) for text in period)
    if end_s <= start_s or not usd.is_finite() or usd < 0:
        raise CostImportError(f"{name} costs {usd} from {period[0]} to {period[1]}: that is no cost of a time")
    identity = hashlib.sha256(f"{name}|{model}".encode()).hexdigest()[:12]
    # Up to the next whole nano-dollar an hour, so that rounding down gives the cost back.
    rate = -(-nanousd_of_usd(usd) * SECONDS_PER_HOUR // (end_s - start_s))
    return GpuSpan(
        replica=f"{source}-{identity}",
        models=(model,),
        start_s=start_s,
        end_s=end_s,
        nanousd_per_hour=rate,
        purchase=source,
        count=0,
    )


def _unix_s(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise CostImportError(f"{text!r} is no time; it should be like 2026-11-25T10:00:00Z") from error
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
