"""What scripts/account.lua must decide, in exact Python integers and without a thought for speed."""

from __future__ import annotations

from dataclasses import dataclass, field

UNIT = 60_000  # parts of a request or token, so that a limit per minute refills whole parts per millisecond


@dataclass
class Bucket:
    level: int
    at: int
    full_at: int


@dataclass
class Lease:
    expiry: int
    nanousd: int
    period: str


@dataclass
class Model:
    """One tenant's account. Limits and the period are attributes, so that a test can change them between calls."""

    limits: dict[str, int | None]
    budget: int | None
    period: str
    ttl_ms: int
    at: int = 0
    buckets: dict[str, Bucket] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)

    def step(self, now: int) -> None:
        """Time passes: buckets fill up."""
        self.at = max(self.at, now)
        for name in ("requests", "tokens"):
            if (limit := self.limits[name]) is not None:
                bucket = self.buckets.setdefault(name, Bucket(limit * UNIT, self.at, self.at))
                bucket.level += (self.at - bucket.at) * limit
                bucket.at = self.at
                self.cap(name)

    def cap(self, name: str) -> None:
        limit = self.limits[name]
        bucket = self.buckets[name]
        if limit is not None and bucket.level >= limit * UNIT:
            bucket.level, bucket.full_at = limit * UNIT, self.at

    def reserved(self, period: str) -> int:
        return sum(lease.nanousd for lease in self.leases.values() if lease.period == period)

    def forget_expired(self) -> None:
        self.leases = {member: lease for member, lease in self.leases.items() if lease.expiry > self.at}

    def renew(self, member: str, nanousd: int, period: str) -> None:
        self.leases[member] = Lease(self.at + self.ttl_ms, nanousd, period)

    def settle(
        self, member: str, period: str, reserved: int, used: int, reserved_at: int, cost: int, never_ran: bool
    ) -> None:
        self.leases.pop(member, None)
        self.spent[period] = self.spent.get(period, 0) + cost
        for name, back in (("tokens", reserved - used), ("requests", 1 if never_ran else 0)):
            if self.limits[name] is not None and (back < 0 or self.buckets[name].full_at <= reserved_at):
                self.buckets[name].level += back * UNIT
                self.cap(name)

    def reserve(self, member: str, tokens: int, nanousd: int) -> tuple[int, int]:
        """Dimension (0: granted) and how long to wait in ms (-1: in vain)."""
        waits: list[tuple[float, int]] = []
        if self.budget is not None:
            spent, reserved = self.spent.get(self.period, 0), self.reserved(self.period)
            if spent + nanousd > self.budget:
                waits.append((float("inf"), 4))
            elif spent + reserved + nanousd > self.budget:
                waits.append((1000, 4))
        for name, amount, dimension in (("tokens", tokens, 2), ("requests", 1, 1)):
            limit = self.limits[name]
            if limit is not None and self.buckets[name].level < amount * UNIT:
                short = amount * UNIT - self.buckets[name].level
                waits.append((-(-short // limit) if limit > 0 and amount <= limit else float("inf"), dimension))
        concurrent = self.limits["concurrent"]
        if concurrent is not None and len(self.leases) >= concurrent:
            waits.append((1000, 3))
        if waits:
            wait, dimension = max(waits, key=lambda entry: entry[0])  # the first of the longest
            return dimension, -1 if wait == float("inf") else int(wait)
        for name, amount in (("tokens", tokens), ("requests", 1)):
            if self.limits[name] is not None:
                self.buckets[name].level -= amount * UNIT
        self.leases[member] = Lease(self.at + self.ttl_ms, nanousd, self.period)
        return 0, 0

    def remaining(self, name: str) -> int:
        return -1 if self.limits[name] is None else max(0, self.buckets[name].level // UNIT)

    def reset_ms(self, name: str) -> int:
        limit = self.limits[name]
        if limit is None:
            return -1
        return -(-(limit * UNIT - self.buckets[name].level) // limit) if limit else 0
