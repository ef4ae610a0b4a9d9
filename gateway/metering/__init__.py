"""What did it use: the usage event, and the ledger that reserves before a request runs and books when it has ended."""

from ._event import Status, UsageEvent
from ._ledger import Ledger, LedgerStatistics, wall_clock_ms
from ._settings import LEASE_RENEW_S, LEASE_TTL_S, LedgerSettings
from ._sums import (
    BUCKET_KEPT_S,
    CACHED,
    COST,
    ESTIMATED,
    INPUT,
    OUTPUT,
    REFUSED_PREFIX,
    REQUESTS,
    split_field,
    sum_field,
)

__all__ = [
    "BUCKET_KEPT_S",
    "CACHED",
    "COST",
    "ESTIMATED",
    "INPUT",
    "LEASE_RENEW_S",
    "LEASE_TTL_S",
    "OUTPUT",
    "REFUSED_PREFIX",
    "REQUESTS",
    "Ledger",
    "LedgerSettings",
    "LedgerStatistics",
    "Status",
    "UsageEvent",
    "split_field",
    "sum_field",
    "wall_clock_ms",
]
