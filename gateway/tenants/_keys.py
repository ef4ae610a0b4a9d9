"""Making keys, and finding one in a header. Their shape is in `gateway.policy`, which refuses them in documents."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping

from gateway.policy import check_public_id

SECRET_CHARACTERS = 43
"""Base62 characters of a new secret: 256 bits, so that nobody finds a key by trying, nor from its hash."""

_BASE62 = string.ascii_letters + string.digits
_BEARER = b"bearer "


def new_key(public_id: str) -> str:
    """A fresh key for this public id. The caller shows it once and keeps only its hash.

    Raises `ValueError` for a public id that `check_public_id` refuses.
    """
    problem = check_public_id(public_id)
    if problem:
        raise ValueError(f"a key's id {problem}")
    secret = "".join(secrets.choice(_BASE62) for _ in range(SECRET_CHARACTERS))
    return f"mtok-{public_id}-{secret}"


def new_public_id(tenant: str) -> str:
    """A public id for a tenant that did not choose one: its name and six random characters."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", tenant).strip("-")[:40].strip("-") or "key"
    if f"{name}-".startswith("mtok-"):
        name = f"key-{name}"  # an id that begins like a key is taken for one
    suffix = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(6))
    return f"{name}-{suffix}"


def key_of_headers(headers: Mapping[bytes, bytes]) -> bytes:
    """The key a request came with, as OpenAI's SDKs send it or as Anthropic's do; empty when there is none."""
    authorization = headers.get(b"authorization", b"")
    if authorization[:7].lower() == _BEARER:
        return authorization[7:].strip()
    return headers.get(b"x-api-key", b"").strip()


def key_of_header(value: bytes) -> bytes:
    """The key in an `Authorization` header's value; a value without `Bearer` (as in `x-api-key`) is the key itself."""
    value = value.strip()
    if value[:7].lower() == _BEARER:
        return value[7:].strip()
    return value
