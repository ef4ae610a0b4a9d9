"""`mtok correct`: a correction of what a request was billed."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import asyncio
import re
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.pricing import nanousd_of_usd

from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, fail, settings

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.export import Correction
    from gateway.metering import UsageEvent

SHIP_TIMEOUT_S = 10.0
_AMOUNT = re.compile(r"[+-]?\d{1,7}(\.\d{1,9})?").fullmatch


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("correct", epilog=STORE_ENVIRONMENT)(correct_)


def correct_(  # noqa: PLR0917 - options have names on the command line
    tenant: Annotated[str, typer.Argument(help="Whose request.")],
    request: Annotated[str, typer.Argument(help="Its id: x-request-id of the answer.", metavar="REQUEST_ID")],
    reason: Annotated[str, typer.Option(help="Why; the event carries it.")],
    cost_usd: Annotated[
        str | None, typer.Option(help="What to add to the bill, US dollars; a credit is negative.", metavar="USD")
    ] = None,
    void: Annotated[bool, typer.Option("--void", help="Take back all that is left of its cost and tokens.")] = False,
    entry: Annotated[
        str | None, typer.Option(help="Which event, where a client used the id again.", metavar="ENTRY")
    ] = None,
) -> None:
    """Correct what a request was billed, by a new event that refers to it.

    Nothing is edited or deleted: the event has status "correction", holds the difference, and counts in the present
    hour. A request never ends below nothing. Prints the correction's id.

    Example: mtok correct acme 5f3a9c --cost-usd -0.0012 --reason "slow replica, ticket 4711"
    """
    from gateway.admission import usd
    from gateway.export import CannotCorrect, Correction
    from gateway.store import EmbeddedStoreFailed, StoreUnavailable

    if (cost_usd is None) is not void:
        fail("say what to correct: --cost-usd USD or --void, one of them", MISUSED)
    if cost_usd is not None and not _AMOUNT(cost_usd):
        fail(f"--cost-usd is {cost_usd[:40]!r}; write dollars with at most 9 decimals, e.g. -0.0012", MISUSED)
    if not reason.strip():
        fail("--reason is empty; an auditor will ask", MISUSED)
    wanted = Correction(
        request=request,
        reason=reason.strip(),
        cost_nanousd=None if cost_usd is None else nanousd_of_usd(Decimal(cost_usd)),
        entry=entry,
    )
    try:
        event = asyncio.run(_booked(tenant, wanted))
    except CannotCorrect as error:
        fail(str(error), MISUSED)
    except StoreUnavailable as error:
        fail(f"Redis does not answer; is MTOK_REDIS_URL right? ({error})", FAILED)
    except (EmbeddedStoreFailed, ValueError) as error:
        fail(str(error), FAILED)
    typer.echo(event.id)
    typer.echo(f"mtok: {request} of {tenant} is corrected by {usd(event.cost_nanousd)} USD", err=True)


async def _booked(tenant: str, wanted: Correction) -> UsageEvent:
    from gateway.export import correct
    from gateway.metering import Ledger
    from gateway.store import StoreUnavailable, connect

    async with connect(settings()) as redis, Ledger(redis, settings().data_dir / "journal") as ledger:

        async def book(event: UsageEvent, period: str) -> None:
            await ledger.record(event, period=period)
            if not await ledger.shipped(SHIP_TIMEOUT_S):
                raise StoreUnavailable("it is in the journal, and booked when Redis is back and a gateway runs here")

        return await correct(redis, tenant, wanted, book=book, now_ms=time.time_ns() // 1_000_000)
