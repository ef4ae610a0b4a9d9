"""Whose prompts may share cached blocks: the salt that engines and the prefix chain begin with."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode

import xxhash


def tenant_salt(secret: bytes, tenant: str, own: bytes = b"") -> str:
    """The `cache_salt` of a tenant whose cache is its own; `own` is the raw JSON of the salt that it sent, which parts
    its cache further. Nobody without the secret can tell it, nor make another tenant's out of any `own`.

    43 letters, digits, `-` and `_`: vLLM takes at most 128, and none of `@`, `/` and `\\`.
    """
    assert "\0" not in tenant, "the separator is in no tenant's name"
    digest = hmac.digest(secret, tenant.encode() + b"\0" + own, "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def chain_seed(salt: bytes) -> int:
    """What a prompt's prefix chain begins with; 0 without a salt."""
    return xxhash.xxh3_64_intdigest(salt) if salt else 0
