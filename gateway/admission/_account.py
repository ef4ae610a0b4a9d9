"""All tenants' accounts in memory: decides what `store/scripts/account.lua` decides, in the same whole numbers.

For whoever asks what policies would have done, where a million asks go through two of them and none is real. What is
real is decided by the script alone; a test asks both the same things. There is one gateway here, which does not die: no
lease runs out and nothing is renewed, sent again or let go of.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from math import inf

import msgspec

from gateway.policy import LimitsSpec, RulesSpec, Scope, TenantSpec
from gateway.pricing import nanousd_of_usd

from ._periods import Period, PeriodKind, period_at
from ._values import Ask, Dimension

_Used = Callable[[Period], tuple[int, int]]

UNIT = 60_000
"""Parts of a request or token, so that a limit per minute refills whole parts per millisecond."""

RETRY_SOON_MS = 1000
"""When a running request will end is not known."""

_MOST = 2**53 - 1
_PER_MINUTE_MOST = 10**10
"""Higher limits are taken for these: the script's numbers are doubles."""


class Held(msgspec.Struct, gc=False):
    """What an admitted request holds until it is settled. `audited` are limits that would have refused it, and whose
    they are."""

    ask: Ask
    at_ms: int
    accounts: tuple[_Account, ...]
    sums: tuple[_Sums, ...]
    audited: tuple[Refusing, ...] = ()


class Refusing(msgspec.Struct, frozen=True, gc=False):
    """The limit that refuses: of several the one that takes longest. `scope` is whose it is, empty for the tenant's."""

    dimension: Dimension
    scope: str


class _Sums(msgspec.Struct, gc=False):
    """What one window, an hour, a day, a month, has used and what running requests have reserved of it."""

    spent: int = 0
    reserved: int = 0
    tokens: int = 0
    tokens_reserved: int = 0


class _Window(msgspec.Struct, gc=False):
    dimension: Dimension
    limit: int
    counts_tokens: bool
    ends_ms: float
    sums: _Sums

    def wait_ms(self, ask: Ask, now_ms: int) -> float:
        """How long it makes it wait; inf: waiting does not help."""
        sums = self.sums
        if self.counts_tokens:
            asked, used, reserved = ask.most_tokens, sums.tokens, sums.tokens_reserved
        else:
            asked, used, reserved = ask.nanousd, sums.spent, sums.reserved
        if used + reserved + asked <= self.limit:
            return 0
        if asked > self.limit:
            return inf
        return max(1, self.ends_ms - now_ms) if used + asked > self.limit else RETRY_SOON_MS


