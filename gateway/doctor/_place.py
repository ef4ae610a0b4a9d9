"""What Redis, the data directory and the environment mean for Mtok. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.metering import LEASE_TTL_S

from ._facts import Disk, StoreFacts
from ._findings import Finding, Report

REDIS_LEAST: Final = (7, 2)
"""The first with WAITAOF. Valkey says 7.2.4 to whoever asks for Redis' version."""
SKEW_WARNED_MS: Final = 500
SKEW_MOST_MS: Final = LEASE_TTL_S * 1000 / 2
"""Leases are counted by gateways' clocks: at half their term one gateway's are forgotten by another while they run."""
PING_WARNED_MS: Final = 5.0
"""A request waits for Redis once before it runs."""
SYNC_WARNED_MS: Final = 20.0
"""An answer ends when its usage is on disk."""
FREE_LEAST_BYTES: Final = 1 << 30


def judge_store(facts: StoreFacts) -> list[Finding]:
    """Everything about Redis or Valkey."""
    report = Report("redis")
    if facts.error:
        report.add(
            "error", "reachable", f"does not answer: {facts.error}", "start it, or set MTOK_REDIS_URL to where it is"
        )
        return report.findings
    info = facts.info
    report.good("reachable", f"answers in {facts.ping_ms:.1f} ms")
    if facts.ping_ms > PING_WARNED_MS:
        report.add(
            "warning",
            "near",
            f"takes {facts.ping_ms:.1f} ms to answer, and each request waits for that once before it runs",
            "run it near the gateways",
        )
    _kind(report, info)
    _durability(report, facts)
    _clock(report, facts)
    return report.findings


def _kind(report: Report, info: Mapping[str, str]) -> None:
    version = info.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < REDIS_LEAST:
        report.add(
            "warning",
            "version",
            f"is version {version}, which cannot tell what is on its disk: what it has applied counts as kept",
            "use Redis 7.2 or newer, or Valkey",
        )
    if info.get("role") == "slave":
        report.add("error", "primary", "is a replica: nothing can be written there", "name the primary's address")
    if info.get("redis_mode") == "cluster":
        report.add(
            "warning",
            "primary",
            "is a cluster: the gateway follows one primary, and a MOVED is an outage to it",
            "give MTOK_REDIS_URL an address that leads to one primary",
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":
        report.add(
            "error",
            "eviction",
            f"throws keys away when its memory is full (maxmemory-policy {policy}): spent budgets would look unspent",
            "maxmemory-policy noeviction",
        )


def _durability(report: Report, facts: StoreFacts) -> None:
    if facts.info.get("aof_enabled") != "1":
        report.add(
            "error",
            "append-only",
            "keeps no append-only file: a restart loses budgets and usage that the journals hold for three days only",
            "appendonly yes, appendfsync everysec",
        )
    elif facts.info.get("aof_last_write_status", "ok") != "ok":
        report.add("error", "append-only", "cannot write its append-only file", "give its disk room")
    elif facts.synced is None:
        report.add("warning", "append-only", "does not take WAITAOF: it cannot tell what is on its disk")
    elif not facts.synced:
        report.add("warning", "append-only", "did not sync its append-only file within 2 s", "give it a faster disk")
    else:
        report.good("append-only", "writes an append-only file and tells when that is on disk")


def _clock(report: Report, facts: StoreFacts) -> None:
    most_ms = abs(facts.ahead_ms) - facts.within_ms
    told = f"the clock there is {abs(facts.ahead_ms):.0f} ms {'ahead of' if facts.ahead_ms > 0 else 'behind'} this one"
    if most_ms > SKEW_WARNED_MS:
        report.add(
            "error" if most_ms > SKEW_MOST_MS else "warning",
            "clock",
            f"{told}: leases of {LEASE_TTL_S:g} s and limits per minute are counted by the gateways' clocks",
            "keep all clocks by NTP",
        )
    else:
        report.good("clock", "clocks agree")


def judge_place(disk: Disk, *, has_admin_key: bool, embedded: bool) -> list[Finding]:
    """Everything about where the gateway runs. `embedded`: its Valkey is its own."""
    report = Report("here")
    if disk.error:
        report.add(
            "error",
            "data-directory",
            f"{disk.path} cannot be written: {disk.error}; nothing is served without a journal",
            "set MTOK_DATA_DIR to a directory of yours on a disk that survives the gateway",
        )
    else:
        report.good("data-directory", f"{disk.path} can be written")
        if disk.free_bytes < FREE_LEAST_BYTES:
            report.add(
                "warning",
                "data-directory",
                f"{disk.path} has {disk.free_bytes >> 20} MiB left",
                "give it 1 GiB or more",
            )
        if disk.sync_ms is not None and disk.sync_ms > SYNC_WARNED_MS:
            report.add(
                "warning",
                "data-directory",
                f"a write to {disk.path} is on disk after {disk.sync_ms:.0f} ms, and each answer ends only then",
                "use a local disk",
            )
    if not has_admin_key:
        report.add(
            "warning",
            "admin-key",
            "MTOK_ADMIN_KEY is not set: nobody may ask for any tenant's usage, and mtok top shows nothing",
            "set it for the gateways",
        )
    else:
        report.good("admin-key", "MTOK_ADMIN_KEY is set")
    if embedded:
        report.add(
            "note",
            "store",
            "MTOK_REDIS_URL is not set: the embedded Valkey serves the gateways of this machine alone",
            "set it where more than one machine serves",
        )
    return report.findings
