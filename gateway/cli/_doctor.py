"""`mtok doctor`: is the fleet set up as Mtok needs it?"""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import asyncio
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._words import ENVIRONMENT, FAILED, json_text, loaded, settings, table

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.doctor import Finding

WIDTH = 100


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=ENVIRONMENT)(doctor)


def doctor(
    policies: Annotated[Path, typer.Option(help="Directory of policy documents; every *.yaml in it.", metavar="DIR")],
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure a stream beside a long prompt: some seconds of each replica.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show what is good too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Check engines, Redis and this machine for what Mtok relies on, and name the flag to change.

    Run it where a gateway runs, with its environment. Each replica is asked what it serves and counts, and completes
    three words twice; with --probe, where a class has an itl_p99_ms, it also reads a prompt of up to 16,384 tokens that
    nobody has sent before, beside a stream. Both are in `mtok audit` as not ours.

    An error is a promise that does not hold, a warning works worse, a note is worth knowing.

    Exit codes: 0 no error, 1 an error was found, 2 asked wrongly.

    Example: mtok doctor --policies policies --probe
    """
    from gateway.doctor import examine

    findings = asyncio.run(examine(loaded(policies), settings(), measure=probe))
    typer.echo(_json(findings) if as_json else shown(findings, everything=everything))
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(FAILED)


_NAMES = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "note": ("note", "notes"),
    "good": ("good",) * 2,
}


def shown(findings: Sequence[Finding], *, everything: bool) -> str:
    """A table, the worst first, each with what to change below it, and how many there are of each."""
    order = list(_NAMES)
    listed = [one for one in findings if everything or one.severity != "good"]
    rows: list[tuple[str, ...]] = []
    for one in sorted(listed, key=lambda one: order.index(one.severity)):
        first, *others = (*_wrapped(one.finding), *_wrapped(one.change, "-> "))
        rows.append((one.severity, one.where, one.check, first))
        rows += [("", "", "", line) for line in others]
    counts = Counter[str](one.severity for one in findings)
    told = ", ".join(f"{counts[severity]} {names[counts[severity] != 1]}" for severity, names in _NAMES.items())
    return f"{table(('SEVERITY', 'WHERE', 'CHECK', 'FINDING'), rows)}\n\n{told}" if rows else told


def _wrapped(text: str, mark: str = "") -> list[str]:
    indent = " " * len(mark)
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _json(findings: Sequence[Finding]) -> str:
    counts = Counter(one.severity for one in findings)
    told = {"errors": counts["error"], "warnings": counts["warning"], "findings": findings}
    return json_text(told)