class _Bucket(msgspec.Struct, gc=False):
    """A limit per minute. `full_at_ms` is when it was full last: what was taken before is not given back, since the
    refill has made up for it. `counts` says which of an ask's amounts, in the order of `_amounts`."""

    dimension: Dimension
    counts: int
    limit: int
    capacity: int
    level: int
    at_ms: int = 0
    full_at_ms: int = 0

    def refill(self, now_ms: int) -> None:
        self.level += (now_ms - self.at_ms) * self.limit
        self.at_ms = now_ms
        self.cap()

    def cap(self) -> None:
        if self.level >= self.capacity:
            self.level = self.capacity
            self.full_at_ms = self.at_ms

    def wait_ms(self, amount: int, now_ms: int) -> float:
        """How long until it holds so much; inf: never."""
        level = self.level + (now_ms - self.at_ms) * self.limit
        if level >= self.capacity:
            level = self.capacity
            self.full_at_ms = now_ms
        self.level, self.at_ms = level, now_ms
        short = amount * UNIT - level
        if short <= 0:
            return 0
        return inf if amount > self.limit or not self.limit else -(-short // self.limit)


def _amounts(ask: Ask) -> tuple[int, int, int, int]:
    return ask.input_tokens, ask.output_tokens, ask.tokens, 1


class _Account:
    """What one scope limits: a tenant itself, one of its keys, or what it shares with others."""

    def __init__(self, limits: RulesSpec, *, label: str, time_zone: str, used: _Used) -> None:
        self.label = label
        self.running = 0
        self.held_tokens = 0
        self.paying: tuple[_Sums, ...] = ()
        self._concurrent_requests = limits.concurrent_requests
        self._concurrent_tokens = None if limits.concurrent_tokens is None else min(_MOST, limits.concurrent_tokens)
        self._time_zone = time_zone
        self._used = used
        per_minute: tuple[tuple[Dimension, int | None], ...] = (
            ("input_tokens_per_minute", limits.input_tokens_per_minute),
            ("output_tokens_per_minute", limits.output_tokens_per_minute),
            ("tokens_per_minute", limits.tokens_per_minute),
            ("requests_per_minute", limits.requests_per_minute),
        )
        self._buckets = [
            _Bucket(name, counts, most := min(_PER_MINUTE_MOST, limit), most * UNIT, most * UNIT)
            for counts, (name, limit) in enumerate(per_minute)
            if limit is not None
        ]
        self._limits = list(_windows_of(limits))
        self._windows: list[_Window] = []
        self._until_ms: float = -inf if self._limits else inf
        self._sums: dict[str, _Sums] = {}

    def refused_by(self, ask: Ask, now_ms: int) -> tuple[float, Dimension | None]:
        """How long its limits make `ask` wait, and the one that does so longest; 0 and None: not at all."""
        if now_ms >= self._until_ms:
            self._turn(now_ms)
        longest: float = 0
        refused: Dimension | None = None
        for window in self._windows:
            wait_ms = window.wait_ms(ask, now_ms)
            if wait_ms > longest:
                longest, refused = wait_ms, window.dimension
        most = self._concurrent_tokens
        if most is not None and self.held_tokens + ask.most_tokens > most:
            wait_ms = inf if ask.most_tokens > most else RETRY_SOON_MS
            if wait_ms > longest:
                longest, refused = wait_ms, "concurrent_tokens"
        amounts = _amounts(ask)
        for bucket in self._buckets:
            wait_ms = bucket.wait_ms(amounts[bucket.counts], now_ms)
            if wait_ms > longest:
                longest, refused = wait_ms, bucket.dimension
        concurrent = self._concurrent_requests
        if concurrent is not None and self.running >= concurrent and longest < RETRY_SOON_MS:
            longest, refused = RETRY_SOON_MS, "concurrent_requests"
        return longest, refused

    def take(self, ask: Ask) -> None:
        """What `ask` asks for is taken."""
        amounts = _amounts(ask)
        for bucket in self._buckets:
            bucket.level -= amounts[bucket.counts] * UNIT
        for sums in self.paying:
            sums.reserved += ask.nanousd
            sums.tokens_reserved += ask.most_tokens
        self.running += 1
        self.held_tokens += ask.most_tokens

    def give_back(self, ask: Ask, used: tuple[int, int, int, int], taken_at_ms: int, now_ms: int) -> None:
        """It ended, having used so much of `_amounts`."""
        amounts = _amounts(ask)
        for bucket in self._buckets:
            bucket.refill(now_ms)
            back = amounts[bucket.counts] - used[bucket.counts]
            if back < 0 or bucket.full_at_ms <= taken_at_ms:
                bucket.level += back * UNIT
                bucket.cap()
        self.running -= 1
        self.held_tokens -= ask.most_tokens

    def _turn(self, now_ms: int) -> None:
        """Another hour, day or month has begun."""
        self._windows = []
        self._until_ms = inf
        for dimension, kind, limit in self._limits:
            period = period_at(kind, now_ms // 1000, self._time_zone)
            ends_ms = float(period.end_s * 1000)
            is_budget = dimension == "budget_usd"
            # The budget's sums are kept apart from those of a window of the same period.
            name = f"{'budget ' if is_budget else ''}{period.name}"
            sums = self._sums.get(name)
            if sums is None:
                tokens, nanousd = self._used(period)
                sums = self._sums[name] = _Sums(spent=nanousd, tokens=tokens)
            self._windows.append(
                _Window(dimension, limit, dimension == "tokens_per_day", inf if is_budget else ends_ms, sums)
            )
            self._until_ms = min(self._until_ms, ends_ms)
        self.paying = tuple({id(window.sums): window.sums for window in self._windows}.values())


class Accounts:
    """Decides for one set of policies; no clock and no I/O. `now_ms` (Unix) never goes back."""

    def __init__(self, used: Callable[[str, Scope | None, Period], tuple[int, int]] | None = None) -> None:
        """Buckets are full. `used` tells the tokens and nano-dollars that a scope, or a tenant itself (None), had used
        of a period before the first ask; without it nothing is spent."""
        self._used = used or (lambda _tenant, _scope, _period: (0, 0))
        self._accounts: dict[tuple[str, str], _Account] = {}

    def ask(self, tenant: TenantSpec, scopes: tuple[Scope, ...], ask: Ask, now_ms: int) -> Held | Refusing:
        """May this request run, by its tenant's limits and those of `scopes`? All that it asks for is taken, or
        nothing. What is audited and would have refused is not taken from; what is soft refuses nothing, and is not kept
        here."""
        own = self._accounts.get((tenant.name, ""))
        if own is None:
            own = self._accounts[tenant.name, ""] = _Account(
                tenant.limits,
                label="",
                time_zone=tenant.limits.time_zone,
                used=partial(self._used, tenant.name, None),
            )
        longest, dimension = own.refused_by(ask, now_ms)
        if not scopes:
            if dimension is not None:
                return Refusing(dimension, "")
            own.take(ask)
            return Held(ask, now_ms, (own,), own.paying)
        refusing = own
        taken = [own]
        audited: list[Refusing] = []
        for scope in scopes:
            if scope.mode == "soft":
                continue
            account = self._account(tenant.name, scope)
            wait_ms, by = account.refused_by(ask, now_ms)
            if scope.mode == "audit" and by is not None:
                audited.append(Refusing(by, account.label))
                continue
            taken.append(account)
            if wait_ms > longest:
                longest, dimension, refusing = wait_ms, by, account
        if dimension is not None:
            return Refusing(dimension, refusing.label)
        for account in taken:
            account.take(ask)
        sums = tuple(sums for account in taken for sums in account.paying)
        return Held(ask, now_ms, tuple(taken), sums, tuple(audited))

    def settle(
        self, held: Held, *, input_tokens: int, output_tokens: int, nanousd: int, ran: bool, now_ms: int
    ) -> None:
        """It has ended, having used this; one that never `ran` counts against requests per minute no longer."""
        ask = held.ask
        tokens = input_tokens + output_tokens
        used = (input_tokens, output_tokens, tokens, int(ran))
        for account in held.accounts:
            account.give_back(ask, used, held.at_ms, now_ms)
        for sums in held.sums:
            sums.reserved -= ask.nanousd
            sums.tokens_reserved -= ask.most_tokens
            sums.spent += nanousd
            sums.tokens += tokens

    def _account(self, tenant: str, scope: Scope) -> _Account:
        name = ("" if scope.is_shared else tenant, scope.name)
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account(
                scope.limits,
                label=scope.label,
                time_zone=scope.time_zone,
                used=partial(self._used, tenant, scope),
            )
        return account


def _windows_of(limits: RulesSpec) -> list[tuple[Dimension, PeriodKind, int]]:
    """In the order in which they refuse."""
    windows: list[tuple[Dimension, PeriodKind, int]] = []
    if isinstance(limits, LimitsSpec) and limits.budget_usd is not None:
        windows.append(("budget_usd", limits.budget_period, nanousd_of_usd(limits.budget_usd)))
    if limits.tokens_per_day is not None:
        windows.append(("tokens_per_day", "day", min(_MOST, limits.tokens_per_day)))
    dollars: tuple[tuple[Dimension, PeriodKind, Decimal | None], ...] = (
        ("usd_per_hour", "hour", limits.usd_per_hour),
        ("usd_per_day", "day", limits.usd_per_day),
        ("usd_per_month", "month", limits.usd_per_month),
    )
    windows += [(name, kind, nanousd_of_usd(usd)) for name, kind, usd in dollars if usd is not None]
    return windows
