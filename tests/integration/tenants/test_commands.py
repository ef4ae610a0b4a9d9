"""`mtok keys` against a real Valkey: what it prints where, and that the gateway's directory agrees."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.policy import Policies, TenantSpec
from gateway.store import client
from gateway.tenants import Identity, KeyDirectory, parse_public_id

Mtok = Callable[..., Result]


@pytest.fixture
def mtok(redis: Redis, valkey_url: str) -> Mtok:
    """The command on an empty store."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"MTOK_REDIS_URL": valkey_url})

    return run


def tenant_of(valkey_url: str, key: str) -> str | None:
    """Whose key it is, as a fresh worker sees it."""
    policies = Policies(models={}, tenants={"acme": TenantSpec(name="acme")}, classes={}, sha256="0" * 64)

    async def ask() -> Identity | None:
        async with client(valkey_url) as redis:
            return await KeyDirectory(policies, redis, now_ms=lambda: time.time_ns() // 1_000_000).lookup(key.encode())

    identity = asyncio.run(ask())
    return identity.tenant.name if identity else None


def test_a_created_key_is_alone_on_stdout_and_works(mtok: Mtok, valkey_url: str) -> None:
    """`mtok keys create acme --id acme-ci > secret` stores the key and nothing else; the words go to stderr."""
    created = mtok("keys", "create", "acme", "--id", "acme-ci", "--note", "CI")
    assert created.exit_code == 0
    key = created.stdout.removesuffix("\n")
    assert parse_public_id(key) == "acme-ci"
    assert key not in created.stderr
    assert "shown only this once" in created.stderr
    assert tenant_of(valkey_url, key) == "acme"


def test_the_list_shows_states_and_no_secrets(mtok: Mtok) -> None:
    """Tenant, id, age, state and note; after a rotation both records, after a revocation their end."""
    keys = [mtok("keys", "create", "acme", "--id", "acme-ci", "--note", "CI").stdout]
    mtok("keys", "create", "other", "--id", "other-1")
    keys.append(mtok("keys", "rotate", "acme-ci", "--grace", "1h").stdout)
    listed = mtok("keys", "list", "--tenant", "acme").stdout
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    lines = listed.splitlines()
    assert re.fullmatch(r"TENANT +ID +CREATED +STATE +NOTE", lines[0])
    assert re.fullmatch(rf"acme +acme-ci +{at} +expires {at} +CI", lines[1])
    assert re.fullmatch(rf"acme +acme-ci +{at} +active +CI", lines[2])
    assert len(lines) == 3
    assert not any(key.strip().rpartition("-")[2] in listed for key in keys)
    mtok("keys", "revoke", "acme-ci")
    assert len(re.findall("revoked", mtok("keys", "list").stdout)) == 2


def test_rotation_without_grace_ends_the_old_secret(mtok: Mtok, valkey_url: str) -> None:
    """`--grace 0`: the new secret works, the old one does not."""
    old = mtok("keys", "create", "acme", "--id", "acme-ci").stdout.strip()
    rotated = mtok("keys", "rotate", "acme-ci", "--grace", "0")
    assert "The old one works no more." in rotated.stderr
    assert tenant_of(valkey_url, old) is None
    assert tenant_of(valkey_url, rotated.stdout.strip()) == "acme"


def test_revocation_says_what_it_did(mtok: Mtok, valkey_url: str) -> None:
    """Once revoked, once too late, once unknown."""
    key = mtok("keys", "create", "acme", "--id", "acme-ci").stdout.strip()
    assert mtok("keys", "revoke", "acme-ci").stderr == "Key 'acme-ci' is revoked.\n"
    assert tenant_of(valkey_url, key) is None
    assert mtok("keys", "revoke", "acme-ci").stderr == "Key 'acme-ci' had ended already.\n"
    unknown = mtok("keys", "revoke", "nope")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("mtok: there is no key 'nope' here; ")


def test_an_id_is_taken_once(mtok: Mtok) -> None:
    """Exit code 2 and what to do instead; stdout stays empty, so that no script takes an error for a key."""
    mtok("keys", "create", "acme", "--id", "acme-ci")
    again = mtok("keys", "create", "acme", "--id", "acme-ci")
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr == "mtok: there is already a key 'acme-ci'; choose another id, or rotate that one\n"


def test_usage_of_a_tenant_who_did_nothing_is_zero(mtok: Mtok) -> None:
    """A table with a total, and the JSON of `GET /v1/usage`."""
    table = mtok("usage", "acme", "--start", "2h", "--group-by", "model,key")
    assert table.exit_code == 0
    assert table.stdout.splitlines()[0].split() == [
        *("START", "(UTC)", "MODEL", "KEY", "REQUESTS", "REFUSED", "INPUT", "CACHED", "OUTPUT", "COST", "USD")
    ]
    assert table.stdout.splitlines()[-1].split()[:3] == ["total", "0", "0"]
    as_json = mtok("usage", "acme", "--json").stdout
    assert '"object": "usage"' in as_json
