"""`mtok usage export`: usage events for others' books."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from gateway.errors import Refusal

from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, fail, loaded, moment, settings

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.export import Exported, Format, Position, Span

ALL = "all"


class ExportFormat(StrEnum):
    """What `--format` takes."""

    csv = "csv"
    parquet = "parquet"
    jsonl = "jsonl"
    cloudevents = "cloudevents"
    focus = "focus"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("export", epilog=STORE_ENVIRONMENT)(export_)


def export_(  # noqa: PLR0917 - options have names on the command line
    format_: Annotated[ExportFormat, typer.Option("--format", help="How to write it.")],
    tenant: Annotated[str, typer.Option(help="Whose events; all is everybody's.")] = ALL,
    output: Annotated[Path | None, typer.Option(help="A new file; it appears when it is complete.")] = None,
    cursor: Annotated[
        Path | None, typer.Option(help="A file that remembers where this export ended; the next one begins there.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Begin after this: what an export without --cursor printed when it ended.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Only what ended from then on: 24h (ago), Unix seconds or RFC 3339.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Only what ended before then; written as --start.")] = None,
    policies: Annotated[
        Path | None, typer.Option(help="For focus: policies whose price ratios split costs.", metavar="DIR")
    ] = None,
) -> None:
    """Export usage events, one row or object each, corrections and refused requests included; or FOCUS cost rows.

    With --cursor and --output the files of all runs together hold each event exactly once, even if runs are killed. To
    standard output an event comes again when a run did not end well. Amounts are US dollars, exact. focus is one row
    per hour, tenant, model, key, tags and kind of token; it needs --start.

    Example: mtok usage export --format csv --cursor usage.cursor --output "usage-$(date -u +%FT%H%M).csv"
    """
    from gateway.export import CursorError, FormatUnavailable
    from gateway.store import EmbeddedStoreFailed, StoreUnavailable

    if (cursor or after) and (start or end):
        fail("--start and --end say which events; --cursor and --after say all that are new: give one kind", MISUSED)
    if cursor and after:
        fail("--cursor and --after both say where to begin; give one", MISUSED)
    if output is not None and output.exists():
        fail(f"{output} is there already; name a new file, e.g. with the time in its name", MISUSED)
    span = _span(start, end)
    tenants = None if tenant == ALL else [tenant]
    try:
        if format_ == "focus":
            if span is None:
                fail("focus needs --start: its rows are whole hours, and an hour may still grow", MISUSED)
            _say(f"{_run_focus(tenants, output, span, policies)} rows")
            return
        exported = _run(cast("Format", format_.value), tenants, output=output, cursor=cursor, after=after, span=span)
    except (CursorError, FormatUnavailable) as error:
        fail(str(error), MISUSED)
    except StoreUnavailable:
        fail("Redis does not answer; is MTOK_REDIS_URL right?", FAILED)
    except (EmbeddedStoreFailed, ValueError, OSError) as error:
        fail(str(error), FAILED)
    _tell(exported, resumable=cursor is None and span is None)


def _run_focus(tenants: list[str] | None, output: Path | None, span: Span, policies: Path | None) -> int:
    from gateway.export import Ratios, export_focus, output_file, publish
    from gateway.policy import PriceSpec
    from gateway.store import connect

    def of(price: PriceSpec) -> Ratios:
        return Ratios(price.input_ratio, price.cached_ratio)

    models = () if policies is None else loaded(policies).models.values()
    ratios = {model.name: of(model.price) for model in models if model.price is not None}
    usual = of(PriceSpec(output_usd_per_mtok=Decimal(1)))

    async def run() -> int:
        async with connect(settings()) as redis:
            with output_file(output) as file:
                return await export_focus(redis, file, tenants=tenants, span=span, ratios=ratios, usual=usual)

    count = asyncio.run(run())
    if output is not None:
        publish(output)
    return count


def _run(
    format_: Format,
    tenants: list[str] | None,
    *,
    output: Path | None,
    cursor: Path | None,
    after: str | None,
    span: Span | None,
) -> Exported:
    from gateway.export import export, opened, output_file, parse_after, publish
    from gateway.store import connect

    async def run(positions: Mapping[str, Position]) -> Exported:
        async with connect(settings()) as redis:
            with output_file(output) as file:
                return await export(redis, file, format_=format_, tenants=tenants, positions=positions, span=span)

    with ExitStack() as stack:
        kept = stack.enter_context(opened(cursor)) if cursor is not None else None
        positions = kept.positions if kept else parse_after(after, tenants) if after else {}
        exported = asyncio.run(run(positions))
        if kept is not None:
            kept.commit(exported.positions, output)
        elif output is not None:
            publish(output)
        return exported


def _span(start: str | None, end: str | None) -> Span | None:
    from gateway.export import Span
    from gateway.usage import parse_time

    if start is None and end is None:
        return None
    now_s = int(time.time())
    times = [
        parse_time(name, moment(text, now_s=now_s))
        for name, text in (("start", start or "0"), ("end", end or str(now_s + 1)))
    ]
    for checked in times:
        if isinstance(checked, Refusal):
            fail(checked.message, MISUSED)
    start_s, end_s = times
    assert isinstance(start_s, int)
    assert isinstance(end_s, int)
    if start_s >= end_s:
        fail("--start has to come before --end, which is exclusive", MISUSED)
    return Span(start_ms=start_s * 1000, end_ms=end_s * 1000)


def _tell(exported: Exported, *, resumable: bool) -> None:
    from gateway.export import shown_after

    for tenant, gap in sorted(exported.gaps.items()):
        if gap.missing:
            _say(f"{gap.missing} events of {tenant} left the stream before they were exported; sums have them still")
        if gap.rewound:
            _say(f"Redis lost its last events of {tenant}; what gateways send again may be exported a second time")
    _say(f"{exported.events} events")
    if resumable and exported.positions:
        _say(f"what comes next: --after {shown_after(exported.positions)}")


def _say(line: str) -> None:
    print(f"mtok: {line}", file=sys.stderr)
