"""What came of the arrivals under one set of policies."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A median and a 99th percentile, in milliseconds; None of nothing."""

    p50_ms: float | None
    p99_ms: float | None


class TenantOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's, or everybody's together. `refused` is by what refused it: a limit, or a code that clients see;
    `audited` are those that an audited limit would have refused.

    `wait` is that of those who ran, from arrival to dispatch, `ttft` from arrival to the first token, `itl` each
    answer's mean time between tokens. `cost_nanousd` is by the prices of these policies.
    """

    requests: int
    served: int
    refused: dict[str, int]
    audited: dict[str, int]
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    cost_nanousd: int
    wait: Spread
    ttft: Spread
    itl: Spread


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of one replay; `tenants` in the order of their names."""

    total: TenantOutcome
    tenants: dict[str, TenantOutcome]


class Tally:
    """What is counted of one tenant while a replay runs."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.audited: Counter[str] = Counter()
        self.input_tokens = 0
        self.input_cached_tokens = 0
        self.output_tokens = 0
        self.cost_nanousd = 0
        self.waits_ms = array("f")
        self.ttfts_ms = array("f")
        self.itls_ms = array("f")

    def add(self, other: Tally) -> None:
        """Counts what `other` has counted too."""
        self.refused.update(other.refused)
        self.audited.update(other.audited)
        self.input_tokens += other.input_tokens
        self.input_cached_tokens += other.input_cached_tokens
        self.output_tokens += other.output_tokens
        self.cost_nanousd += other.cost_nanousd
        self.waits_ms += other.waits_ms
        self.ttfts_ms += other.ttfts_ms
        self.itls_ms += other.itls_ms

    def outcome(self) -> TenantOutcome:
        """All of it."""
        served, refused = len(self.waits_ms), self.refused.total()
        return TenantOutcome(
            requests=served + refused,
            served=served,
            refused=dict(sorted(self.refused.items())),
            audited=dict(sorted(self.audited.items())),
            input_tokens=self.input_tokens,
            input_cached_tokens=self.input_cached_tokens,
            output_tokens=self.output_tokens,
            cost_nanousd=self.cost_nanousd,
            wait=_spread(self.waits_ms),
            ttft=_spread(self.ttfts_ms),
            itl=_spread(self.itls_ms),
        )


def outcome_of(tallies: dict[str, Tally]) -> Outcome:
    """By tenant, and all of them together."""
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    return Outcome(total=total.outcome(), tenants={tenant: tallies[tenant].outcome() for tenant in sorted(tallies)})


def _spread(values_ms: Sequence[float]) -> Spread:
    if not values_ms:
        return Spread(p50_ms=None, p99_ms=None)
    ordered = sorted(values_ms)
    p50_ms, p99_ms = (round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 1) for part in (0.5, 0.99))
    return Spread(p50_ms=p50_ms, p99_ms=p99_ms)
