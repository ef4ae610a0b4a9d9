"""What scripts/account.lua must decide, in exact Python integers and without a thought for speed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

UNIT = 60_000  # parts of a request or token, so that a limit per minute refills whole parts per millisecond


NAMES = ("requests", "tokens", "input", "output")


@dataclass(frozen=True)
class Amounts:
    """What is asked for."""

    tokens: int
    nanousd: int
    input: int = 0
    output: int = 0
    most: int = 0
    key: str = ""


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
    most_tokens: int = 0
    windows: tuple[str, ...] = ()


@dataclass
class Check:
    """A limit of a window: `dimension` 8 counts tokens, others count money; with a `key` it is only that key's."""

    dimension: int
    window: str
    limit: int
    ends_ms: int
    key: str = ""


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
    concurrent_tokens: int | None = None
    checks: list[Check] = field(default_factory=list)
    window_spent: dict[str, int] = field(default_factory=dict)
    window_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return sum(lease.most_tokens for lease in self.leases.values())

    def window_reserved(self, window: str) -> tuple[int, int]:
        """Money and tokens."""
        of = [lease for lease in self.leases.values() if window in lease.windows]
        return sum(lease.nanousd for lease in of), sum(lease.most_tokens for lease in of)

    def step(self, now: int) -> None:
        """Time passes: buckets fill up."""
        self.at = max(self.at, now)
        for name in NAMES:
            if (limit := self.limits.get(name)) is not None:
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

    def renew(self, member: str, lease: Lease) -> None:
        self.leases[member] = replace(lease, expiry=self.at + self.ttl_ms)

    def settle(
        self, member: str, lease: Lease, amounts: Amounts, used: tuple[int, int], at: int, cost: int, never_ran: bool
    ) -> None:
        """`used` are input and output tokens; `at` is when the lease was granted."""
        reserved_at, total = at, sum(used)
        self.leases.pop(member, None)
        self.spent[lease.period] = self.spent.get(lease.period, 0) + cost
        for window in lease.windows:
            self.window_spent[window] = self.window_spent.get(window, 0) + cost
            self.window_tokens[window] = self.window_tokens.get(window, 0) + total
        for name, back in (
            ("tokens", amounts.tokens - total),
            ("input", amounts.input - used[0]),
            ("output", amounts.output - used[1]),
            ("requests", 1 if never_ran else 0),
        ):
            if self.limits.get(name) is not None and (back < 0 or self.buckets[name].full_at <= reserved_at):
                self.buckets[name].level += back * UNIT
                self.cap(name)

    def reserve(self, member: str, ask: Amounts) -> tuple[int, int]:
        """Dimension (0: granted) and how long to wait in ms (-1: in vain)."""
        waits: list[tuple[float, int]] = []
        nanousd = ask.nanousd
        if self.budget is not None:
            spent, reserved = self.spent.get(self.period, 0), self.reserved(self.period)
            if spent + nanousd > self.budget:
                waits.append((float("inf"), 4))
            elif spent + reserved + nanousd > self.budget:
                waits.append((1000, 4))
        for check in self.checks_of(ask):
            reserved_money, reserved_tokens = self.window_reserved(check.window)
            what, used, kept = nanousd, self.window_spent.get(check.window, 0), reserved_money
            if check.dimension == 8:
                what, used, kept = ask.most, self.window_tokens.get(check.window, 0), reserved_tokens
            if what > check.limit:
                waits.append((float("inf"), check.dimension))
            elif used + what > check.limit:
                waits.append((max(1, check.ends_ms - self.at), check.dimension))
            elif used + kept + what > check.limit:
                waits.append((1000, check.dimension))
        if self.concurrent_tokens is not None and self.held + ask.most > self.concurrent_tokens:
            waits.append((float("inf") if ask.most > self.concurrent_tokens else 1000, 7))
        for name, amount, dimension in (
            ("input", ask.input, 5),
            ("output", ask.output, 6),
            ("tokens", ask.tokens, 2),
            ("requests", 1, 1),
        ):
            limit = self.limits.get(name)
            if limit is not None and self.buckets[name].level < amount * UNIT:
                short = amount * UNIT - self.buckets[name].level
                waits.append((-(-short // limit) if limit > 0 and amount <= limit else float("inf"), dimension))
        concurrent = self.limits["concurrent"]
        if concurrent is not None and len(self.leases) >= concurrent:
            waits.append((1000, 3))
        if waits:
            wait, dimension = max(waits, key=lambda entry: entry[0])  # the first of the longest
            return dimension, -1 if wait == float("inf") else int(wait)
        for name, amount in (("input", ask.input), ("output", ask.output), ("tokens", ask.tokens), ("requests", 1)):
            if self.limits.get(name) is not None:
                self.buckets[name].level -= amount * UNIT
        self.leases[member] = self.lease(ask)
        return 0, 0

    @property
    def has_more(self) -> bool:
        more = (self.limits.get("input"), self.limits.get("output"), self.concurrent_tokens)
        return bool(self.checks) or any(limit is not None for limit in more)

    def checks_of(self, ask: Amounts) -> list[Check]:
        return [check for check in self.checks if check.key in ("", ask.key)]

    def lease(self, ask: Amounts) -> Lease:
        """What `ask` gets now if it is granted."""
        windows = tuple(dict.fromkeys(check.window for check in self.checks_of(ask)))
        most = ask.most if self.has_more else 0
        return Lease(self.at + self.ttl_ms, ask.nanousd, self.period, most, windows)

    def remaining(self, name: str) -> int:
        return -1 if self.limits[name] is None else max(0, self.buckets[name].level // UNIT)

    def reset_ms(self, name: str) -> int:
        limit = self.limits[name]
        if limit is None:
            return -1
        return -(-(limit * UNIT - self.buckets[name].level) // limit) if limit else 0
