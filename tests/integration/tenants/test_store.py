"""Keys in a real Valkey: created, listed, rotated, revoked, and never with their secret."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from gateway.tenants import (
    KEYS_CHANGED_CHANNEL,
    KeyExistsError,
    KeyRecord,
    KeyStore,
    KeyUnknownError,
    hash_key,
    parse_public_id,
)

HOUR_MS = 3_600_000


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(redis: Redis, clock: Clock) -> KeyStore:
    return KeyStore(redis, now_ms=clock)


async def test_a_created_key_is_stored_by_its_hash_alone(redis: Redis, keys: KeyStore) -> None:
    """One field of `mtok:keys`, named by the SHA-256 of the whole key; the secret is nowhere in Redis."""
    issued = await keys.create("acme", "acme-ci", note="CI")
    assert parse_public_id(issued.key) == "acme-ci"
    stored = await redis.hgetall("mtok:keys")
    assert list(stored) == [hash_key(issued.key).encode()]
    assert issued.key.rpartition("-")[2].encode() not in b"".join(stored.values())
    expected = KeyRecord(id="acme-ci", tenant="acme", sha256=hash_key(issued.key), created_ms=1_000_000, note="CI")
    assert await keys.list() == [expected]


async def test_a_public_id_is_given_once(keys: KeyStore) -> None:
    """Not even after it was revoked, nor to another tenant: usage is split by it."""
    await keys.create("acme", "acme-ci")
    await keys.revoke("acme-ci")
    with pytest.raises(KeyExistsError, match="there is already a key 'acme-ci'"):
        await keys.create("other", "acme-ci")


async def test_of_two_that_create_one_id_at_once_one_wins(keys: KeyStore) -> None:
    """Administrators on two machines cannot both get the same id."""
    attempts = await asyncio.gather(*(keys.create("acme", "one") for _ in range(5)), return_exceptions=True)
    assert sorted(type(attempt).__name__ for attempt in attempts) == ["IssuedKey", *4 * ["KeyExistsError"]]
    assert len(await keys.list()) == 1


@pytest.mark.parametrize(
    ("tenant", "public_id", "note"), [("a b", "x", ""), ("acme", "mtok-x", ""), ("acme", "x", "a\nb")]
)
async def test_what_could_not_be_used_is_not_created(keys: KeyStore, tenant: str, public_id: str, note: str) -> None:
    """Tenants no policy can name, ids no key can have, notes that break the list."""
    with pytest.raises(ValueError):
        await keys.create(tenant, public_id, note=note)
    assert await keys.list() == []


async def test_keys_are_listed_by_tenant(keys: KeyStore) -> None:
    """All of them, or those of one tenant, in order."""
    for tenant, public_id in (("b", "b-1"), ("a", "a-2"), ("a", "a-1")):
        await keys.create(tenant, public_id)
    assert [record.id for record in await keys.list()] == ["a-1", "a-2", "b-1"]
    assert [record.id for record in await keys.list("a")] == ["a-1", "a-2"]


async def test_rotation_keeps_the_id_and_ends_the_old_secret_after_the_grace(keys: KeyStore, clock: Clock) -> None:
    """Both secrets have records; the old one's says when it ends, and the note moves along."""
    old = await keys.create("acme", "acme-ci", note="CI")
    clock.now_ms += 1
    new = await keys.rotate("acme-ci", grace_ms=HOUR_MS)
    assert parse_public_id(new.key) == "acme-ci"
    assert new.key != old.key
    first, second = await keys.list()
    assert (first.sha256, first.expires_ms) == (hash_key(old.key), 1_000_001 + HOUR_MS)
    assert (second.sha256, second.expires_ms, second.note) == (hash_key(new.key), None, "CI")


async def test_a_second_rotation_does_not_prolong_the_first_secret(keys: KeyStore, clock: Clock) -> None:
    """A secret that ends in a minute still does, however long the next grace."""
    await keys.create("acme", "acme-ci")
    await keys.rotate("acme-ci", grace_ms=60_000)
    clock.now_ms += 1
    await keys.rotate("acme-ci", grace_ms=HOUR_MS)
    assert [record.expires_ms for record in await keys.list()] == [1_060_000, 1_000_001 + HOUR_MS, None]


async def test_revoking_ends_every_secret_of_the_id(keys: KeyStore, clock: Clock) -> None:
    """The one in its grace too; a second revocation finds nothing left to end."""
    await keys.create("acme", "acme-ci")
    await keys.rotate("acme-ci", grace_ms=HOUR_MS)
    assert await keys.revoke("acme-ci") == 2
    assert await keys.revoke("acme-ci") == 0
    assert not any(record.is_active(clock.now_ms) for record in await keys.list())


async def test_keys_that_are_not_there_cannot_be_changed(keys: KeyStore) -> None:
    """Unknown and revoked ids are told apart, and keys of documents are sent there."""
    with pytest.raises(KeyUnknownError, match="there is no key 'nope' here; keys written into policy documents"):
        await keys.revoke("nope")
    await keys.create("acme", "acme-ci")
    await keys.revoke("acme-ci")
    with pytest.raises(KeyUnknownError, match="is revoked or expired; create a new one"):
        await keys.rotate("acme-ci", grace_ms=0)


async def test_every_change_is_published(redis: Redis, keys: KeyStore) -> None:
    """Workers hear of creation, rotation and revocation, by the public id."""
    async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(KEYS_CHANGED_CHANNEL)
        await subscription.get_message(timeout=1)
        await keys.create("acme", "acme-ci")
        await keys.rotate("acme-ci", grace_ms=0)
        await keys.revoke("acme-ci")
        heard = [await subscription.get_message(timeout=1) for _ in range(3)]
    assert [message and message["data"] for message in heard] == [b"acme-ci"] * 3
