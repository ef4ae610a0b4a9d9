"""`mtok audit`: is the ledger right?"""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import msgspec
import typer

from gateway.errors import Refusal

from ._store import ask_store
from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, fail, json_text, moment, table, utc

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.audit import Audit, Row, Tokens, Verdict


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=STORE_ENVIRONMENT)(audit)


def audit(
    start: Annotated[
        str, typer.Option(help="From when: 1h (ago), Unix seconds, or RFC 3339, in UTC unless it says otherwise.")
    ] = "1h",
    end: Annotated[str, typer.Option(help="Until when, not included; written as --start.")] = "now",
    replica: Annotated[
        list[str] | None, typer.Option(help="Only this replica, HOST:PORT; may be given again.", metavar="NAME")
    ] = None,
    recomputed: Annotated[
        bool, typer.Option("--recompute", help="Compute every cost and sum again instead, from events and price book.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything that is known.")] = False,
) -> None:
    """Hold the ledger against the engines' own counters, replica by replica and minute by minute.

    Every token an engine counted is billed, undelivered (generated for a request that was cut), lost in a failed
    attempt, not ours (it did not come through the gateway), in flight at an edge, or unexplained. What happened while
    requests still run is left to the next audit. Times are UTC.

    With --recompute every event's cost is computed again from its usage and the price book, and the sums and budgets
    from the events: all must agree to the nano-dollar.

    Exit codes: 0 all is explained, 1 something is not, 2 asked wrongly.

    Example: mtok audit --start 24h --replica 10.0.0.7:8000
    """
    now_s = int(time.time())
    start_s, end_s = _span(start, end, now_s)
    if recomputed:
        if replica:
            fail("--recompute is of all tenants, whatever replica served them; leave --replica out", MISUSED)
        _recompute(start_s, end_s, now_s, as_json=as_json)
        return
    found = _audited(start_s, end_s, replica or None)
    typer.echo(_json(found) if as_json else _shown(found))
    if found.unexplained:
        raise typer.Exit(FAILED)


def _span(start: str, end: str, now_s: int) -> tuple[int, int]:
    from gateway.usage import parse_query

    asked = {"start": moment(start, now_s=now_s), "end": moment(end, now_s=now_s), "bucket": "1h"}
    query = parse_query(urlencode(asked).encode(), now_s)
    if isinstance(query, Refusal):
        fail(query.message, MISUSED)
    return query.start_s, query.end_s


def _audited(start_s: int, end_s: int, replicas: list[str] | None) -> Audit:
    from gateway.audit import audit as run_audit

    now_ms = time.time_ns() // 1_000_000
    return ask_store(lambda redis: run_audit(redis, start_s=start_s, end_s=end_s, now_ms=now_ms, replicas=replicas))


def _recompute(start_s: int, end_s: int, now_s: int, *, as_json: bool) -> None:
    from gateway.audit import recompute

    found = ask_store(lambda redis: recompute(redis, start_s=start_s, end_s=end_s, now_s=now_s))
    if as_json:
        typer.echo(json_text(found))
    else:
        typer.echo(f"Computed again: {found.events} events, {found.buckets} sums, {found.budgets} budgets.")
        if found.budgets_unknown:
            typer.echo(f"Not compared: budgets of {found.budgets_unknown} tenants, whose older events are gone.")
        for one in found.differences:
            typer.echo(f"{one.tenant}: {one.where}: stored {one.stored}, computed {one.computed}")
        typer.echo(f"{found.differing} DIFFER" if found.differing else "All agree.")
    if found.differing:
        raise typer.Exit(FAILED)


def _json(found: Audit) -> str:
    told = {"unexplained": found.unexplained, **msgspec.to_builtins(found)}
    return json_text(told)


_HEAD = ("START (UTC)", "REPLICA", "TOKENS", "ENGINE", "BILLED", "UNDELIVERED", "LOSS", "NOT OURS", "IN FLIGHT")


def _shown(found: Audit) -> str:
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, verdict in found.replicas.items():
        for row in verdict.rows:
            rows += _lines(utc(row.start_ms), name, row)
        for span in verdict.spans:
            rows += _lines("all of it", name, span)
        notes += _notes(name, verdict)
    if not rows:
        notes.append("The engines counted nothing in this time, as far as it has been read.")
    notes.append(f"Looked at until {utc(found.settled_ms)} UTC; requests that began before and still run come later.")
    notes.append("NOT EXPLAINED" if found.unexplained else "Everything is explained.")
    shown = table((*_HEAD, "UNEXPLAINED"), rows, right=range(3, len(_HEAD) + 1))
    return "\n".join((shown, "", *notes))


def _lines(when: str, name: str, row: Row) -> Iterator[tuple[str, ...]]:
    for direction, tokens in (("input", row.input), ("output", row.output)):
        if tokens.engine or tokens.billed or tokens.unexplained:
            yield (when, name, direction, *(str(n) for n in _numbers(tokens)))


def _numbers(tokens: Tokens) -> tuple[int, ...]:
    unexplained = tokens.missing - tokens.overbilled if not tokens.missing else tokens.missing
    parts = (tokens.undelivered, tokens.loss, tokens.not_ours, tokens.in_flight)
    return (tokens.engine, tokens.billed, *parts, unexplained)


def _notes(name: str, verdict: Verdict) -> Iterator[str]:
    for gap in verdict.gaps:
        yield (
            f"{name}: not known from {utc(gap.start_ms)} to {utc(gap.end_ms)}: the engine restarted, or was not read."
        )
    for span in verdict.spans:
        for direction, tokens in (("input", span.input), ("output", span.output)):
            for reason, most in tokens.undelivered_max.items():
                yield f"{name}: {direction} undelivered, {reason}: at most {most} tokens."
            if tokens.overbilled:
                yield f"{name}: {tokens.overbilled} {direction} tokens are billed that the engine did not count."
        if span.cached_overbilled:
            yield f"{name}: {span.cached_overbilled} tokens are billed as cached that the engine did not take from it."
        if span.requests_lost:
            yield f"{name}: {span.requests_lost} requests were sent there and have no event."
        if span.requests_not_ours:
            yield f"{name}: at least {span.requests_not_ours} requests did not come through the gateway."
