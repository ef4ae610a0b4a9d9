"""Is the ledger right? Its events held against the engines' own counters, its costs against the price book, its sums
against its events.
"""

from ._events import events, tenants
from ._prices import PriceBook, read_prices, write_prices
from ._recompute import Difference, Recomputed, recompute
from ._reconcile import DIRECTIONS, Gap, Interval, Reconciliation, Row, Tokens, Verdict, Work
from ._span import Audit, audit
from ._watch import Watch

__all__ = [
    "DIRECTIONS",
    "Audit",
    "Difference",
    "Gap",
    "Interval",
    "PriceBook",
    "Recomputed",
    "Reconciliation",
    "Row",
    "Tokens",
    "Verdict",
    "Watch",
    "Work",
    "audit",
    "events",
    "read_prices",
    "recompute",
    "tenants",
    "write_prices",
]
