"""`mtok policy`: check documents before they are served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.policy import PolicyError, load

from . import _policy_diff, _policy_explain
from ._words import MISUSED, fail

app = typer.Typer(
    help="Policy documents: check and compare them before they are served.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_policy_diff.add_to(app)
_policy_explain.add_to(app)


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="Directory of *.yaml policy documents.", metavar="DIR")],
) -> None:
    """Say everything that is wrong with the documents, with file, line and what was meant; touch nothing.

    Exit code 0 when they can be served, 2 when not. For editors there is a JSON Schema: policies/schema.json.

    Example: mtok policy check policies
    """
    try:
        policies = load(directory)
    except PolicyError as error:
        count = len(error.problems)
        fail(f"{count} problem{'s' if count > 1 else ''} in {directory}:\n{error}", MISUSED)
    counts = {"model": len(policies.models), "tenant": len(policies.tenants), "class": len(policies.classes)}
    counted = ", ".join(_counted(name, count) for name, count in counts.items())
    typer.echo(f"{directory}: good. {counted}; sha256 {policies.version}")


def _counted(name: str, count: int) -> str:
    plural = {"class": "classes"}.get(name, f"{name}s")
    return f"{count} {name if count == 1 else plural}"
