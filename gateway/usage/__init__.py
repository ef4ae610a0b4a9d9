"""What have I used? A tenant's usage by time and everything it can be split by, and what is left of its limits."""

from ._limits import BudgetLeft, LimitLeft, Limits, read_left, read_limits, whole_left
from ._matches import matches_since_yesterday
from ._organization import Kind, OrganizationQuery, organization_page, parse_organization_query
from ._parameters import parse_time
from ._query import BUCKETS_MAX, GROUP_KEYS, TAG_PREFIX, UsageQuery, kept_days, parse_query
from ._replicas import replica_alias
from ._report import ModelPrice, PriceShown, Report, UsageBucket, UsageResult, report
from ._requests import (
    Booked,
    RequestList,
    RequestQuery,
    RequestShown,
    RequestsQuery,
    find_event,
    find_request,
    is_entry,
    last_entry,
    list_requests,
    next_events,
    parse_request_query,
    parse_requests_query,
    parse_stream_query,
)
from ._running import read_running
from ._tokens import Billed, billed_by_tenant_and_model
from ._why import CameTrue, Why, rules_met, why

__all__ = [
    "BUCKETS_MAX",
    "GROUP_KEYS",
    "TAG_PREFIX",
    "Billed",
    "Booked",
    "BudgetLeft",
    "CameTrue",
    "Kind",
    "LimitLeft",
    "Limits",
    "ModelPrice",
    "OrganizationQuery",
    "PriceShown",
    "Report",
    "RequestList",
    "RequestQuery",
    "RequestShown",
    "RequestsQuery",
    "UsageBucket",
    "UsageQuery",
    "UsageResult",
    "Why",
    "billed_by_tenant_and_model",
    "find_event",
    "find_request",
    "is_entry",
    "kept_days",
    "last_entry",
    "list_requests",
    "matches_since_yesterday",
    "next_events",
    "organization_page",
    "parse_organization_query",
    "parse_query",
    "parse_request_query",
    "parse_requests_query",
    "parse_stream_query",
    "parse_time",
    "read_left",
    "read_limits",
    "read_running",
    "replica_alias",
    "report",
    "rules_met",
    "whole_left",
    "why",
]
