"""Who is asking: API keys, their store in Redis, and the directory that turns a key into its tenant.

A key looks like `mtok-<public id>-<secret>`. The public id may be logged, shown and limited by; the secret exists only
where it was shown once. Everything here stores and compares the SHA-256 of the whole key.
"""

from gateway.policy import check_public_id, hash_key, looks_like_key, parse_public_id

from ._directory import Identity, KeyDirectory, KeysUnavailable
from ._keys import key_of_header, key_of_headers, new_key, new_public_id
from ._store import (
    KEYS_CHANGED_CHANNEL,
    IssuedKey,
    KeyExistsError,
    KeyRecord,
    KeyStore,
    KeyStoreError,
    KeyUnknownError,
)

__all__ = [
    "KEYS_CHANGED_CHANNEL",
    "Identity",
    "IssuedKey",
    "KeyDirectory",
    "KeyExistsError",
    "KeyRecord",
    "KeyStore",
    "KeyStoreError",
    "KeyUnknownError",
    "KeysUnavailable",
    "check_public_id",
    "hash_key",
    "key_of_header",
    "key_of_headers",
    "looks_like_key",
    "new_key",
    "new_public_id",
    "parse_public_id",
]
