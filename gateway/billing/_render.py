"""A bill as people and spreadsheets read it. Amounts are exact decimal dollars."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from decimal import Context, Decimal
from html import escape

from gateway.policy import plain

from ._bill import Bill

_EXACT = Context(prec=80)

_STYLE = """
@page { size: A4; margin: 18mm 16mm; }
body { font: 10.5pt/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } p { margin: 0 0 1.5rem; color: #555; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #888; } thead { display: table-header-group; }
.n { text-align: right; white-space: nowrap; } tr.sum td { font-weight: 600; border-top: 1px solid #888; }
tr.total td { font-weight: 700; font-size: 1.1rem; border-top: 2px solid #1a1a1a; border-bottom: none; }
tr { break-inside: avoid; } footer { color: #777; font-size: .85rem; }
"""


def usd(nanousd: Decimal | int) -> str:
    """Dollars without zeros that say nothing, at least two places."""
    text = plain(_EXACT.scaleb(Decimal(nanousd), -9))
    whole, _, places = text.partition(".")
    return f"{whole}.{places.ljust(2, '0')}"


def _rows(bill: Bill) -> Iterator[tuple[str, str, str, str, str]]:
    """What is on it, in order: what, kind, tokens, $/Mtok, dollars."""
    for line in bill.lines:
        yield line.model, line.kind, f"{line.tokens}", plain(line.usd_per_mtok), usd(line.nanousd)
    yield "rounding", "each request once, half to even, to a nano-dollar", "", "", usd(bill.rounding_nanousd)
    yield "subtotal", f"{bill.requests} requests", "", "", usd(bill.subtotal_nanousd)
    for credit in bill.credits:
        yield "correction", f"{credit.corrects}: {credit.reason}", "", "", usd(credit.nanousd)
    if bill.credits:
        yield "usage and corrections", "as in the ledger", "", "", usd(bill.ledger_nanousd)
    for short in bill.shortfalls:
        if short.nanousd:
            said = f"{short.model}: {usd(short.committed_nanousd)} committed, {usd(short.used_nanousd)} used"
            yield "commitment", said, "", "", usd(short.nanousd)
    if bill.idle_nanousd:
        yield "idle capacity", "this tenant's part of it", "", "", usd(bill.idle_nanousd)
    yield "total", "", "", "", usd(bill.total_nanousd)


def bill_text(bill: Bill) -> list[tuple[str, str, str, str, str]]:
    """Rows for a table: what, kind, tokens, $/Mtok, dollars."""
    return list(_rows(bill))


def bill_csv(bill: Bill) -> str:
    """One row a line, dollars exact."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("tenant", "month", "time_zone", "item", "detail", "tokens", "usd_per_mtok", "usd"))
    for row in _rows(bill):
        writer.writerow((bill.tenant, bill.month.name, bill.month.time_zone, *row))
    return out.getvalue()


def bill_html(bill: Bill) -> str:
    """A page that prints on A4: no script, nothing from elsewhere."""
    head = f"Bill for {escape(bill.tenant)}, {escape(bill.month.name)}"
    body = []
    for what, detail, tokens, price, amount in _rows(bill):
        kind = {"subtotal": "sum", "usage and corrections": "sum", "total": "total"}.get(what, "")
        shown = f"{int(tokens):,}" if tokens else ""
        body.append(
            f'<tr class="{kind}"><td>{escape(what)}</td><td>{escape(detail)}</td><td class="n">{shown}</td>'
            f'<td class="n">{escape(price)}</td><td class="n">{escape(amount)}</td></tr>'
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{head}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{head}</h1>"
        f"<p>Days of {escape(bill.month.time_zone)}. US dollars, exact to the nano-dollar.</p>"
        '<table><thead><tr><th>Item</th><th></th><th class="n">Tokens</th><th class="n">$/Mtok</th>'
        f'<th class="n">USD</th></tr></thead><tbody>\n{chr(10).join(body)}\n</tbody></table>'
        "<footer>Every request pays the price that held when it was admitted. Usage and corrections add up to what "
        "/v1/usage says.</footer></body></html>\n"
    )
