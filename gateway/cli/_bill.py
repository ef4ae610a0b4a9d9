"""`mtok bill`: what a tenant owes for a month."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.pricing import nanousd_of_usd

from ._store import ask_store
from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, fail, json_text, loaded, table

if TYPE_CHECKING:  # the rooms import redis; a help page should not
    from redis.asyncio import Redis

    from gateway.billing import Bill, Month
    from gateway.metering import UsageEvent
    from gateway.policy import Policies

FORMATS = ("text", "html", "csv", "json")


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bill", epilog=STORE_ENVIRONMENT)(bill)


def bill(  # noqa: PLR0917 - options have names on the command line
    tenant: Annotated[str, typer.Option(help="Whose bill.")],
    month: Annotated[str, typer.Option(help="Which month, such as 2026-11; this one if left out.")] = "",
    time_zone: Annotated[
        str | None, typer.Option(help="IANA name of the zone its days are in (the tenant's with --policies, or UTC).")
    ] = None,
    shape: Annotated[str, typer.Option("--format", help="How: text, html (prints on A4), csv or json.")] = "text",
    policies: Annotated[
        Path | None,
        typer.Option(help="Adds what these policies say: commitments, the share of idle capacity.", metavar="DIR"),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(help="Take the events from a JSON Lines export, of a month that is kept no more.", metavar="FILE"),
    ] = None,
) -> None:
    """Print a tenant's bill for a month: lines per model, kind of token and price, corrections, and the total.

    Usage and corrections add up to the ledger and to what /v1/usage says, to the nano-dollar, or there is no bill.
    Of a month that is not over it says what there is so far.

    Example: mtok bill --tenant acme --month 2026-11 --format html > acme.html
    """
    from gateway.billing import BillError, bill_csv, bill_html, bill_text, parse_month

    if shape not in FORMATS:
        fail(f"--format {shape!r} is none of {', '.join(FORMATS)}", MISUSED)
    served = None if policies is None else loaded(policies)
    spec = None if served is None else served.tenants.get(tenant)
    if served is not None and spec is None:
        fail(f"the policies have no tenant {tenant!r}", MISUSED)
    now_s = int(time.time())
    zone = time_zone or (spec.time_zone if spec is not None else "UTC")
    try:
        wanted = parse_month(month or datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m"), zone)
    except (ValueError, KeyError) as error:
        fail(str(error), MISUSED)
    try:
        made = ask_store(lambda redis: _made(redis, tenant, wanted, now_s=now_s, policies=served, export=events))
    except BillError as error:
        fail(str(error), FAILED)
    match shape:
        case "html":
            typer.echo(bill_html(made), nl=False)
        case "csv":
            typer.echo(bill_csv(made), nl=False)
        case "json":
            typer.echo(json_text(_whole(made)))
        case _:
            typer.echo(f"{tenant}, {wanted.name} ({zone})" + (", so far" if now_s < wanted.end_s else ""))
            typer.echo(table(("ITEM", "", "TOKENS", "$/MTOK", "USD"), bill_text(made), right=(2, 3, 4)))


async def _made(
    redis: Redis, tenant: str, month: Month, *, now_s: int, policies: Policies | None, export: Path | None
) -> Bill:
    from gateway.audit import read_prices
    from gateway.billing import make_bill, read_bill, sold
    from gateway.economics import idle_of_tenant

    committed: dict[str, int] = {}
    idle_nanousd = 0
    if policies is not None:
        for model in policies.models_of(policies.tenants[tenant]):
            terms = policies.tenants[tenant].price_of(model.name)
            if terms is not None and terms.committed_usd_per_month is not None:
                committed[model.name] = nanousd_of_usd(terms.committed_usd_per_month)
        if policies.pricing.recover_idle:
            idle_nanousd = await idle_of_tenant(redis, policies, tenant, month.start_s, min(month.end_s, now_s))
    if export is None:
        return await read_bill(
            redis, tenant, month, now_s=now_s, committed_nanousd=committed, idle_nanousd=idle_nanousd
        )
    return make_bill(
        tenant,
        month,
        sold(event for event in _exported(export, tenant) if month.start_s <= event.ended_ms / 1000 < month.end_s),
        await read_prices(redis),
        committed_nanousd=committed if now_s >= month.end_s else {},
        idle_nanousd=idle_nanousd,
    )


def _exported(path: Path, tenant: str) -> Iterator[UsageEvent]:
    from gateway.billing import exported_events

    try:
        with path.open("rb") as lines:
            yield from exported_events(lines, tenant)
    except ValueError as error:
        fail(f"{path}: {error}", MISUSED)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}", MISUSED)


def _whole(made: Bill) -> dict[str, object]:
    """The bill with its sums."""
    told: dict[str, object] = msgspec.to_builtins(made)
    sums = ("credits_nanousd", "ledger_nanousd", "total_nanousd")
    return {"object": "bill", **told, **{name: getattr(made, name) for name in sums}}
