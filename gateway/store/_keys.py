"""Key names. Everything of a tenant carries the hash tag `{tenant}`, so a tenant lives in one slot of a cluster."""

from __future__ import annotations

from typing import Final, Literal

BucketSize = Literal["1m", "1h", "1d"]

BUCKET_SECONDS: Final[dict[BucketSize, int]] = {"1m": 60, "1h": 3600, "1d": 86_400}


SINK_LEASE: Final = "mtok:sink:lease"
"""Who pushes events to the sink, for the whole fleet: a hash (see scripts/lease.lua)."""

SINK_PARKED: Final = "mtok:sink:parked"
"""The events the sink refused: a stream of tenant, entry and status."""


SALT_SEED: Final = "mtok:salt-seed"
"""What the salts of tenants' caches are made with: 32 random bytes, made once."""

SHARED_PREFIX: Final = "mtok:shared:"
"""What tenants share: scopes and windows of their limits, whose names begin with "@" (see scripts/account.lua)."""

SHARED_DUE: Final = SHARED_PREFIX + "due"
"""Zset: tenants that hold something of a shared scope, scored by when their first lease ends in Unix milliseconds."""


class TenantKeys:
    """The names of one tenant's keys.

    limits    hash    the token buckets of requests/min and tokens/min (see scripts/account.lua)
    leases    zset    one entry per running request, scored by its expiry in Unix milliseconds
    events    stream  usage events: "event" as JSON, "from" as <producer>:<number>, unique
    producer  string  number of the last record of one journal that was booked
    budget    hash    `spent` and `reserved` nano-dollars of one period
    window    hash    `spent`, `reserved` nano-dollars and `tokens`, `tokens_reserved` of one period of a further limit
    scope     hash    the buckets of a scope beside the tenant itself, and what runs of it
    sink      hash    how far its events have been pushed (see scripts/sink.lua)
    usage     hash    sums of one minute, hour or day, fields `model|key|metric`
    """

    __slots__ = (
        "_budget",
        "_producer",
        "_usage",
        "budget_prefix",
        "events",
        "leases",
        "limits",
        "sink",
        "window_prefix",
    )

    def __init__(self, tenant: str) -> None:
        assert tenant, "a tenant has a name"
        assert "{" not in tenant, "braces would change the hash tag"
        assert "}" not in tenant, "braces would change the hash tag"
        prefix = f"mtok:{{{tenant}}}:"
        self.limits = prefix + "limits"
        self.leases = prefix + "leases"
        self.events = prefix + "events"
        self.sink = prefix + "sink"
        self._producer = prefix + "producer:"
        self.budget_prefix = prefix + "budget:"
        self.window_prefix = prefix + "window:"
        self._usage = prefix + "usage:"

    def producer(self, producer: str) -> str:
        """The last record of the journal named `producer`."""
        return self._producer + producer

    def budget(self, period: str) -> str:
        """Money of one period, such as `month:2026-10`."""
        return self.budget_prefix + period

    def window(self, name: str) -> str:
        """Money and tokens of one period, such as `day:2026-10-03`, for the limits beside the budget. One that tenants
        share, whose name begins with "@", is not the tenant's own; as the script has it."""
        return f"{SHARED_PREFIX}window:{name}" if name.startswith("@") else self.window_prefix + name

    def scope(self, name: str) -> str:
        """The state of a scope of this name, the tenant's own or shared as with windows; empty: the tenant itself."""
        if not name:
            return self.limits
        return f"{SHARED_PREFIX}scope:{name}" if name.startswith("@") else f"{self.limits}:{name}"

    def usage(self, size: BucketSize, start_s: int) -> str:
        """Sums of the bucket that starts at `start_s` (Unix seconds, a multiple of its size)."""
        assert start_s % BUCKET_SECONDS[size] == 0, "buckets start at multiples of their size"
        return f"{self._usage}{size}:{start_s}"


class ReplicaKeys:
    """The names of what is known of one replica, which all gateways share. The hash tag cannot be a tenant's: a
    tenant's name holds no colon.

    lease   string  who reads the replica's counters now
    last    hash    the last reading of its counters, and when
    sent    hash    per gateway worker: requests it has sent there, and since when its oldest one runs
    engine  hash    what the counters added in one minute (see scripts/engine.lua)
    gpu     hash    when its GPUs were there, at which price (see scripts/gpu.lua)
    left    hash    while it drains, per gateway worker: requests it has there yet, and when it said so
    """

    __slots__ = ("_engine", "gpu", "last", "lease", "left", "sent")

    def __init__(self, replica: str) -> None:
        assert replica, "a replica has a name"
        assert "}" not in replica, "braces would change the hash tag"
        prefix = f"mtok:{{replica:{replica}}}:"
        self.lease = prefix + "lease"
        self.last = prefix + "last"
        self.sent = prefix + "sent"
        self.gpu = prefix + "gpu"
        self.left = prefix + "left"
        self._engine = prefix + "engine:"

    def engine(self, minute_s: int) -> str:
        """What the minute that starts at `minute_s` added."""
        assert minute_s % BUCKET_SECONDS["1m"] == 0
        return f"{self._engine}{minute_s}"


class ModelKeys:
    """The names of what gateway workers share about one model (see scripts/share.lua). The hash tag cannot be a
    tenant's: a tenant's name holds no colon.

    gateways  hash    per worker: when it was last heard, what it told and what it was granted
    given     stream  what each has given tenants lately
    knee      hash    the replicas' limits, and which worker adapts them
    """

    __slots__ = ("gateways", "given", "knee")

    def __init__(self, model: str) -> None:
        assert model, "a model has a name"
        assert "}" not in model, "braces would change the hash tag"
        prefix = f"mtok:{{model:{model}}}:"
        self.gateways = prefix + "gateways"
        self.given = prefix + "given"
        self.knee = prefix + "knee"


PLACED: Final = "mtok:{routing}:placed"
"""Stream: by (a worker), told: which prompts it has sent where (MessagePack: `gateway.routing.Placed`)."""
HELD: Final = "mtok:{routing}:held"
"""Stream: by (a worker), told: what it has in flight at the replicas (`gateway.routing.Held`)."""
REPLICAS: Final = "mtok:replicas"
"""Set: every replica whose counters have been read."""
DRAINING: Final = "mtok:draining"
"""Hash: by replica, since when it drains and when what runs there is cut (`gateway.draining.Mark`)."""
TENANTS: Final = "mtok:tenants"
"""Set: every tenant that policies have named."""
PRICE_BOOK: Final = "mtok:prices"
"""Hash: field "<epoch>|<model>", the prices as JSON. Written once each, never changed."""
PRICE_EPOCHS: Final = "mtok:price:epochs"
"""Hash: field the epoch's name, what was measured for it and the live prices that follow, as JSON. Written once each,
never changed."""
PRICE_LEASE: Final = "mtok:price:lease"
"""Hash: which worker makes the next epoch's prices and counts the GPUs' hours (see scripts/lease.lua)."""
GPU_REPLICAS: Final = "mtok:gpu:replicas"
"""Set: every replica whose GPU hours have been counted."""
RULES_TOLD: Final = "mtok:rules:told"
"""String: since when no other worker tells which rules of the policies nothing matches."""


def alert_told(scope: str, of: str, dimension: str, period: str, threshold: int) -> str:
    """String: that somebody has told of this threshold of a limit, in this period or lately."""
    return f"mtok:alert:{scope}:{of}:{dimension}:{period}:{threshold}"


AUDIT_LEASE: Final = "mtok:audit:lease"
"""String: which worker holds the ledger against the engines' counters."""
