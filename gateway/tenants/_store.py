"""Keys in Redis, for those who create, rotate and revoke them.

One hash, `mtok:keys`: the SHA-256 of a key → its record as JSON. A public id has one record for each secret it has had,
so a rotation keeps the old secret's record with its expiry. Every change is published on `mtok:keys:changed` in the
transaction that makes it; the directory of each worker listens there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from redis.asyncio import Redis
from redis.exceptions import WatchError

from gateway.policy import check_name, check_public_id, hash_key

from ._keys import new_key, new_public_id

KEYS_HASH = "mtok:keys"
KEYS_CHANGED_CHANNEL = "mtok:keys:changed"

NOTE_CHARACTERS_MAX = 200

CHANGE_ATTEMPTS_MAX = 20
"""Administrators seldom collide; a change that loses this many races meets something else than an administrator."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One secret of one public id. Times are Unix milliseconds; None is never. `sha256` is of the whole key, in hex."""

    id: str
    tenant: str
    sha256: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    note: str = ""

    def is_active(self, now_ms: int) -> bool:
        """Whether the key may be used now."""
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A new key, whole, for the one who shows it once. Its `repr` does not hold it."""

    record: KeyRecord
    key: str = field(repr=False)


class KeyStoreError(Exception):
    """A change of keys that cannot be made; the message says why and what to do."""


class KeyExistsError(KeyStoreError):
    """The public id is taken, now or in the past: usage is split by it, so it is never given twice."""


class KeyUnknownError(KeyStoreError):
    """No key in Redis has this public id, or none that still works."""


_decoder = msgspec.json.Decoder(KeyRecord)
_Change = Callable[[list[KeyRecord], int], list[KeyRecord]]


def decode_record(encoded: bytes | str) -> KeyRecord:
    """The record behind a field of `mtok:keys`. Raises `msgspec.DecodeError` for anything else."""
    return _decoder.decode(encoded)


class KeyStore:
    """Keys as administrators see them. `now_ms` is Unix time in milliseconds.

    Every method raises `redis.exceptions.RedisError` when Redis does not answer.
    """

    def __init__(self, redis: Redis, *, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._now_ms = now_ms

    async def create(self, tenant: str, public_id: str | None = None, *, note: str = "") -> IssuedKey:
        """Makes a key. Without `public_id` one is made from the tenant's name.

        Raises `KeyExistsError` for a public id already used, `ValueError` for one that cannot be one, for a tenant
        whose name no policy could hold, and for a note that would spoil a list.
        """
        problem = check_name(tenant)
        if problem:
            raise ValueError(f"tenant {tenant[:64]!r} {problem}")
        if not note.isprintable() or len(note) > NOTE_CHARACTERS_MAX:
            raise ValueError(f"a note is one line of at most {NOTE_CHARACTERS_MAX} characters")
        if public_id is None:
            public_id = new_public_id(tenant)
        key = new_key(public_id)
        digest = hash_key(key)
        issued: list[KeyRecord] = []

        def change(records: list[KeyRecord], now_ms: int) -> list[KeyRecord]:
            if any(record.id == public_id for record in records):
                raise KeyExistsError(f"there is already a key {public_id!r}; choose another id, or rotate that one")
            issued[:] = [KeyRecord(id=public_id, tenant=tenant, sha256=digest, created_ms=now_ms, note=note)]
            return issued

        await self._change(change)
        return IssuedKey(record=issued[0], key=key)

    async def list(self, tenant: str | None = None) -> list[KeyRecord]:
        """All records, or one tenant's, by tenant, id and age; those expired and revoked too."""
        encoded = await self._redis.hgetall(KEYS_HASH)
        records = [decode_record(value) for value in encoded.values()]
        chosen = [record for record in records if tenant is None or record.tenant == tenant]
        return sorted(chosen, key=lambda record: (record.tenant, record.id, record.created_ms))

    async def rotate(self, public_id: str, *, grace_ms: int) -> IssuedKey:
        """A new secret for this public id; the old one works for `grace_ms` more, or less if it would end before.

        Raises `KeyUnknownError` when no key with this id works any more.
        """
        assert grace_ms >= 0
        key = new_key(public_id)
        digest = hash_key(key)
        issued: list[KeyRecord] = []

        def change(records: list[KeyRecord], now_ms: int) -> list[KeyRecord]:
            old = [record for record in records if record.id == public_id and record.is_active(now_ms)]
            if not old:
                raise KeyUnknownError(_why_unknown(records, public_id))
            newest = max(old, key=lambda record: record.created_ms)
            issued[:] = [
                KeyRecord(id=public_id, tenant=newest.tenant, sha256=digest, created_ms=now_ms, note=newest.note)
            ]
            end_ms = now_ms + grace_ms
            ending = [
                msgspec.structs.replace(record, expires_ms=min(end_ms, record.expires_ms or end_ms)) for record in old
            ]
            return issued + ending

        await self._change(change)
        return IssuedKey(record=issued[0], key=key)

    async def revoke(self, public_id: str) -> int:
        """Every secret of this public id stops working at once. Returns how many still worked; 0 when none did.

        Raises `KeyUnknownError` for an id that never was.
        """
        revoked: list[KeyRecord] = []

        def change(records: list[KeyRecord], now_ms: int) -> list[KeyRecord]:
            mine = [record for record in records if record.id == public_id]
            if not mine:
                raise KeyUnknownError(_why_unknown(records, public_id))
            active = [record for record in mine if record.is_active(now_ms)]
            revoked[:] = [msgspec.structs.replace(record, revoked_ms=now_ms) for record in active]
            return revoked

        await self._change(change)
        return len(revoked)

    async def _change(self, change: _Change) -> None:
        """Reads all records, asks `change` which to write, and writes them if nobody else did meanwhile."""
        for _ in range(CHANGE_ATTEMPTS_MAX):
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(KEYS_HASH)
                encoded = await pipe.hgetall(KEYS_HASH)
                written = change([decode_record(value) for value in encoded.values()], self._now_ms())
                if not written:
                    return
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(KEYS_HASH, mapping={record.sha256: msgspec.json.encode(record) for record in written})
                pipe.publish(KEYS_CHANGED_CHANNEL, written[0].id)
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return
        raise KeyStoreError("other changes of keys kept coming in between; try again")


def _why_unknown(records: list[KeyRecord], public_id: str) -> str:
    if any(record.id == public_id for record in records):
        return f"key {public_id!r} is revoked or expired; create a new one"
    problem = check_public_id(public_id)
    if problem:
        return f"a key's id {problem}"
    return f"there is no key {public_id!r} here; keys written into policy documents are changed there"
