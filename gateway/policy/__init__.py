"""The documents that SREs edit: `load` reads a directory of YAML and gives `Policies`, or says all that is wrong.

Values are frozen and checked as a whole, so every other room may trust them. Numbers that are money or ratios are exact
decimals. Public ids and hashes of keys may be here, secrets never.
"""

from ._difference import Difference, differences
from ._documents import (
    AlertsSpec,
    ClassSpec,
    ContextSpec,
    DiscoverSpec,
    FleetSpec,
    GpuSpec,
    GroupSpec,
    JournalFailure,
    KeySpec,
    KubernetesSpec,
    LedgerSpec,
    ModelSpec,
    Policies,
    PoolSpec,
    ReplicaSpec,
    RoutingSpec,
    SinkFormat,
    SinkSpec,
    SloSpec,
    StoreFailure,
    StrategyName,
    TagsSpec,
    TenantSpec,
    rank_name,
)
from ._keys import check_public_id, hash_key, looks_like_key, parse_public_id
from ._limits import BudgetPeriod, LimitsSpec, RuleMode, RulesSpec, ScopeLimitsSpec
from ._load import load
from ._numbers import plain
from ._prices import (
    EVERY_MODEL,
    OffPeakSpec,
    PriceSpec,
    PricingSpec,
    Smoothing,
    TenantPriceSpec,
    TierSpec,
)
from ._problems import PolicyError, Problem
from ._rules import check_name, check_origin, check_url
from ._schema import json_schema
from ._scopes import NO_SCOPES, Scope, ScopeKind, Scopes
from ._unmatched import Match, RuleName, Unmatched

__all__ = [
    "EVERY_MODEL",
    "NO_SCOPES",
    "AlertsSpec",
    "BudgetPeriod",
    "ClassSpec",
    "ContextSpec",
    "Difference",
    "DiscoverSpec",
    "Engine",
    "FleetSpec",
    "GpuSpec",
    "GroupSpec",
    "JournalFailure",
    "KeySpec",
    "KubernetesSpec",
    "LedgerSpec",
    "LimitsSpec",
    "Match",
    "ModelSpec",
    "OffPeakSpec",
    "Policies",
    "PolicyError",
    "PoolSpec",
    "PriceSpec",
    "PricingSpec",
    "Problem",
    "ReplicaSpec",
    "RoutingSpec",
    "RuleMode",
    "RuleName",
    "RulesSpec",
    "Scope",
    "ScopeKind",
    "ScopeLimitsSpec",
    "Scopes",
    "SinkFormat",
    "SinkSpec",
    "SloSpec",
    "Smoothing",
    "StoreFailure",
    "StrategyName",
    "TagsSpec",
    "TenantPriceSpec",
    "TenantSpec",
    "TierSpec",
    "Unmatched",
    "check_name",
    "check_origin",
    "check_public_id",
    "check_url",
    "differences",
    "hash_key",
    "json_schema",
    "load",
    "looks_like_key",
    "parse_public_id",
    "plain",
    "rank_name",
]
