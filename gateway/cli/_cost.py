"""`mtok cost import`: what GPUs cost, from whoever knows better."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.pricing import usd_of_nanousd

from ._store import ask_store
from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, fail, utc

app = typer.Typer(
    help="Cost: what GPUs cost, from elsewhere.", no_args_is_help=True, rich_markup_mode=None, epilog=STORE_ENVIRONMENT
)


@app.callback()
def _group() -> None:
    """Keeps `import` a command of its own while it is the only one."""


@app.command("import", epilog=STORE_ENVIRONMENT)
def import_(  # noqa: PLR0917 - options have names on the command line
    source: Annotated[str, typer.Argument(help="A file, or the address of OpenCost's API.", metavar="FILE|URL")],
    model: Annotated[
        list[str],
        typer.Option(help="Whose cost it is, and its name there; repeatable.", metavar="MODEL=NAME"),
    ],
    shape: Annotated[str, typer.Option("--format", help="What it is: opencost or focus.")] = "opencost",
    window: Annotated[str, typer.Option(help="Time to ask OpenCost for, as it writes that.")] = "1d",
    aggregate: Annotated[str, typer.Option(help="What to have OpenCost add up by.")] = "label:llm-d.ai/model",
    column: Annotated[str, typer.Option(help="The FOCUS column that holds the names.")] = "ResourceId",
) -> None:
    """Take GPU cost from OpenCost's allocation API or from a FOCUS file (CSV), beside what is counted here.

    For models whose policy says gpu: {usd_per_hour: 0}; with a price there, hours would be paid for twice. What is
    imported twice counts once. Live prices use it from the next epoch on, where their window reaches back to it.

    Example: mtok cost import http://opencost:9003 --model tiny=llama
    """
    from gateway.costing import CostImportError, focus_spans, opencost_spans, write_spans

    names: dict[str, str] = {}
    for pair in model:
        ours, told, theirs = pair.partition("=")
        names[theirs if told else ours] = ours
    try:
        if shape == "focus":
            spans = focus_spans(_text(source).decode("utf-8-sig"), column, names)
        elif shape == "opencost":
            spans = opencost_spans(_answer(source, window, aggregate), names)
        else:
            fail(f"--format {shape!r} is none of opencost, focus", MISUSED)
    except (CostImportError, UnicodeDecodeError) as error:
        fail(f"{source}: {error}", FAILED)
    if not spans:
        fail(f"{source} has nothing of {', '.join(names)}", FAILED)
    ask_store(lambda redis: write_spans(redis, spans))
    for span in spans:
        cost = usd_of_nanousd(span.cost_nanousd(span.start_s, span.end_s))
        typer.echo(f"{span.models[0]}  {utc(span.start_s * 1000)} to {utc(span.end_s * 1000)}  {cost:f} USD")


def _answer(source: str, window: str, aggregate: str) -> bytes:
    """What OpenCost says: asked for, or kept in a file."""
    if not source.startswith(("http://", "https://")):
        return _text(source)
    import httpx

    try:
        answer = httpx.get(
            source.rstrip("/") + "/allocation/compute",
            params={"window": window, "aggregate": aggregate, "accumulate": "false"},
            timeout=60,
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        fail(f"{source} does not answer: {error}", FAILED)
    return answer.content


def _text(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except OSError as error:
        fail(f"{source}: cannot be read: {error.strerror}", MISUSED)
