"""What the commands share: how they fail, what they read and how, and how they show times, tables and JSON."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import msgspec
import typer

from gateway.policy import Policies, PolicyError, load
from gateway.settings import VARIABLES, Settings, SettingsError

FAILED = 1
MISUSED = 2

_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_DURATION = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d|w)")
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,12})?")

ENVIRONMENT = "Environment:\n\n\b\n" + "\n".join(f"  {name:<22} {about}" for name, about in VARIABLES.items())
"""The end of a help page."""

STORE_ENVIRONMENT = (
    "Environment: MTOK_REDIS_URL says which Redis (it must be the gateway's); unset, it is the embedded Valkey of"
    " MTOK_DATA_DIR (default ./.mtok), which is joined when it runs and started for the moment when not."
)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Says what is the matter, on stderr, and ends the command."""
    typer.echo(f"mtok: {message}", err=True)
    raise typer.Exit(code)


def settings() -> Settings:
    """The environment's settings; a bad variable ends the command."""
    try:
        return Settings.from_environment()
    except SettingsError as error:
        fail(str(error), MISUSED)


def loaded(directory: Path) -> Policies:
    """The policies of a directory; documents that cannot be used end the command."""
    try:
        return load(directory)
    except PolicyError as error:
        fail_policies(error)


def fail_policies(error: PolicyError) -> NoReturn:
    """Says everything that is wrong with the policies, and ends the command."""
    fail(f"the policies cannot be used:\n{error}", MISUSED)


def duration_ms(text: str) -> int:
    """Milliseconds in `30s`, `15m`, `1h`, `7d`; `0` is none. Raises `typer.BadParameter`."""
    text = text.strip().lower()
    if text == "0":
        return 0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write a number with a unit, e.g. 30s, 15m, 1h or 7d")
    return int(match[1]) * _UNIT_MS[match[2]]


def moment(text: str, *, now_s: int) -> str:
    """A duration ago, or `now`, as Unix seconds; any other text as it is, for the report's own reading of times."""
    if _DURATION.fullmatch(text.strip().lower()):
        return str(now_s - duration_ms(text) // 1000)
    return str(now_s) if text.strip().lower() == "now" else text.strip()


def number(text: str | Decimal) -> Decimal:
    """An exact number of 0 or more without a unit; a dollar sign is forgiven. Raises `typer.BadParameter`.

    Takes a `Decimal` too, since Typer parses defaults as well.
    """
    digits = str(text).strip().removeprefix("$").replace("_", "")
    if not _NUMBER.fullmatch(digits):
        raise typer.BadParameter(f"{text!r} is not a plain number, e.g. 2.99")
    return Decimal(digits)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns as wide as their widest cell; those in `right` (from 0) are numbers and end at the same place."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def utc(time_ms: int, *, seconds: bool = True) -> str:
    """A Unix time in milliseconds as people read it, to the second or to the minute."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M", time.gmtime(time_ms // 1000))


def json_text(told: object) -> str:
    """What `--json` prints: indented, for people too."""
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()
