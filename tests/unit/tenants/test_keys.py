"""The shape of keys: made, read from the right, hashed whole."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.tenants import (
    IssuedKey,
    KeyRecord,
    check_public_id,
    hash_key,
    key_of_header,
    looks_like_key,
    new_key,
    new_public_id,
    parse_public_id,
)

public_ids = st.from_regex(r"[A-Za-z0-9]{1,8}(-[A-Za-z0-9]{1,8}){0,4}", fullmatch=True)


@given(public_ids)
def test_a_new_key_gives_its_public_id_back(public_id: str) -> None:
    """Whatever dashes the id holds, the last one begins the secret, of 43 base62 characters."""
    key = new_key(public_id)
    assert parse_public_id(key) == public_id
    assert parse_public_id(key.encode()) == public_id
    assert re.fullmatch(r"[A-Za-z0-9]{43}", key.removeprefix(f"mtok-{public_id}-"))


def test_two_keys_of_one_id_differ() -> None:
    """The secret is drawn anew each time."""
    assert new_key("acme-ci") != new_key("acme-ci")


def test_a_key_is_stored_as_the_sha256_of_the_whole_key() -> None:
    """The hash covers prefix, id and secret, in lower-case hex, for text and bytes alike."""
    assert hash_key("mtok-a-b") == hashlib.sha256(b"mtok-a-b").hexdigest()
    assert hash_key(b"mtok-a-b") == hash_key("mtok-a-b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mtok-",
        "mtok-acme",
        "mtok-acme-short",
        "sk-acme-" + "a" * 43,
        "mtok--" + "a" * 43,
        "mtok-" + "a" * 43,
        "mtok-acme-" + "a" * 39,
        "mtok-acme-" + "a" * 129,
        "mtok-acme-" + "ä" * 43,
        "mtok-ac me-" + "a" * 43,
    ],
)
def test_what_is_not_shaped_like_a_key_has_no_public_id(text: str) -> None:
    """Such credentials are refused without asking anybody."""
    assert parse_public_id(text) is None
    assert parse_public_id(text.encode()) is None
    assert not looks_like_key(text)


def test_bytes_that_are_no_text_have_no_public_id() -> None:
    """A header may hold any bytes."""
    assert parse_public_id(b"mtok-acme-" + b"\xff" * 43) is None


@pytest.mark.parametrize(
    ("public_id", "words"),
    [
        ("mtok-acme", "only the part of the key between"),
        ("a" * 65, "at most 64 characters, not 65"),
        ("-acme", "letters and digits"),
        ("acme-", "letters and digits"),
        ("ac--me", "letters and digits"),
        ("acme_ci", "letters and digits"),
        ("", "letters and digits"),
    ],
)
def test_an_impossible_public_id_is_refused_with_the_reason(public_id: str, words: str) -> None:
    """Ids are letters, digits and single inner dashes."""
    assert words in (check_public_id(public_id) or "")
    with pytest.raises(ValueError, match="a key's id"):
        new_key(public_id)


@given(st.text(max_size=80))
@example("mtok")
@example("mtok-team")
def test_a_tenant_of_any_name_gets_a_possible_id(tenant: str) -> None:
    """The id made for a tenant can always be one, whatever the tenant is called."""
    assert check_public_id(new_public_id(tenant)) is None


def test_the_id_made_for_a_tenant_begins_with_its_name() -> None:
    """People recognise their keys in logs."""
    assert re.fullmatch(r"acme-eu-[a-z0-9]{6}", new_public_id("acme.eu"))


@pytest.mark.parametrize("header", [b"Bearer k-1", b"bearer  k-1 ", b"BEARER k-1", b"k-1", b" k-1 "])
def test_the_key_is_found_in_either_header(header: bytes) -> None:
    """`Authorization: Bearer` in any case, or the bare key of `x-api-key`."""
    assert key_of_header(header) == b"k-1"


def test_a_key_that_was_just_made_is_not_in_its_repr() -> None:
    """Logging the result of a creation does not log the secret."""
    record = KeyRecord(id="acme-ci", tenant="acme", sha256="0" * 64, created_ms=1)
    assert "secret" not in repr(IssuedKey(record=record, key="mtok-acme-ci-secret"))


def test_a_key_ends_at_its_expiry_or_revocation() -> None:
    """It works up to the millisecond before, and not at it."""
    record = KeyRecord(id="a", tenant="t", sha256="0" * 64, created_ms=1, expires_ms=1000)
    assert (record.is_active(999), record.is_active(1000)) == (True, False)
    assert not KeyRecord(id="a", tenant="t", sha256="0" * 64, created_ms=1, revoked_ms=5).is_active(4)
