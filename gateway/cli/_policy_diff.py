"""`mtok policy diff`: what another policy would change, and what it would have done to a day that was."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.admission import period_at, usd
from gateway.errors import Refusal
from gateway.policy import Difference, Policies, differences
from gateway.pricing import nanousd_of_usd

from ._store import ask_store
from ._words import MISUSED, STORE_ENVIRONMENT, duration_ms, fail, json_text, loaded, table, utc

if TYPE_CHECKING:  # the rooms import redis and the simulator's server; a help page should not
    from redis.asyncio import Redis

    from gateway.export import Span
    from gateway.replay import Arrival, Outcome, Prepared, TenantOutcome, UsedHour
    from gateway.simulator import Profile

PROFILE = "h200-llama-8b"

_ZONES_S = 14 * 3600
"""By so much a month begins earlier in the easternmost time zone."""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=STORE_ENVIRONMENT)(diff)


def diff(  # noqa: PLR0917 - options have names on the command line
    old: Annotated[Path, typer.Argument(help="Directory of the policies in force.", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="Directory of those that would replace them.", metavar="NEW")],
    span: Annotated[
        str | None,
        typer.Option(
            "--replay",
            help="Send the requests of this time through both: 24h (ago until now), or START/END in RFC 3339.",
            metavar="SPAN",
        ),
    ] = None,
    arrivals: Annotated[
        Path | None,
        typer.Option(
            help="Replay the requests of this file, not those in Redis: lines of mtok usage export --format jsonl.",
            metavar="FILE",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="What the replicas are: a profile of the simulator, or MODEL=PROFILE; may be given again.",
            metavar="NAME",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything that is known.")] = False,
) -> None:
    """Say what differs between two directories of policies, field by field, and what each would have done to a day.

    A replay takes times, tenants, models and sizes from the usage events, never prompts, and sends them through both
    policies' limits, queues and replicas in virtual time. Who was refused before being counted gets the size of
    another request of the tenant. Budgets begin as they were, or unspent with --arrivals; nobody who is refused comes
    back.

    Exit codes: 0 compared, 1 the arrivals cannot be read, 2 asked wrongly.

    Example: mtok policy diff policies policies.next --replay 24h
    """
    before, after = loaded(old), loaded(new)
    differing = differences(before, after)
    profiles = _profiles(profile or [])
    replayed: Prepared | None = None
    used: list[UsedHour] = []
    if arrivals is not None:
        replayed = _of_file(span, arrivals)
    elif span is not None:
        replayed, used = _of_ledger(_span(span), (before, after))
    outcomes = [] if replayed is None else _replayed(replayed.arrivals, used, (before, after), profiles)
    if as_json:
        told: dict[str, object] = {
            "object": "policy.diff",
            "old": {"directory": str(old), "sha256": before.sha256},
            "new": {"directory": str(new), "sha256": after.sha256},
            "differences": msgspec.to_builtins(differing),
        }
        if replayed is not None:
            told["replay"] = {
                "requests": len(replayed.arrivals),
                "imputed": replayed.imputed,
                "left_out": replayed.left_out,
                **{name: msgspec.to_builtins(one) for name, one in zip(("old", "new"), outcomes, strict=True)},
            }
        typer.echo(json_text(told))
        return
    typer.echo(_shown(differing))
    if replayed is not None:
        typer.echo(f"\n{_told(replayed)}")
        if replayed.arrivals:
            typer.echo(f"\n{_compared(*outcomes)}")


def _profiles(names: Sequence[str]) -> Callable[[str], Profile]:
    """The engine of each model."""
    from gateway.simulator import PROFILES

    usual, of_models = PROFILE, {}
    for text in names:
        model, _, name = text.rpartition("=")
        if name not in PROFILES:
            fail(f"--profile {name!r} is none of the simulator's: {', '.join(PROFILES)}", MISUSED)
        if model:
            of_models[model] = name
        else:
            usual = name
    return lambda model: PROFILES[of_models.get(model, usual)]


def _of_file(text: str | None, file: Path) -> Prepared:
    from gateway.replay import prepared, read_lines

    span = None if text is None else _span(text)
    try:
        with open(file, "rb") as lines:
            found = read_lines(lines)
            if span is not None:
                found = (one for one in found if span.start_ms <= one.arrived_ms < span.end_ms)
            return prepared(found)
    except (OSError, ValueError) as error:
        fail(f"the arrivals of {file} cannot be read: {error}")


def _of_ledger(span: Span, both: tuple[Policies, Policies]) -> tuple[Prepared, list[UsedHour]]:
    """The arrivals, and what had been used before them, if any limit of either policy looks at that."""
    from gateway.export import arrived
    from gateway.replay import arrival_of, prepared

    tenants = sorted({name for policies in both if policies.has_windows for name in policies.tenants})

    async def read(redis: Redis) -> tuple[list[Arrival], list[UsedHour]]:
        arrivals = [arrival_of(event) async for events in arrived(redis, span) for event in events]
        return arrivals, [hour for tenant in tenants for hour in await _used_before(redis, tenant, span.start_ms)]

    try:
        arrivals, used = ask_store(read)
    except ValueError as error:
        fail(str(error))
    return prepared(arrivals), used


async def _used_before(redis: Redis, tenant: str, start_ms: int) -> list[UsedHour]:
    """Of this month in any time zone, in whole hours."""
    from gateway.replay import UsedHour
    from gateway.usage import UsageQuery, report

    until_s = start_ms // 3_600_000 * 3600
    since_s = period_at("month", until_s).start_s - _ZONES_S
    grouped = ("key", "model")
    query = UsageQuery(start_s=since_s, end_s=until_s, from_s=since_s, group_by=grouped, limit=sys.maxsize)
    told = await report(redis, tenant, query, now_s=until_s, limits=None, prices=None, fields_max=sys.maxsize)
    return [
        UsedHour(
            tenant=tenant,
            key=str(result.key),
            model=str(result.model),
            start_s=bucket.start,
            tokens=result.input_tokens + result.output_tokens,
            nanousd=nanousd_of_usd(Decimal(result.cost_usd)),
        )
        for bucket in told.data
        for result in bucket.results
    ]


def _span(text: str) -> Span:
    from gateway.export import Span
    from gateway.usage import parse_time

    now_s = int(time.time())
    first, slash, last = text.partition("/")
    if not slash:
        try:
            length_ms = duration_ms(text)
        except typer.BadParameter:
            fail(
                f"--replay {text!r} is no time: write 24h, or START/END, such as 2026-10-01T00:00Z/2026-10-02", MISUSED
            )
        return Span(start_ms=now_s * 1000 - length_ms, end_ms=(now_s + 1) * 1000)
    times = [parse_time(name, part) for name, part in (("start", first), ("end", last))]
    for checked in times:
        if isinstance(checked, Refusal):
            fail(f"--replay {text!r}: {checked.message}", MISUSED)
    start_s, end_s = times
    assert isinstance(start_s, int)
    assert isinstance(end_s, int)
    if start_s >= end_s:
        fail(f"--replay {text!r} ends before it begins", MISUSED)
    return Span(start_ms=start_s * 1000, end_ms=end_s * 1000)


def _replayed(
    arrivals: Sequence[Arrival],
    used: Sequence[UsedHour],
    both: tuple[Policies, Policies],
    profiles: Callable[[str], Profile],
) -> list[Outcome]:
    from gateway.replay import replay

    gc.freeze()
    gc.disable()  # nothing in a replay is garbage in a circle, and looking for it takes a tenth of the time
    try:
        outcomes = []
        for policies in both:
            print(f"mtok: {len(arrivals)} requests through {policies.sha256[:12]} ...", file=sys.stderr)
            outcomes.append(replay(arrivals, policies, profiles, used))
        return outcomes
    finally:
        gc.enable()


def _shown(differing: Sequence[Difference]) -> str:
    if not differing:
        return "Both say the same."
    rows = [(one.path, _or_nothing(one.old), _or_nothing(one.new)) for one in differing]
    return table(("FIELD", "OLD", "NEW"), rows)


def _told(replayed: Prepared) -> str:
    arrivals = replayed.arrivals
    if not arrivals:
        return "Nobody came in this time."
    first, last = (utc(one.arrived_ms, seconds=False) for one in (arrivals[0], arrivals[-1]))
    told = f"{len(arrivals)} requests, {first} to {last} UTC."
    if replayed.imputed:
        told += f" {replayed.imputed} were refused before they were counted; their sizes are of others."
    if replayed.left_out:
        told += f" {replayed.left_out} are left out: refused before their model was known, or of no known size."
    return told


def _compared(old: Outcome, new: Outcome) -> str:
    rows = _lines("all", old.total, new.total)
    for tenant in sorted(old.tenants.keys() | new.tenants.keys()):
        rows += _lines(tenant, old.tenants[tenant], new.tenants[tenant])
    return table(("TENANT", "", "OLD", "NEW"), rows, right=(2, 3))


def _lines(tenant: str, old: TenantOutcome, new: TenantOutcome) -> list[tuple[str, str, str, str]]:
    """A tenant's lines; refusals by what refused, and nothing where both have nothing."""
    both = (old, new)
    found: dict[str, tuple[str, ...]] = {"served": tuple(str(one.served) for one in both)}
    for name, counts in (("refused", [one.refused for one in both]), ("would refuse", [one.audited for one in both])):
        for rule in sorted(counts[0].keys() | counts[1].keys()):
            found[f"{name}: {rule}"] = tuple(str(by.get(rule, 0)) for by in counts)
    for name in ("wait", "ttft", "itl"):
        spreads = [getattr(one, name) for one in both]
        for part in ("p50", "p99"):
            found[f"{name} {part} ms"] = tuple(_or_nothing(getattr(spread, f"{part}_ms")) for spread in spreads)
    found["input tokens"] = tuple(str(one.input_tokens) for one in both)
    found["output tokens"] = tuple(str(one.output_tokens) for one in both)
    found["usd"] = tuple(usd(one.cost_nanousd) for one in both)
    return _named(tenant, found)


def _named(tenant: str, found: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str, str, str]]:
    return [
        (tenant if number == 0 else "", name, values[0], values[1])
        for number, (name, values) in enumerate(found.items())
    ]


def _or_nothing(value: object) -> str:
    return "-" if value is None else str(value)
