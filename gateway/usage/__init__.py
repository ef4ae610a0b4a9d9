"""What have I used? A tenant's usage by time and everything it can be split by, and what is left of its limits."""

from ._limits import BudgetLeft, LimitLeft
from ._organization import Kind, OrganizationQuery, organization_page, parse_organization_query
from ._parameters import parse_time
from ._query import BUCKETS_MAX, GROUP_KEYS, TAG_PREFIX, UsageQuery, kept_days, parse_query
from ._replicas import replica_alias
from ._report import ModelPrice, PriceShown, Report, UsageBucket, UsageResult, report

__all__ = [
    "BUCKETS_MAX",
    "GROUP_KEYS",
    "TAG_PREFIX",
    "BudgetLeft",
    "Kind",
    "LimitLeft",
    "ModelPrice",
    "OrganizationQuery",
    "PriceShown",
    "Report",
    "UsageBucket",
    "UsageQuery",
    "UsageResult",
    "kept_days",
    "organization_page",
    "parse_organization_query",
    "parse_query",
    "parse_time",
    "replica_alias",
    "report",
]
