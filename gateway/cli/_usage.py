"""`mtok usage`: what a tenant used and what it cost."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast
from urllib.parse import urlencode

import typer
from typer.core import TyperGroup

from gateway.errors import Refusal

from . import _export
from ._store import ask_store
from ._words import MISUSED, STORE_ENVIRONMENT, fail, json_text, moment, table, utc

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.usage import Report, UsageQuery, UsageResult


class _TenantFirst(TyperGroup):
    """Commands beside a tenant's name: a first word that is no command, and an option, belong to `show`."""

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]
        if args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        cls=_TenantFirst,
        help=_ABOUT,
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=STORE_ENVIRONMENT,
        subcommand_metavar="TENANT|COMMAND [OPTIONS]",
        context_settings={"ignore_unknown_options": True},
    )
    group.command("show", epilog=STORE_ENVIRONMENT)(usage)
    _export.add_to(group)
    app.add_typer(group, name="usage")


_ABOUT = """Show what a tenant used and what it cost, or export it.

`mtok usage TENANT` is short for `mtok usage show TENANT`, whose help page has its options; the long form also reaches
a tenant whose name is a command's: `mtok usage show export`.

Example: mtok usage acme --start 7d --bucket 1d --group-by model,key
"""


def usage(  # noqa: PLR0917 - options have names on the command line
    tenant: Annotated[str, typer.Argument(help="Whose usage.")],
    start: Annotated[
        str, typer.Option(help="From when: 24h (ago), Unix seconds, or RFC 3339, in UTC unless it says otherwise.")
    ] = "24h",
    end: Annotated[str, typer.Option(help="Until when, not included; written as --start.")] = "now",
    bucket: Annotated[str, typer.Option(help="Length of the rows: 1m, 1h or 1d.")] = "1h",
    group_by: Annotated[
        str, typer.Option(help="Split by some of model, key, endpoint, status, replica, user, tag:NAME.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print what GET /v1/usage answers.")] = False,
) -> None:
    """Show what a tenant used and what it cost.

    Tokens are the engines' own counts; input includes cached input. Costs are US dollars, exact. Times and days are
    UTC: a tenant's time_zone shifts only when its budget begins anew.

    Example: mtok usage show acme --start 7d --bucket 1d --group-by model,key
    """
    from gateway.usage import parse_query

    now_s = int(time.time())
    asked = {"start": moment(start, now_s=now_s), "end": moment(end, now_s=now_s), "bucket": bucket}
    if group_by:
        asked["group_by"] = group_by
    query = parse_query(urlencode(asked).encode(), now_s)
    if isinstance(query, Refusal):
        fail(query.message, MISUSED)
    report = _report(tenant, query, now_s)
    if as_json:
        typer.echo(json_text(report))
    else:
        typer.echo(_shown(report, query))


def _report(tenant: str, query: UsageQuery, now_s: int) -> Report:
    from gateway.usage import report

    try:
        return ask_store(
            lambda redis: report(
                redis,
                tenant,
                replace(query, limit=sys.maxsize),
                now_s=now_s,
                fields_max=sys.maxsize,
                limits=None,  # limits and prices are the policies', which this command does not read
                prices=None,
            )
        )
    except ValueError as error:
        fail(str(error), MISUSED)


def _shown(report: Report, query: UsageQuery) -> str:
    groups = query.group_by
    rows = [
        (utc(part.start * 1000, seconds=False), *(_group(result, group) for group in groups), *_sums(result))
        for part in report.data
        for result in part.results
    ]
    rows.append(("total", *("" for _ in groups), *_sums(report.totals)))
    head = ("START (UTC)", *(group.upper() for group in groups), "REQUESTS", "REFUSED", "INPUT", "CACHED", "OUTPUT")
    numbers = range(1 + len(groups), len(head) + 1)
    return table((*head, "COST USD"), rows, right=numbers)


def _group(result: UsageResult, group: str) -> str:
    tag = group.removeprefix("tag:")
    value = getattr(result, group) if tag == group else cast(dict[str, str], result.tags)[tag]
    return str(value)


def _sums(result: UsageResult) -> tuple[str, ...]:
    tokens = (result.input_tokens, result.input_cached_tokens, result.output_tokens)
    counts = (result.requests, sum(result.refused.values()), *tokens)
    return (*(str(count) for count in counts), result.cost_usd)
