"""The shape of a key, `mtok-<public id>-<secret>`, as far as documents need it: to accept ids and to refuse secrets.

The public id holds letters, digits and inner dashes, so a key is read from the right: the last dash begins the secret.
Keys are made in `gateway.tenants`.
"""

from __future__ import annotations

import hashlib
import re

PREFIX = "mtok-"

PUBLIC_ID_CHARACTERS_MAX = 64
SECRET_CHARACTERS_MIN = 40
SECRET_CHARACTERS_MAX = 128

_PUBLIC_ID = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
_SECRET = re.compile(r"[A-Za-z0-9]+")


def hash_key(key: str | bytes) -> str:
    """SHA-256 of the whole key, in lower-case hex: the only form in which a key is stored."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def check_public_id(public_id: str) -> str | None:
    """What is wrong with a public id, or None. The answer does not repeat what may be a secret."""
    if public_id.startswith(PREFIX):
        return f"is only the part of the key between {PREFIX!r} and the secret, e.g. acme-ci"
    if len(public_id) > PUBLIC_ID_CHARACTERS_MAX:
        return f"has at most {PUBLIC_ID_CHARACTERS_MAX} characters, not {len(public_id)}"
    if not _PUBLIC_ID.fullmatch(public_id):
        return "has letters and digits, with single dashes inside, e.g. acme-ci"
    return None


def parse_public_id(key: str | bytes) -> str | None:
    """The public id of something shaped like a key, or None when it cannot be one of ours."""
    if isinstance(key, bytes):
        try:
            key = key.decode("ascii")
        except UnicodeDecodeError:
            return None
    if not key.startswith(PREFIX):
        return None
    public_id, _, secret = key[len(PREFIX) :].rpartition("-")
    if not SECRET_CHARACTERS_MIN <= len(secret) <= SECRET_CHARACTERS_MAX or not _SECRET.fullmatch(secret):
        return None
    if len(public_id) > PUBLIC_ID_CHARACTERS_MAX or not _PUBLIC_ID.fullmatch(public_id):
        return None
    return public_id


def looks_like_key(text: str) -> bool:
    """Whether this text may be a whole key and so must not be shown, stored or logged."""
    return parse_public_id(text.strip()) is not None
