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
    scopes: tuple[str, ...] = ()
    is_slice: bool = False


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
    scopes: tuple[str, ...] = ()
    is_slice: bool = False


@dataclass
class Check:
    """A limit of a window: `dimension` 8 counts tokens, others count money."""

    dimension: int
    window: str
    limit: int
    ends_ms: int


@dataclass
class Scope:
    """What limits are of. `mode` 0 refuses, 1 only tells how much is used, 2 only that it would have refused."""

    limits: dict[str, int | None]
    name: str = ""
    mode: int = 0
    concurrent_tokens: int | None = None
    checks: list[Check] = field(default_factory=list)
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def step(self, at: int) -> None:
        """Time passes: buckets fill up."""
        for name in NAMES:
            if (limit := self.limits.get(name)) is not None:
                bucket = self.buckets.setdefault(name, Bucket(limit * UNIT, at, at))
                bucket.level += (at - bucket.at) * limit
                bucket.at = at
                self.cap(name)

    def cap(self, name: str) -> None:
        limit = self.limits[name]
        bucket = self.buckets[name]
        if limit is not None and bucket.level >= limit * UNIT:
            bucket.level, bucket.full_at = limit * UNIT, bucket.at

    def give_back(self, name: str, back: int, reserved_at: int) -> None:
        if self.limits.get(name) is not None and (back < 0 or self.buckets[name].full_at <= reserved_at):
            self.buckets[name].level += back * UNIT
            self.cap(name)

    def take(self, ask: Amounts) -> None:
        places = 0 if ask.is_slice else 1
        for name, amount in (
            ("input", ask.input),
            ("output", ask.output),
            ("tokens", ask.tokens),
            ("requests", places),
        ):
            limit = self.limits.get(name)
            if limit is not None:
                self.buckets[name].level -= amount * UNIT
                if self.mode == 1:
                    self.buckets[name].level = max(self.buckets[name].level, -limit * UNIT)

    @property
    def has_state(self) -> bool:
        return self.concurrent_tokens is not None or any(limit is not None for limit in self.limits.values())

    @property
    def has_more(self) -> bool:
        more = (self.limits.get("input"), self.limits.get("output"), self.concurrent_tokens)
        return bool(self.checks) or any(limit is not None for limit in more)

    def remaining(self, name: str) -> int:
        return -1 if self.limits[name] is None else max(0, self.buckets[name].level // UNIT)

    def reset_ms(self, name: str) -> int:
        limit = self.limits[name]
        if limit is None:
            return -1
        return -(-(limit * UNIT - self.buckets[name].level) // limit) if limit else 0


@dataclass
class Model(Scope):
    """One tenant's account. Limits and the period are attributes, so that a test can change them between calls."""

    budget: int | None = None
    period: str = ""
    ttl_ms: int = 0
    at: int = 0
    others: dict[str, Scope] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    window_spent: dict[str, int] = field(default_factory=dict)
    window_tokens: dict[str, int] = field(default_factory=dict)

    def held(self, scope: str = "") -> int:
        return sum(lease.most_tokens for lease in self.leases.values() if scope in ("", *lease.scopes))

    def running(self, scope: str = "") -> int:
        return sum(not lease.is_slice for lease in self.leases.values() if scope in ("", *lease.scopes))

    def window_reserved(self, window: str) -> tuple[int, int]:
        """Money and tokens."""
        of = [lease for lease in self.leases.values() if window in lease.windows]
        return sum(lease.nanousd for lease in of), sum(lease.most_tokens for lease in of)

    def pass_time(self, now: int) -> None:
        self.at = max(self.at, now)
        for scope in (self, *self.others.values()):
            scope.step(self.at)

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
        for scope in (self, *(self.others[name] for name in lease.scopes if name in self.others)):
            scope.give_back("tokens", amounts.tokens - total, reserved_at)
            scope.give_back("input", amounts.input - used[0], reserved_at)
            scope.give_back("output", amounts.output - used[1], reserved_at)
            if never_ran:
                scope.give_back("requests", 1, reserved_at)

    def waits(self, scope: Scope, ask: Amounts) -> list[tuple[float, int]]:
        """How long each limit of the scope makes it wait that it does not keep, and that limit's dimension."""
        waits: list[tuple[float, int]] = []
        nanousd = ask.nanousd
        if scope is self and self.budget is not None:
            spent, reserved = self.spent.get(self.period, 0), self.reserved(self.period)
            if spent + nanousd > self.budget:
                waits.append((float("inf"), 4))
            elif spent + reserved + nanousd > self.budget:
                waits.append((1000, 4))
        for check in scope.checks:
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
        most = scope.concurrent_tokens
        if most is not None and self.held(scope.name) + ask.most > most:
            waits.append((float("inf") if ask.most > most else 1000, 7))
        for name, amount, dimension in (
            ("input", ask.input, 5),
            ("output", ask.output, 6),
            ("tokens", ask.tokens, 2),
            ("requests", 1, 1),
        ):
            limit = scope.limits.get(name)
            if ask.is_slice:
                continue
            if limit is not None and scope.buckets[name].level < amount * UNIT:
                short = amount * UNIT - scope.buckets[name].level
                waits.append((-(-short // limit) if limit > 0 and amount <= limit else float("inf"), dimension))
        concurrent = scope.limits.get("concurrent")
        if not ask.is_slice and concurrent is not None and self.running(scope.name) >= concurrent:
            waits.append((1000, 3))
        return waits

    def reserve(self, member: str, ask: Amounts) -> tuple[int, int, str]:
        """Dimension (0: granted), how long to wait in ms (-1: in vain), and whose limit it is."""
        met = [self.others[name] for name in ask.scopes]
        refused = [
            (wait, dimension, scope.name)
            for scope in (self, *(scope for scope in met if scope.mode == 0))
            for wait, dimension in self.waits(scope, ask)
        ]
        if refused:
            wait, dimension, name = max(refused, key=lambda entry: entry[0])  # the first of the longest
            return dimension, -1 if wait == float("inf") else int(wait), name
        taken = [scope for scope in met if scope.mode != 2 or not self.waits(scope, ask)]
        for scope in (self, *taken):
            scope.take(ask)
        self.leases[member] = self.lease(ask, taken)
        return 0, 0, ""

    def lease(self, ask: Amounts, taken: list[Scope] | None = None) -> Lease:
        """What `ask` gets now if it is granted, by all its scopes or those `taken` from."""
        of = [self.others[name] for name in ask.scopes] if taken is None else taken
        windows = tuple(dict.fromkeys(check.window for scope in (self, *of) for check in scope.checks))
        most = ask.most if self.has_more or ask.scopes else 0
        names = tuple(scope.name for scope in of if scope.has_state)
        return Lease(self.at + self.ttl_ms, ask.nanousd, self.period, most, windows, names, ask.is_slice)

    def tightest(self, name: str, ask: Amounts) -> Scope:
        """Whose requests or tokens per minute are told: the least left of what refuses."""
        tightest: Scope = self
        for scope in (self.others[of] for of in ask.scopes):
            if scope.mode != 0 or scope.limits.get(name) is None:
                continue
            if tightest.limits.get(name) is None or scope.remaining(name) < tightest.remaining(name):
                tightest = scope
        return tightest
