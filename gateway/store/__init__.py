"""Redis: one coalescing client, Lua scripts with their Python faces, key names, the embedded server.

Everything of a tenant lives under keys tagged `{tenant}`, and one script call touches one tenant, so the same code runs
on one server and on a cluster. Nothing here knows what a request is: callers bring numbers and get numbers back.
"""

from ._account import (
    CALL_MAX,
    DIMENSIONS,
    EXACT_MAX,
    PER_MINUTE_MAX,
    AccountLimits,
    AccountReply,
    AskPart,
    Booking,
    Mode,
    Release,
    ScopeLimits,
    Settlement,
    UsageSums,
    Verdict,
    Window,
    account_call,
    account_reply,
)
from ._coalescer import Call, Caller, Coalescer
from ._connect import StoreSettings, client, connect
from ._durable import durable
from ._embedded import embedded
from ._errors import EmbeddedStoreFailed, StoreUnavailable
from ._keys import (
    AUDIT_LEASE,
    BUCKET_SECONDS,
    HELD,
    PLACED,
    PRICE_BOOK,
    REPLICAS,
    RULES_TOLD,
    SHARED_DUE,
    SINK_LEASE,
    SINK_PARKED,
    TENANTS,
    BucketSize,
    ModelKeys,
    ReplicaKeys,
    TenantKeys,
    alert_told,
)
from ._scripts import Script, load_script
from ._secret import cache_secret
from ._share import Granted, Growth, Limited, ShareReply, Wanted, packed_growth, share_call, share_reply, total_growth
from ._tasks import end_tasks

__all__ = [
    "AUDIT_LEASE",
    "BUCKET_SECONDS",
    "CALL_MAX",
    "DIMENSIONS",
    "EXACT_MAX",
    "HELD",
    "PER_MINUTE_MAX",
    "PLACED",
    "PRICE_BOOK",
    "REPLICAS",
    "RULES_TOLD",
    "SHARED_DUE",
    "SINK_LEASE",
    "SINK_PARKED",
    "TENANTS",
    "AccountLimits",
    "AccountReply",
    "AskPart",
    "Booking",
    "BucketSize",
    "Call",
    "Caller",
    "Coalescer",
    "EmbeddedStoreFailed",
    "Granted",
    "Growth",
    "Limited",
    "Mode",
    "ModelKeys",
    "Release",
    "ReplicaKeys",
    "ScopeLimits",
    "Script",
    "Settlement",
    "ShareReply",
    "StoreSettings",
    "StoreUnavailable",
    "TenantKeys",
    "UsageSums",
    "Verdict",
    "Wanted",
    "Window",
    "account_call",
    "account_reply",
    "alert_told",
    "cache_secret",
    "client",
    "connect",
    "durable",
    "embedded",
    "end_tasks",
    "load_script",
    "packed_growth",
    "share_call",
    "share_reply",
    "total_growth",
]
