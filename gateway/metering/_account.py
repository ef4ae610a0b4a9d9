"""One tenant's account as this worker sees it: what waits to be asked, renewed and booked in one script call.

No clock and no Redis: the coalescer takes a call when its batch leaves and brings the answer. Bookings leave in order
and one at a time. One that got no answer is sent again as it was, with its sequence number, so that it is booked once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from gateway.admission import Ask, Denial, Grant, Lease, Period, Standing, period_at
from gateway.policy import LimitsSpec
from gateway.pricing import nanousd_of_usd
from gateway.store import (
    CALL_MAX,
    DIMENSIONS,
    EXACT_MAX,
    PER_MINUTE_MAX,
    AccountLimits,
    Booking,
    Call,
    Settlement,
    StoreUnavailable,
    TenantKeys,
    Verdict,
    account_call,
    account_reply,
)

from ._event import UsageEvent
from ._settings import LedgerSettings
from ._sums import usage_sums

BOOKING_EVENTS_MAX = 256
"""Events of one booking: at about 5 µs each in Redis, one account keeps the others waiting for little over a ms."""

UNLIMITED = LimitsSpec()

_encode_event = msgspec.json.Encoder().encode


class _Waiting(NamedTuple):
    ask: Ask
    limits: LimitsSpec
    decided: asyncio.Future[Grant | Denial]


class _Entry(NamedTuple):
    """Something to book: an event, a lease that ended, or both."""

    event: UsageEvent | None
    packed: bytes
    lease: Lease | None


class TenantAccount:
    """A `store.Caller`. `wake` puts it on the coalescer's list."""

    def __init__(
        self, tenant: str, *, producer: str, settings: LedgerSettings, wake: Callable[[TenantAccount], None]
    ) -> None:
        self.tenant = tenant
        self._keys = TenantKeys(tenant)
        self._producer = producer
        self._settings = settings
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._limits = UNLIMITED
        self._compiled: AccountLimits | None = None
        self._period = Period("", 0, 0)
        self._asked = 0
        self._waiting: list[_Waiting] = []
        self._aboard: list[_Waiting] = []
        self._members: list[str] = []
        self._held: dict[str, bool] = {}  # lease member -> whether its settlement waits to be booked
        self._renewals: list[str] = []
        self._unbooked: deque[_Entry] = deque()
        self._sealed: list[_Entry] = []
        self._booking: Booking | None = None
        self._sequence = 0
        self._bookers: list[asyncio.Future[None]] = []
        self._sealed_bookers: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"TenantAccount({self.tenant!r}, {self.unbooked} unbooked)"

    @property
    def waiting(self) -> int:
        """Asks not yet decided."""
        return len(self._waiting) + len(self._aboard)

    @property
    def unbooked(self) -> int:
        """Entries Redis has not confirmed."""
        return len(self._unbooked) + len(self._sealed)

    @property
    def leases(self) -> int:
        """Leases held, those whose settlement is not booked yet included."""
        return len(self._held)

    def unbooked_events(self) -> list[bytes]:
        """The events Redis has not confirmed, oldest first."""
        return [entry.packed for entry in (*self._sealed, *self._unbooked) if entry.event is not None]

    def ask(self, limits: LimitsSpec, ask: Ask) -> asyncio.Future[Grant | Denial]:
        """Asks for a lease with the next call."""
        decided: asyncio.Future[Grant | Denial] = self._loop.create_future()
        self._waiting.append(_Waiting(ask, limits, decided))
        self._wake(self)
        return decided

    def withdraw(self, decided: asyncio.Future[Grant | Denial]) -> None:
        """Nobody waits for this decision any more: what it granted is given back."""
        if decided.done() and not decided.cancelled() and decided.exception() is None:
            decision = decided.result()
            if isinstance(decision, Grant):
                self._give_back(decision.lease)

    def book(self, event: UsageEvent, lease: Lease | None) -> bool:
        """Books `event` with the next call, and ends `lease`. False, and nothing, if that lease was settled before."""
        if lease is not None:
            if self._held.get(lease.member, True):
                return False
            self._held[lease.member] = True
        self._unbooked.append(_Entry(event, _encode_event(event), lease))
        self._wake(self)
        return True

    def forget(self, lease: Lease) -> None:
        """Leaves `lease` to expire: its settlement will not be booked."""
        self._held.pop(lease.member, None)

    def booked(self) -> asyncio.Future[None]:
        """Done when everything to book now is booked, or Redis turned out to be away."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._bookers.append(future)
        return future

    def stop_waiting(self) -> None:
        """Lets everyone go who waits for a booking; what they booked stays in line."""
        for future in (*self._sealed_bookers, *self._bookers):
            if not future.done():
                future.set_result(None)
        self._sealed_bookers, self._bookers = [], []

    def renew(self) -> None:
        """Renews all leases with the next call."""
        if self._held:
            self._renewals = list(self._held)
            self._wake(self)

    def take(self, now_ms: int) -> Call | None:
        still_there = [waiting for waiting in self._waiting if not waiting.decided.done()]
        waiting = self._aboard = still_there[:CALL_MAX]
        self._waiting = still_there[CALL_MAX:]
        if self._booking is None and self._unbooked:
            self._seal()
        still_held = [member for member in self._renewals if member in self._held]
        renewals, self._renewals = still_held[:CALL_MAX], still_held[CALL_MAX:]
        if not waiting and not renewals and self._booking is None:
            return None
        if waiting:
            limits = waiting[-1].limits
            if limits is not self._limits:
                self._limits, self._compiled = limits, None
        compiled = self._limits_at(now_ms // 1000)
        asks: list[str | int] = []
        members = self._members = []
        for ask, _, _ in waiting:
            self._asked += 1
            member = f"{ask.lease_id}|{self._producer}.{self._asked}|{ask.nanousd}|{compiled.period}"
            members.append(member)
            asks += (member, ask.tokens, ask.nanousd)
        return account_call(
            self._keys,
            now_ms=now_ms,
            lease_ttl_ms=int(self._settings.lease_ttl_s * 1000),
            limits=compiled,
            budget_ttl_s=self._settings.budget_ttl_s,
            renewals=renewals,
            asks=asks,
            booking=self._booking,
        )

    def finish(self, reply: bytes) -> bool:
        answer = account_reply(reply)
        aboard, self._aboard = self._aboard, []
        for (ask, _, decided), member, verdict in zip(aboard, self._members, answer.verdicts, strict=True):
            decision = self._decision(ask, member, verdict, answer.now_ms)
            if not decided.done():
                decided.set_result(decision)
            elif isinstance(decision, Grant):
                self._give_back(decision.lease)
        if self._booking is not None:
            self._close_booking()
        return bool(self._waiting or self._unbooked or self._renewals)

    def fail(self, error: StoreUnavailable) -> bool:
        aboard, self._aboard = self._aboard, []
        for waiting in aboard:
            if not waiting.decided.done():
                waiting.decided.set_exception(error)
        self.stop_waiting()
        return self.unbooked > 0

    def _decision(self, ask: Ask, member: str, verdict: Verdict, now_ms: int) -> Grant | Denial:
        limits = self._limits
        standing = Standing(
            limits.requests_per_minute,
            verdict.requests_remaining,
            verdict.requests_reset_ms,
            limits.tokens_per_minute,
            verdict.tokens_remaining,
            verdict.tokens_reset_ms,
        )
        dimension = DIMENSIONS[verdict.dimension]
        if dimension is None:
            self._held[member] = False
            return Grant(Lease(member, self.tenant, self._period.name, ask.tokens, ask.nanousd, now_ms), standing)
        assert self._compiled is not None
        limit = {
            "requests_per_minute": self._compiled.requests_per_minute,
            "tokens_per_minute": self._compiled.tokens_per_minute,
            "concurrent_requests": self._compiled.concurrent_requests,
            "budget_usd": self._compiled.budget_nanousd,
        }[dimension]
        return Denial(
            dimension=dimension,
            limit=limit,
            asked=verdict.asked,
            remaining=verdict.available,
            retry_after_ms=None if verdict.retry_after_ms < 0 else verdict.retry_after_ms,
            standing=standing,
            spent_nanousd=verdict.spent_nanousd,
            reserved_nanousd=verdict.reserved_nanousd,
            period=self._period.name,
            resets_at_s=self._period.end_s,
        )

    def _limits_at(self, now_s: int) -> AccountLimits:
        if self._compiled is None or not self._period.start_s <= now_s < self._period.end_s:
            limits = self._limits
            self._period = period_at(limits.budget_period, now_s, limits.time_zone)
            self._compiled = AccountLimits(
                requests_per_minute=min(PER_MINUTE_MAX, _or_unlimited(limits.requests_per_minute)),
                tokens_per_minute=min(PER_MINUTE_MAX, _or_unlimited(limits.tokens_per_minute)),
                concurrent_requests=_or_unlimited(limits.concurrent_requests),
                budget_nanousd=-1 if limits.budget_usd is None else nanousd_of_usd(limits.budget_usd),
                period=self._period.name,
            )
        return self._compiled

    def _seal(self) -> None:
        entries = self._sealed = [self._unbooked.popleft() for _ in range(min(BOOKING_EVENTS_MAX, len(self._unbooked)))]
        self._sequence += 1
        settlements = [_settlement(entry.lease, entry.event) for entry in entries if entry.lease is not None]
        self._booking = Booking(
            producer=self._producer,
            sequence=self._sequence,
            producer_ttl_s=self._settings.producer_ttl_s,
            events_max=self._settings.events_max,
            events=[entry.packed for entry in entries if entry.event is not None],
            settlements=settlements,
            bucket_kept_s=self._settings.bucket_kept_s,
            usage=usage_sums(entry.event for entry in entries if entry.event is not None),
        )
        if not self._unbooked:
            self._sealed_bookers, self._bookers = self._bookers, []

    def _close_booking(self) -> None:
        for entry in self._sealed:
            if entry.lease is not None:
                self._held.pop(entry.lease.member, None)
        self._sealed, self._booking = [], None
        bookers, self._sealed_bookers = self._sealed_bookers, []
        if not self._unbooked:  # someone asked while the last booking was on its way
            bookers += self._bookers
            self._bookers = []
        for future in bookers:
            if not future.done():
                future.set_result(None)

    def _give_back(self, lease: Lease) -> None:
        self._held[lease.member] = True
        self._unbooked.append(_Entry(None, b"", lease))
        self._wake(self)


def _settlement(lease: Lease, event: UsageEvent | None) -> Settlement:
    """What `event` leaves of the reservation. Never run means that its place in requests/min comes back too."""
    used_tokens = 0 if event is None else event.usage.total_tokens
    cost_nanousd = 0 if event is None else event.cost_nanousd
    never_ran = event is None or event.status == "refused"
    assert 0 <= cost_nanousd <= EXACT_MAX
    return (
        lease.member,
        lease.period,
        lease.nanousd,
        lease.tokens,
        lease.reserved_ms,
        used_tokens,
        cost_nanousd,
        int(never_ran),
    )


def _or_unlimited(limit: int | None) -> int:
    return -1 if limit is None else limit
