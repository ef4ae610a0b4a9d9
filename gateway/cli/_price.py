"""`mtok price`: what a million tokens cost on a fleet."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from difflib import get_close_matches
from typing import Annotated

import typer

from gateway.pricing import GPUS, Quote, quote

from ._words import MISUSED, fail, json_text, number

app = typer.Typer(help="Prices: what a million tokens cost on a fleet.", no_args_is_help=True, rich_markup_mode=None)

SHARE_METAVAR = "0..1"


@app.callback()
def _group() -> None:
    """Keeps `quote` a command of its own while it is the only one."""


@app.command("quote")
def quote_(  # noqa: PLR0917 - options have names on the command line
    output_tokens_per_second: Annotated[
        Decimal,
        typer.Option(help="Output tokens the fleet sustains at its SLO on the real mix.", parser=number, metavar="N"),
    ],
    gpu: Annotated[str | None, typer.Option(help="SKU of the catalogue, at its list price.", metavar="SKU")] = None,
    count: Annotated[int | None, typer.Option(help="How many of that GPU (1).", min=1)] = None,
    usd_per_hour: Annotated[
        Decimal | None,
        typer.Option(help="What all GPUs cost together per hour, instead of --gpu.", parser=number, metavar="USD"),
    ] = None,
    input_ratio: Annotated[
        Decimal, typer.Option(help="Input token's price over an output token's.", parser=number, metavar=SHARE_METAVAR)
    ] = Decimal("0.28"),
    cached_ratio: Annotated[
        Decimal, typer.Option(help="Cached input token's, likewise.", parser=number, metavar=SHARE_METAVAR)
    ] = Decimal("0.1"),
    ratio: Annotated[
        Decimal, typer.Option(help="Input tokens for each output token in the blend.", parser=number, metavar="A")
    ] = Decimal(3),
    overhead: Annotated[
        Decimal,
        typer.Option(help="Idle hours, egress, headroom: 1.4 to 1.8 in production.", parser=number, metavar="FACTOR"),
    ] = Decimal("1.0"),
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON, amounts as decimal strings.")] = False,
) -> None:
    """Compute the price of a million tokens: GPU $/h over output tokens per hour.

    Prices are US dollars. The catalogue's are list prices of mid-2026; your own bill is better.

    Example: mtok price quote --gpu H100 --count 2 --output-tokens-per-second 4800
    """
    hourly, fleet = _fleet(gpu, count, usd_per_hour)
    try:
        quoted = quote(
            usd_per_hour=hourly,
            output_tokens_per_second=output_tokens_per_second,
            input_ratio=input_ratio,
            cached_ratio=cached_ratio,
            blend_ratio=ratio,
            overhead=overhead,
        )
    except ValueError as error:
        fail(str(error), MISUSED)
    if as_json:
        amounts = {name: _nine_places(value) for name, value in asdict(quoted).items()}
        typer.echo(json_text({"object": "price.quote", **amounts}))
    else:
        typer.echo(_shown(quoted, fleet))


def _fleet(gpu: str | None, count: int | None, usd_per_hour: Decimal | None) -> tuple[Decimal, str]:
    """Dollars per hour of all GPUs together, and the fleet in words."""
    if gpu is not None and usd_per_hour is not None:
        fail("--gpu and --usd-per-hour both say what an hour costs; give one", MISUSED)
    if usd_per_hour is not None:
        if count is not None:
            fail("--count belongs to --gpu; --usd-per-hour is what all GPUs cost together", MISUSED)
        return usd_per_hour, "fleet"
    if gpu is None:
        fail("say what an hour costs: --gpu SKU (with --count) or --usd-per-hour USD", MISUSED)
    known = GPUS.get(gpu.upper())
    if known is None:
        close = get_close_matches(gpu.upper(), GPUS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        fail(f"--gpu {gpu!r} is not in the catalogue; {hint}known: {', '.join(GPUS)}; or give --usd-per-hour", MISUSED)
    count = count or 1
    each = f"{known.usd_per_hour:f} $/h each, list {known.date}"
    return known.usd_per_hour * count, f"{count} x {known.sku} ({each})"


def _shown(quoted: Quote, fleet: str) -> str:
    overhead = f" x {quoted.overhead:f} overhead" if quoted.overhead != 1 else ""
    prices = {
        "output": quoted.output_usd_per_mtok,
        f"input ({quoted.input_ratio:f})": quoted.input_usd_per_mtok,
        f"cached ({quoted.cached_ratio:f})": quoted.cached_usd_per_mtok,
        f"blended {quoted.blend_ratio:f}:1": quoted.blended_usd_per_mtok,
    }
    lines = [
        f"{fleet}: {_rounded(quoted.usd_per_hour)} $/h{overhead}, {_rounded(quoted.output_mtok_per_hour)} Mtok/h",
        *(f"{name:<16}{_rounded(price):>10} $/Mtok" for name, price in prices.items()),
    ]
    return "\n".join(lines)


def _rounded(value: Decimal) -> str:
    """Three places, or two digits of what is smaller than that shows."""
    places = max(3, 1 - value.adjusted()) if value else 3
    return f"{value:.{places}f}"


def _nine_places(value: Decimal) -> str:
    """To a nano-dollar, without zeros that say nothing."""
    text = f"{value:.9f}"
    return text.rstrip("0").rstrip(".")
