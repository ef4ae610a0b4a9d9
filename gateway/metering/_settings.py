"""How the ledger behaves; built once, handed in by the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.policy import JournalFailure, LedgerSpec, StoreFailure
from gateway.store import BucketSize

DAY_S: Final = 86_400

LEASE_TTL_S = 10.0
LEASE_RENEW_S = 3.0
assert LEASE_RENEW_S * 3 <= LEASE_TTL_S, "two lost renewals must not cost a lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """`call_timeout_s` bounds one trip to Redis. `commit_wait_s` is how long an answer's end may wait for a disk that
    fails; `on_journal_failure` is what happens then. `on_store_failure` is what happens while Redis is away: nothing is
    admitted, or `degraded_share` of each limit by each worker. `waiting_max` asks of one tenant wait in memory at most;
    `volatile_max` events of one tenant do, when there is no disk and the gateway serves on.

    `journal_kept_s`, `events_kept_s` and `bucket_kept_s` (0: for ever) are how long what was shipped stays in the
    journal, events in the stream, and buckets after their last new field. `producer_ttl_s` is how long Redis knows a
    journal's last number after its last booking: longer than `journal_kept_s`, or what is kept would be booked anew.
    """

    call_timeout_s: float = 1.0
    commit_wait_s: float = 2.0
    on_journal_failure: JournalFailure = "refuse"
    on_store_failure: StoreFailure = "refuse"
    degraded_share: float = 0.1
    waiting_max: int = 10_000
    volatile_max: int = 100_000
    lease_ttl_s: float = LEASE_TTL_S
    lease_renew_s: float = LEASE_RENEW_S
    checkpoint_s: float = 1.0
    budget_ttl_s: int = 400 * DAY_S
    journal_kept_s: int = 3 * DAY_S
    events_kept_s: int = 35 * DAY_S
    bucket_kept_s: Mapping[BucketSize, int] = field(
        default_factory=lambda: {"1m": 7 * DAY_S, "1h": 120 * DAY_S, "1d": 0}
    )

    @classmethod
    def of(cls, spec: LedgerSpec) -> LedgerSettings:
        """As the policies say."""
        return cls(
            on_journal_failure=spec.on_journal_failure,
            on_store_failure=spec.on_store_failure,
            degraded_share=float(spec.degraded_share),
            journal_kept_s=spec.keep_journal_days * DAY_S,
            events_kept_s=spec.keep_events_days * DAY_S,
            bucket_kept_s={"1m": spec.keep_minutes_days * DAY_S, "1h": spec.keep_hours_days * DAY_S, "1d": 0},
        )

    @property
    def producer_ttl_s(self) -> int:
        return 10 * self.journal_kept_s + 30 * DAY_S

    def __post_init__(self) -> None:
        assert self.lease_renew_s * 3 <= self.lease_ttl_s, "two lost renewals must not cost a lease"
