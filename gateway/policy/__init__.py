"""The documents that SREs edit: `load` reads a directory of YAML and gives `Policies`, or says all that is wrong.

Values are frozen and checked as a whole, so every other room may trust them. Numbers that are money or ratios are exact
decimals. Public ids and hashes of keys may be here, secrets never.
"""

from ._difference import Difference, differences
from ._documents import (
    BudgetPeriod,
    ClassSpec,
    ContextSpec,
    Engine,
    GpuSpec,
    JournalFailure,
    KeyLimitsSpec,
    KeySpec,
    LedgerSpec,
    LimitsSpec,
    ModelSpec,
    Policies,
    PriceSpec,
    ReplicaSpec,
    SinkFormat,
    SinkSpec,
    SloSpec,
    StoreFailure,
    TagsSpec,
    TenantSpec,
)
from ._keys import check_public_id, hash_key, looks_like_key, parse_public_id
from ._load import load
from ._problems import PolicyError, Problem
from ._rules import check_name
from ._schema import json_schema

__all__ = [
    "BudgetPeriod",
    "ClassSpec",
    "ContextSpec",
    "Difference",
    "Engine",
    "GpuSpec",
    "JournalFailure",
    "KeyLimitsSpec",
    "KeySpec",
    "LedgerSpec",
    "LimitsSpec",
    "ModelSpec",
    "Policies",
    "PolicyError",
    "PriceSpec",
    "Problem",
    "ReplicaSpec",
    "SinkFormat",
    "SinkSpec",
    "SloSpec",
    "StoreFailure",
    "TagsSpec",
    "TenantSpec",
    "check_name",
    "check_public_id",
    "differences",
    "hash_key",
    "json_schema",
    "load",
    "looks_like_key",
    "parse_public_id",
]
