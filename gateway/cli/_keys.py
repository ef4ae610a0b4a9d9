"""`mtok keys`: create, list, rotate, revoke."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, duration_ms, fail, settings, table, utc

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.tenants import KeyRecord, KeyStore

app = typer.Typer(
    help="API keys: create, list, rotate, revoke. Changes work at once in every worker of the gateway.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=STORE_ENVIRONMENT,
)

_Value = TypeVar("_Value")

KeyId = Annotated[str, typer.Argument(help="Public id of the key: mtok-ID-secret.", metavar="ID")]


@app.command(epilog=STORE_ENVIRONMENT)
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key; a tenant of the policies.")],
    public_id: Annotated[
        str | None,
        typer.Option("--id", help="Public id: letters, digits, inner dashes. Made from the tenant's name if left out."),
    ] = None,
    note: Annotated[str, typer.Option(help="A word for the list, e.g. who has it.")] = "",
) -> None:
    """Make a key and show it once.

    The key goes to stdout, alone on its line; everything else to stderr. Only its SHA-256 is stored.

    Example: mtok keys create acme --id acme-ci --note "CI pipeline"
    """
    issued = _with_keys(lambda keys: keys.create(tenant, public_id, note=note))
    typer.echo(issued.key)
    _tell(
        f"Key {issued.record.id!r} of tenant {tenant!r}, shown only this once. It works at once, wherever the policies"
        f" define tenant {tenant!r}."
    )


@app.command("list", epilog=STORE_ENVIRONMENT)
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's keys.")] = None,
) -> None:
    """List keys with their state; never their secrets, which nobody has.

    Keys that are written into policy documents are not here. Times are UTC.

    Example: mtok keys list --tenant acme
    """
    records = _with_keys(lambda keys: keys.list(tenant))
    if not records:
        _tell("No keys." if tenant is None else f"Tenant {tenant!r} has no keys here.")
        return
    now_ms = _now_ms()
    rows = [(r.tenant, r.id, utc(r.created_ms), _state(r, now_ms), r.note) for r in records]
    typer.echo(table(("TENANT", "ID", "CREATED", "STATE", "NOTE"), rows))


@app.command(epilog=STORE_ENVIRONMENT)
def rotate(
    public_id: KeyId,
    grace: Annotated[
        str, typer.Option(help="How long the old secret goes on working: 30s, 15m, 1h, 7d; 0 for not at all.")
    ] = "1h",
) -> None:
    """Give a key a new secret under the same public id, and show it once.

    Usage and limits go on under that id. The old secret works until the grace is over.

    Example: mtok keys rotate acme-ci --grace 24h
    """
    grace_ms = duration_ms(grace)
    issued = _with_keys(lambda keys: keys.rotate(public_id, grace_ms=grace_ms))
    typer.echo(issued.key)
    old = f"works until {utc(issued.record.created_ms + grace_ms)} UTC" if grace_ms else "works no more"
    _tell(f"New secret of key {public_id!r}, shown only this once. The old one {old}.")


@app.command(epilog=STORE_ENVIRONMENT)
def revoke(public_id: KeyId) -> None:
    """End a key at once, with every secret it has had. Its public id is never given again.

    Example: mtok keys revoke acme-ci
    """
    ended = _with_keys(lambda keys: keys.revoke(public_id))
    _tell(f"Key {public_id!r} is revoked." if ended else f"Key {public_id!r} had ended already.")


def _with_keys(use: Callable[[KeyStore], Awaitable[_Value]]) -> _Value:
    """Runs `use` with the key store; what goes wrong ends the command with one line."""
    from redis.exceptions import RedisError

    from gateway.store import EmbeddedStoreFailed, connect
    from gateway.tenants import KeyStore, KeyStoreError

    async def run() -> _Value:
        async with connect(settings()) as redis:
            return await use(KeyStore(redis, now_ms=_now_ms))

    try:
        return asyncio.run(run())
    except ValueError as error:
        fail(str(error), MISUSED)
    except KeyStoreError as error:
        fail(str(error), MISUSED)
    except (RedisError, OSError) as error:
        fail(f"Redis does not answer ({type(error).__name__}); is MTOK_REDIS_URL right?", FAILED)
    except EmbeddedStoreFailed as error:
        fail(str(error), FAILED)


def _state(record: KeyRecord, now_ms: int) -> str:
    if record.revoked_ms is not None:
        return f"revoked {utc(record.revoked_ms)}"
    if record.expires_ms is None:
        return "active"
    return f"{'expires' if record.is_active(now_ms) else 'expired'} {utc(record.expires_ms)}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
