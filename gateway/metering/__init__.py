"""What did it use: the usage event, and the ledger that reserves before a request runs and books when it has ended."""

from ._account import RefusedLately
from ._event import EVENT_VERSION, FailedAttempt, Status, UsageEvent
from ._journal import JournalUnavailable
from ._labels import Labels
from ._ledger import Ledger, LedgerStatistics, wall_clock_ms
from ._scopes import windows_at
from ._settings import LEASE_RENEW_S, LEASE_TTL_S, LedgerSettings
from ._sums import (
    CACHED,
    COST,
    ENGINE_INPUT,
    ESTIMATED,
    INPUT,
    OUTPUT,
    PARTS,
    REFUSED_PREFIX,
    REQUESTS,
    UNDELIVERED_INPUT_MAX,
    UNDELIVERED_OUTPUT_MAX,
    Dimensions,
    dimensions,
    split_field,
    sum_field,
    usage_sums,
)

__all__ = [
    "CACHED",
    "COST",
    "ENGINE_INPUT",
    "ESTIMATED",
    "EVENT_VERSION",
    "INPUT",
    "LEASE_RENEW_S",
    "LEASE_TTL_S",
    "OUTPUT",
    "PARTS",
    "REFUSED_PREFIX",
    "REQUESTS",
    "UNDELIVERED_INPUT_MAX",
    "UNDELIVERED_OUTPUT_MAX",
    "Dimensions",
    "FailedAttempt",
    "JournalUnavailable",
    "Labels",
    "Ledger",
    "LedgerSettings",
    "LedgerStatistics",
    "RefusedLately",
    "Status",
    "UsageEvent",
    "dimensions",
    "split_field",
    "sum_field",
    "usage_sums",
    "wall_clock_ms",
    "windows_at",
]
