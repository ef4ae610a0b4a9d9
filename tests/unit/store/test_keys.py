"""Key names and scripts."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import gateway.store
from gateway.store import TenantKeys, load_script

SCRIPTS = sorted((Path(gateway.store.__file__).parent / "scripts").glob("*.lua"))


def test_all_keys_of_a_tenant_share_its_hash_tag() -> None:
    """A tenant lives in one slot of a cluster."""
    keys = TenantKeys("acme")
    names = [
        keys.limits,
        keys.leases,
        keys.events,
        keys.producer("p"),
        keys.budget("month:2026-10"),
        keys.usage("1m", 60),
        keys.usage("1h", 3600),
        keys.usage("1d", 86_400),
    ]
    assert {re.search(r"\{(.*?)\}", name).group(1) for name in names} == {"acme"}  # type: ignore[union-attr]
    assert len(set(names)) == len(names)
    assert all(name.startswith("mtok:{acme}:") for name in names)


@pytest.mark.parametrize("name", ["", "a}b", "{a"])
def test_names_that_would_break_the_tag_are_a_defect(name: str) -> None:
    """Policies refuse such names; here they are asserted."""
    with pytest.raises(AssertionError):
        TenantKeys(name)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_each_script_has_a_header_with_its_contract(path: Path) -> None:
    """The header names the script, its KEYS, ARGV and what it returns."""
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("--"))
    assert header.startswith(f"-- {path.name}: ")
    assert "KEYS" in header
    assert "ARGV" in header
    assert "returns" in header


def test_a_script_is_known_by_the_hash_of_its_text() -> None:
    """EVALSHA's name is the SHA-1 of what SCRIPT LOAD gets, which has no comment lines."""
    script = load_script("account")
    assert script.sha1.decode() == hashlib.sha1(script.text).hexdigest()
    assert not re.search(rb"^\s*--", script.text, re.MULTILINE)
