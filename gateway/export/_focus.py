"""Cost rows in FOCUS 1.2, the FinOps Open Cost and Usage Specification (focus.finops.org): one per hour, tenant, model,
key, tags and kind of token, from the hour buckets, whose sums they keep to the nano-dollar.

A bucket holds one cost for all kinds of token together. It is split in proportion to what each kind weighs in the
price: output tokens 1, uncached and cached input their ratios, which stay when a price changes. The remainder of a
nano-dollar goes where the rounding took most away.
"""

from __future__ import annotations

import calendar
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import IO, Final, NamedTuple, cast
from urllib.parse import parse_qsl

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import usd
from gateway.metering import CACHED, COST, INPUT, OUTPUT, Dimensions, split_field
from gateway.store import BUCKET_SECONDS, StoreUnavailable, TenantKeys

from ._export import Span
from ._rows import csv_lines, guarded
from ._stream import tenants_with_events

HOUR_S: Final = BUCKET_SECONDS["1h"]
KINDS: Final = ("input", "cached input", "output")


class Ratios(NamedTuple):
    """What a token of input costs, uncached and cached, over an output token's price."""

    input: Decimal
    cached: Decimal


class FocusRow(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One charge. Columns are FOCUS' own; there are no discounts, so all four costs are the same."""

    billed_cost: str
    billing_account_id: str
    billing_account_name: str
    billing_currency: str = "USD"
    billing_period_end: str
    billing_period_start: str
    charge_category: str = "Usage"
    charge_class: str
    charge_description: str
    charge_frequency: str = "Usage-Based"
    charge_period_end: str
    charge_period_start: str
    consumed_quantity: str
    consumed_unit: str
    contracted_cost: str
    effective_cost: str
    invoice_issuer_name: str = "Mtok"
    list_cost: str
    pricing_category: str = "Standard"
    pricing_quantity: str
    pricing_unit: str
    provider_name: str = "Mtok"
    publisher_name: str = "Mtok"
    resource_id: str
    resource_name: str
    resource_type: str = "API Key"
    service_category: str = "AI and Machine Learning"
    service_name: str = "Mtok Inference"
    service_subcategory: str = "Generative AI"
    sku_id: str
    sku_meter: str
    sku_price_id: str
    sub_account_id: str
    sub_account_name: str
    tags: str


FOCUS_COLUMNS: Final = tuple(field.encode_name for field in msgspec.structs.fields(FocusRow))


@dataclass(slots=True)
class _Charge:
    """Sums of one hour that share everything but the kind of token."""

    input: int = 0
    cached: int = 0
    output: int = 0
    cost_nanousd: int = 0


class _Group(NamedTuple):
    model: str
    key: str
    tags: str
    correction: bool


def split_cost(total: int, weights: Sequence[Fraction]) -> list[int]:
    """`total` in whole parts in proportion to `weights`, not negative and not all 0; the parts add up to `total`."""
    whole = sum(weights)
    size, sign = abs(total), -1 if total < 0 else 1
    exact = [size * weight / whole for weight in weights]
    parts = [int(part) for part in exact]
    by_rest = sorted(range(len(parts)), key=lambda n: parts[n] - exact[n])
    for n in by_rest[: size - sum(parts)]:
        parts[n] += 1
    return [sign * part for part in parts]


def focus_rows(
    tenant: str, hour_s: int, fields: Mapping[str, int], ratios: Mapping[str, Ratios], usual: Ratios
) -> list[FocusRow]:
    """The rows of one hour bucket; `fields` are its sums. Models without `ratios` have the `usual` ones."""
    rows = []
    for group, charge in sorted(_charges(fields).items()):
        ratio = ratios.get(group.model, usual)
        tokens = (charge.input - charge.cached, charge.cached, charge.output)
        prices = (Fraction(ratio.input), Fraction(ratio.cached), Fraction(1))
        weights = [abs(count) * price for count, price in zip(tokens, prices, strict=True)]
        if any(weights):
            costs = split_cost(charge.cost_nanousd, weights)
            kinds = list(zip(KINDS, tokens, costs, strict=True))
        else:
            kinds = [
                ("adjustment", 0, charge.cost_nanousd),
                *((kind, n, 0) for kind, n in zip(KINDS, tokens, strict=True)),
            ]
        rows += [_row(tenant, hour_s, group, kind) for kind in kinds if kind[1] or kind[2]]
    return rows


async def export_focus(
    redis: Redis,
    file: IO[bytes],
    *,
    tenants: Sequence[str] | None,
    span: Span,
    ratios: Mapping[str, Ratios],
    usual: Ratios,
) -> int:
    """Writes the rows of every hour that begins in `span` to `file`, as CSV; returns their number. An hour that is not
    over, or whose events are late, has more tomorrow: export the span again, its rows replace the earlier ones.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    names = await tenants_with_events(redis) if tenants is None else tenants
    file.write(csv_lines([FOCUS_COLUMNS]))
    count = 0
    for tenant in names:
        async for hour_s, fields in _hours(redis, tenant, span):
            rows = focus_rows(tenant, hour_s, fields, ratios, usual)
            file.write(csv_lines(_cells(row) for row in rows))
            count += len(rows)
    return count


async def _hours(redis: Redis, tenant: str, span: Span) -> AsyncIterator[tuple[int, dict[str, int]]]:
    keys = TenantKeys(tenant)
    first = -(-span.start_ms // (HOUR_S * 1000)) * HOUR_S
    for hour_s in range(first, -(-span.end_ms // 1000), HOUR_S):
        try:
            fields = cast(dict[bytes, bytes], await redis.hgetall(keys.usage("1h", hour_s)))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        if fields:
            yield hour_s, {name.decode(): int(value) for name, value in fields.items()}


def _charges(fields: Mapping[str, int]) -> dict[_Group, _Charge]:
    charges: dict[_Group, _Charge] = {}
    for name, value in fields.items():
        dimensions, metric = split_field(name)
        if metric in (INPUT, CACHED, OUTPUT, COST):
            charge = charges.setdefault(_group(dimensions), _Charge())
            setattr(charge, metric, getattr(charge, metric) + value)
    return charges


def _group(of: Dimensions) -> _Group:
    return _Group(of.model, of.key, of.tags, of.status == "correction")


def _row(tenant: str, hour_s: int, group: _Group, of_kind: tuple[str, int, int]) -> FocusRow:
    kind, tokens, cost_nanousd = of_kind
    cost = usd(cost_nanousd)
    hour = datetime.fromtimestamp(hour_s, UTC)
    month = hour.replace(day=1, hour=0)
    days = calendar.monthrange(month.year, month.month)[1]
    counted = kind in KINDS
    sku = f"{group.model}/{kind.replace(' ', '-')}"
    what = f"{kind} of {group.model}" if not counted else f"{kind} tokens of {group.model}"
    return FocusRow(
        billed_cost=cost,
        billing_account_id="mtok",
        billing_account_name="Mtok",
        billing_period_start=_time(month.timestamp()),
        billing_period_end=_time(month.timestamp() + days * 86_400),
        charge_class="Correction" if group.correction else "",
        charge_description=f"correction: {what}" if group.correction else what,
        charge_period_start=_time(hour_s),
        charge_period_end=_time(hour_s + HOUR_S),
        consumed_quantity=str(tokens) if counted else "",
        consumed_unit="Tokens" if counted else "",
        contracted_cost=cost,
        effective_cost=cost,
        list_cost=cost,
        pricing_quantity=str(tokens) if counted else "",
        pricing_unit="Tokens" if counted else "",
        resource_id=group.key,
        resource_name=group.key,
        sku_id=sku,
        sku_meter=kind,
        sku_price_id=sku,
        sub_account_id=tenant,
        sub_account_name=tenant,
        tags=msgspec.json.encode(dict(parse_qsl(group.tags))).decode(),
    )


def _cells(row: FocusRow) -> Iterable[str]:
    costs = (row.billed_cost, row.contracted_cost, row.effective_cost, row.list_cost)
    numbers = {*costs, row.consumed_quantity, row.pricing_quantity}
    return [cell if cell in numbers else guarded(cell) for cell in msgspec.structs.astuple(row)]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
