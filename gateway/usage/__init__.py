"""What have I used? The usage report of a tenant: what it used and cost by time, model and key, and what is left."""

from ._limits import BudgetLeft, LimitLeft
from ._query import BUCKETS_MAX, GroupKey, UsageQuery, parse_query, parse_time
from ._report import ModelPrice, PriceShown, Report, UsageBucket, UsageResult, report

__all__ = [
    "BUCKETS_MAX",
    "BudgetLeft",
    "GroupKey",
    "LimitLeft",
    "ModelPrice",
    "PriceShown",
    "Report",
    "UsageBucket",
    "UsageQuery",
    "UsageResult",
    "parse_query",
    "parse_time",
    "report",
]
