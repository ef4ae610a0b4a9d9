"""`mtok policy diff`: what another policy would change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from gateway.policy import Difference, Policies, PolicyError, differences, load

from ._words import MISUSED, fail, table


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(diff)


def diff(
    old: Annotated[Path, typer.Argument(help="Directory of the policies in force.", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="Directory of those that would replace them.", metavar="NEW")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything that is known.")] = False,
) -> None:
    """Say what differs between two directories of policies, field by field.

    Exit codes: 0 compared, 2 one of them cannot be used.

    Example: mtok policy diff policies policies.next
    """
    before, after = _loaded(old), _loaded(new)
    differing = differences(before, after)
    if as_json:
        told = {
            "object": "policy.diff",
            "old": {"directory": str(old), "sha256": before.sha256},
            "new": {"directory": str(new), "sha256": after.sha256},
            "differences": msgspec.to_builtins(differing),
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        typer.echo(_shown(differing))


def _loaded(directory: Path) -> Policies:
    try:
        return load(directory)
    except PolicyError as error:
        fail(f"the policies of {directory} cannot be used:\n{error}", MISUSED)


def _shown(differing: Sequence[Difference]) -> str:
    if not differing:
        return "Both say the same."
    rows = [(one.path, _or_nothing(one.old), _or_nothing(one.new)) for one in differing]
    return table(("FIELD", "OLD", "NEW"), rows)


def _or_nothing(value: str | None) -> str:
    return "-" if value is None else value
