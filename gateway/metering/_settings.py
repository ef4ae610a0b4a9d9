"""How the ledger behaves; built once, handed in by the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.store import BucketSize

DAY_S: Final = 86_400

LEASE_TTL_S = 10.0
LEASE_RENEW_S = 3.0
assert LEASE_RENEW_S * 3 <= LEASE_TTL_S, "two lost renewals must not cost a lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """`call_timeout_s` bounds one trip to Redis. `settle_wait_s` is how long an answer's end may wait for its booking;
    after that it is booked in the background. `waiting_max` asks and `unbooked_max` events of one tenant
    wait in memory at most; then requests are refused, and events go to the log.
    `events_max` is about how many events a tenant's stream keeps. `producer_ttl_s` is how long after its last booking a
    worker's resend is still recognised."""

    call_timeout_s: float = 1.0
    settle_wait_s: float = 1.0
    waiting_max: int = 10_000
    unbooked_max: int = 100_000
    events_max: int = 100_000
    lease_ttl_s: float = LEASE_TTL_S
    lease_renew_s: float = LEASE_RENEW_S
    producer_ttl_s: int = 7 * DAY_S
    budget_ttl_s: int = 400 * DAY_S
    bucket_kept_s: Mapping[BucketSize, int] = field(
        default_factory=lambda: {"1m": 7 * DAY_S, "1h": 120 * DAY_S, "1d": 0}
    )

    def __post_init__(self) -> None:
        assert self.lease_renew_s * 3 <= self.lease_ttl_s, "two lost renewals must not cost a lease"
