"""`mtok price`: what a million tokens cost on a fleet."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import Annotated

import typer

from gateway.catalogue import PURCHASES, Gpu, Purchase, builtin
from gateway.pricing import CACHED_RATIO, INPUT_RATIO, Quote, quote

from . import _price_book
from ._words import MISUSED, fail, json_text, number

app = typer.Typer(
    help="Prices: what a million tokens cost on a fleet, and what they cost now.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_price_book.add_to(app)

SHARE_METAVAR = "0..1"
_BLEND = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(?::(\d{1,6}(?:\.\d{1,6})?))?")


def blend(text: str | Decimal) -> Decimal:
    """Input tokens for each output token, of `3:1` or `3`. Raises `typer.BadParameter`."""
    match = _BLEND.fullmatch(str(text).strip())
    if match is None or (match[2] is not None and not Decimal(match[2])):
        raise typer.BadParameter(f"{text!r} is no blend; write input to output, such as 3:1")
    return Decimal(match[1]) / Decimal(match[2] or 1)


def purchase(text: str) -> str:
    """A way to pay for GPUs. Raises `typer.BadParameter`."""
    if text not in PURCHASES:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(PURCHASES)}")
    return text


@app.command("quote")
def quote_(  # noqa: PLR0917 - options have names on the command line
    output_tok_s: Annotated[
        Decimal,
        typer.Option(
            "--output-tok-s",
            "--output-tokens-per-second",
            help="Output tokens per second that the fleet sustains at its SLO on the real mix.",
            parser=number,
            metavar="N",
        ),
    ],
    gpu: Annotated[str | None, typer.Option(help="SKU of the catalogue, at its list price.", metavar="SKU")] = None,
    count: Annotated[int | None, typer.Option(help="How many GPUs (1).", min=1)] = None,
    usd_per_hour: Annotated[
        Decimal | None,
        typer.Option(help="What one GPU costs per hour, instead of the list price.", parser=number, metavar="USD"),
    ] = None,
    paid: Annotated[
        str,
        typer.Option("--purchase", help="How they are paid for: on_demand, reserved, spot.", parser=purchase),
    ] = "on_demand",
    input_ratio: Annotated[
        Decimal, typer.Option(help="Input token's price over an output token's.", parser=number, metavar=SHARE_METAVAR)
    ] = INPUT_RATIO,
    cached_ratio: Annotated[
        Decimal, typer.Option(help="Cached input token's, likewise.", parser=number, metavar=SHARE_METAVAR)
    ] = CACHED_RATIO,
    ratio: Annotated[
        Decimal,
        typer.Option("--blend", "--ratio", help="Input to output tokens in the blend.", parser=blend, metavar="A:B"),
    ] = Decimal(3),
    overhead: Annotated[
        Decimal,
        typer.Option(help="Idle hours, egress, headroom: 1.4 to 1.8 in production.", parser=number, metavar="FACTOR"),
    ] = Decimal("1.0"),
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON, amounts as decimal strings.")] = False,
) -> None:
    """Compute the price of a million tokens: GPU $/h over output tokens per hour.

    Prices are US dollars. The catalogue's are list prices, with their date; your own bill is better.

    Example: mtok price quote --gpu H100 --count 2 --output-tok-s 4800
    """
    hourly, fleet = _fleet(gpu, count, usd_per_hour, paid, today=datetime.now(UTC).date())
    try:
        quoted = quote(
            usd_per_hour=hourly,
            output_tokens_per_second=output_tok_s,
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


def _fleet(
    sku: str | None, count: int | None, usd_per_hour: Decimal | None, paid: str, *, today: date
) -> tuple[Decimal, str]:
    """Dollars per hour of all GPUs together, and the fleet in words."""
    count = count or 1
    if sku is None:
        if usd_per_hour is None:
            fail("say what an hour costs: --gpu SKU or --usd-per-hour USD, with --count", MISUSED)
        return usd_per_hour * count, "fleet" if count == 1 else f"{count} GPUs"
    gpu = _known(sku)
    if usd_per_hour is not None:
        return usd_per_hour * count, f"{count} x {gpu.sku} ({usd_per_hour:f} $/h each)"
    way: Purchase = next(one for one in PURCHASES if one == paid)
    hourly = gpu.hourly(way)
    if hourly is None:
        fail(f"nobody says what {gpu.sku} costs {way.replace('_', ' ')}: {gpu.source}; give --usd-per-hour", MISUSED)
    each = f"{hourly.usd_per_hour:f} $/h each, {way.replace('_', ' ')}, list {gpu.date}"
    if gpu.is_stale(today):
        each += f", {gpu.age_days(today)} days old"
    return hourly.usd_per_hour * count, f"{count} x {gpu.sku} ({each})"


def _known(sku: str) -> Gpu:
    gpus = {name.upper(): gpu for name, gpu in builtin().gpus.items()}
    gpu = gpus.get(sku.upper())
    if gpu is None:
        close = get_close_matches(sku.upper(), gpus, n=1)
        hint = f"did you mean {gpus[close[0]].sku}? " if close else ""
        known = ", ".join(builtin().gpus)
        fail(f"--gpu {sku!r} is not in the catalogue; {hint}known: {known}; or give --usd-per-hour", MISUSED)
    return gpu


def _shown(quoted: Quote, fleet: str) -> str:
    prices = {
        "output": quoted.output_usd_per_mtok,
        f"input ({quoted.input_ratio:f})": quoted.input_usd_per_mtok,
        f"cached ({quoted.cached_ratio:f})": quoted.cached_usd_per_mtok,
        f"blended {quoted.blend_ratio:f}:1": quoted.blended_usd_per_mtok,
    }
    lines = [f"{fleet}: {_rounded(quoted.usd_per_hour)} $/h, {_rounded(quoted.output_mtok_per_hour)} Mtok/h"]
    if quoted.overhead != 1:
        bare = quoted.output_usd_per_mtok / quoted.overhead
        added = quoted.output_usd_per_mtok - bare
        lines.append(f"{'GPUs alone':<16}{_rounded(bare):>10} $/Mtok output")
        lines.append(f"{f'overhead x{quoted.overhead:f}':<16}{_rounded(added):>10} $/Mtok on top, in all prices below")
    lines += [f"{name:<16}{_rounded(price):>10} $/Mtok" for name, price in prices.items()]
    share = quoted.blended_usd_per_mtok / quoted.output_usd_per_mtok
    lines[-1] += f"  ({_rounded(share)} x output)"
    return "\n".join(lines)


def _rounded(value: Decimal) -> str:
    """Three places, or two digits of what is smaller than that shows."""
    places = max(3, 1 - value.adjusted()) if value else 3
    return f"{value:.{places}f}"


def _nine_places(value: Decimal) -> str:
    """To a nano-dollar, without zeros that say nothing."""
    text = f"{value:.9f}"
    return text.rstrip("0").rstrip(".")
