"""What Redis, the disk and the environment mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.doctor import Disk, StoreFacts, judge_place, judge_store

INFO = {
    "redis_version": "7.2.4",
    "redis_mode": "standalone",
    "role": "master",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
}


def store(info: dict[str, str] | None = None, **changes: object) -> dict[str, str]:
    facts = StoreFacts(**{"info": INFO | (info or {}), "synced": True, "ping_ms": 0.3, "within_ms": 0.2, **changes})  # type: ignore[arg-type]
    return {one.check: one.severity for one in judge_store(facts) if one.severity != "good"}


def test_a_store_as_it_should_be_has_no_findings() -> None:
    assert store() == {}


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({"redis_version": "7.0.15"}, {"version": "warning"}),
        ({"redis_version": "8.1.0"}, {}),
        ({"role": "slave"}, {"primary": "error"}),
        ({"redis_mode": "cluster"}, {"primary": "warning"}),
        ({"aof_enabled": "0"}, {"append-only": "error"}),
        ({"aof_last_write_status": "err"}, {"append-only": "error"}),
        ({"maxmemory": "1000000", "maxmemory_policy": "allkeys-lru"}, {"eviction": "error"}),
        ({"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}, {}),
    ],
)
def test_what_would_lose_or_overrun_a_budget_is_found(info: dict[str, str], found: dict[str, str]) -> None:
    assert store(info) == found


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"synced": None}, {"append-only": "warning"}),
        ({"synced": False}, {"append-only": "warning"}),
        ({"ping_ms": 6.0}, {"near": "warning"}),
        ({"ahead_ms": 400.0}, {}),
        ({"ahead_ms": -800.0}, {"clock": "warning"}),
        ({"ahead_ms": 6000.0}, {"clock": "error"}),
        ({"ahead_ms": 800.0, "within_ms": 700.0}, {}),
    ],
)
def test_what_is_slow_or_late_is_found(facts: dict[str, object], found: dict[str, str]) -> None:
    """A clock is only as wrong as the answer's way allows."""
    assert store(**facts) == found


def test_a_store_that_does_not_answer_is_one_error() -> None:
    (found,) = judge_store(StoreFacts(error="Connection refused"))
    assert (found.severity, "MTOK_REDIS_URL" in found.change) == ("error", True)


def place(disk: Disk, *, has_admin_key: bool = True, embedded: bool = False) -> dict[str, str]:
    findings = judge_place(disk, has_admin_key=has_admin_key, embedded=embedded)
    return {one.check: one.severity for one in findings if one.severity != "good"}


def test_the_disk_the_admin_key_and_the_embedded_store_are_looked_at() -> None:
    good = Disk(path=Path("/data"), free_bytes=8 << 30, sync_ms=1.0)
    assert place(good) == {}
    assert place(good, has_admin_key=False) == {"admin-key": "warning"}
    assert place(good, embedded=True) == {"store": "note"}
    assert place(Disk(path=Path("/data"), error="Read-only file system")) == {"data-directory": "error"}
    assert place(Disk(path=Path("/data"), free_bytes=1 << 20)) == {"data-directory": "warning"}
    assert place(Disk(path=Path("/data"), free_bytes=8 << 30, sync_ms=90.0)) == {"data-directory": "warning"}
