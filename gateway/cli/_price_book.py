"""`mtok price show|history|why`: the live prices, and what each was made of."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.policy import plain
from gateway.pricing import weighted_tokens

from ._store import ask_store
from ._words import FAILED, STORE_ENVIRONMENT, duration_ms, fail, json_text, table, utc

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from redis.asyncio import Redis

    from gateway.costing import Epoch, EpochPrice

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, amounts as decimal strings.")]
_BOUNDS = {
    "": "as measured",
    "no tokens": "nothing was sold in that time, so the price stays",
    "floor": "the floor",
    "ceiling": "the ceiling",
    "step": "the largest step from the price before",
}


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("show", epilog=STORE_ENVIRONMENT)(show)
    app.command("history", epilog=STORE_ENVIRONMENT)(history)
    app.command("why", epilog=STORE_ENVIRONMENT)(why)


def show(as_json: _AsJson = False) -> None:
    """Show the live prices that hold now, US dollars per million tokens.

    A price that says stale is an earlier epoch's: nobody has made this one's. Fixed prices are in the policies.

    Example: mtok price show
    """
    now_s = int(time.time())
    epochs = ask_store(lambda redis: _read(redis, now_s, now_s))
    if not epochs:
        fail("no live price has been made: a model needs price: {mode: live} and a gpu", FAILED)
    epoch = epochs[-1]
    if as_json:
        typer.echo(json_text(epoch))
        return
    late_s = now_s - epoch.start_s - epoch.epoch_s
    typer.echo(f"epoch {epoch.name}" + (f", stale for {late_s} s" if late_s >= 0 else ""))
    typer.echo(_prices([epoch]))


def history(
    span: Annotated[str, typer.Option(help="How far back: 1h, 7d.")] = "24h",
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Show the live prices of the last epochs, oldest first.

    Example: mtok price history --span 7d --model tiny
    """
    now_s = int(time.time())
    epochs = ask_store(lambda redis: _read(redis, now_s - duration_ms(span) // 1000, now_s))
    if as_json:
        typer.echo(json_text(epochs))
    else:
        typer.echo(_prices(epochs, model))


def why(
    epoch: Annotated[str, typer.Argument(help="Its name, as in x-mtok-price-epoch: 2026-11-25T10:05:00Z.")],
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Say what an epoch's prices were made of: GPU cost, tokens, and which bound decided.

    Example: mtok price why 2026-11-25T10:05:00Z
    """
    from gateway.costing import read_named_epochs

    name = epoch.partition("/")[0].partition("~")[0]
    found = ask_store(lambda redis: read_named_epochs(redis, [name]))[0]
    if found is None:
        hint = "; a policy's own price: see its price section" if name.startswith("policy:") else ""
        fail(f"there is no epoch {name}{hint}", FAILED)
    if as_json:
        typer.echo(json_text(found))
        return
    early_s = found.start_s - found.decided_s
    when = f"{early_s} s before it began" if early_s >= 0 else f"{-early_s} s after it began"
    typer.echo(f"epoch {found.name}, made {when} by the policies {found.policy}")
    for name, price in found.prices.items():
        if model in (None, name):
            typer.echo(_made_of(name, price))


async def _read(redis: Redis, start_s: int, end_s: int) -> list[Epoch]:
    """The epochs that began in the span, and the one before it."""
    from gateway.costing import epoch_name, epoch_names, read_named_epochs

    names = [name for name in await epoch_names(redis) if name <= epoch_name(end_s)]
    earlier = [name for name in names if name < epoch_name(start_s)]
    found = await read_named_epochs(redis, [*earlier[-1:], *names[len(earlier) :]])
    return [epoch for epoch in found if epoch is not None]


def _prices(epochs: list[Epoch], model: str | None = None) -> str:
    rows = [
        (
            epoch.name,
            name,
            plain(price.output_usd_per_mtok),
            plain(price.input_usd_per_mtok),
            plain(price.cached_usd_per_mtok),
            price.bound or "measured",
        )
        for epoch in epochs
        for name, price in epoch.prices.items()
        if model in (None, name)
    ]
    return table(("EPOCH", "MODEL", "OUTPUT", "INPUT", "CACHED", "BY"), rows, right=(2, 3, 4))


def _made_of(name: str, price: EpochPrice) -> str:
    weight = weighted_tokens(price, input_ratio=price.input_ratio, cached_ratio=price.cached_ratio)
    measured = "nothing" if price.measured_usd_per_mtok is None else f"{price.measured_usd_per_mtok:.6f} $/Mtok"
    pool = "" if len(price.pool) == 1 else f" (of {', '.join(price.pool)}, which share replicas)"
    margin = f", and a margin of {plain(price.margin)}" if price.margin else ""
    return "\n".join(
        (
            f"{name}: {plain(price.output_usd_per_mtok)} output, {plain(price.input_usd_per_mtok)} input, "
            f"{plain(price.cached_usd_per_mtok)} cached $/Mtok",
            f"  window    {utc(price.window_start_s * 1000)} to {utc(price.window_end_s * 1000)}",
            f"  GPUs      {Decimal(price.cost_nanousd) / 10**9:.6f} $ x overhead {plain(price.overhead)}{pool}",
            f"  tokens    {price.output_tokens} output, {price.input_tokens} input x {price.input_ratio:.4f}, "
            f"{price.cached_tokens} cached x {price.cached_ratio:.4f}: weigh {weight:.1f}",
            f"  measured  {measured}",
            f"  price     {plain(price.live_usd_per_mtok)} after {plain(price.before_usd_per_mtok)}: "
            f"{_BOUNDS[price.bound]}{margin}",
        )
    )
