"""One tenant's account as this worker sees it: what waits to be asked, renewed and booked in one script call.

No clock and no Redis: the coalescer takes a call when its batch leaves and brings the answer. What is booked comes from
outboxes, one for each journal this worker ships; a call carries a batch of one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple, Protocol

import msgspec

from gateway.admission import Ask, Denial, Dimension, Grant, Lease, Period, PeriodKind, Standing, period_at
from gateway.policy import KeyLimitsSpec, LimitsSpec
from gateway.pricing import nanousd_of_usd
from gateway.store import (
    CALL_MAX,
    DIMENSIONS,
    EXACT_MAX,
    PER_MINUTE_MAX,
    AccountLimits,
    Booking,
    Call,
    Caller,
    Release,
    Settlement,
    StoreUnavailable,
    TenantKeys,
    Verdict,
    Window,
    account_call,
    account_reply,
)

from ._outbox import Batch, Outbox
from ._record import Record
from ._settings import LedgerSettings
from ._sums import usage_sums

BOOKING_LATE_S = 0.02
"""A booking may wait so long for company: nobody waits for it but the tenant's own next requests."""


IDLE_RENEWALS = 10
"""A tenant that asks for nothing is looked at with every tenth renewal only, once its leases must have ended."""


class Wake(Protocol):
    """Puts an account on the coalescer's list."""

    def __call__(self, caller: Caller, /, *, within_s: float = 0.0) -> None: ...


class _Stage(IntEnum):
    """Of a lease. One whose settlement was sent is not renewed: it may have been booked without our hearing of it."""

    RUNS = 0
    SETTLES = 1
    SENT = 2


class _Waiting(NamedTuple):
    ask: Ask
    limits: LimitsSpec
    key_limits: KeyLimitsSpec | None
    decided: asyncio.Future[Grant | Denial]


class TenantAccount:
    """A `store.Caller`. `worker` makes its leases' names unique; `load` reads what an outbox misses."""

    def __init__(
        self,
        tenant: str,
        *,
        worker: str,
        settings: LedgerSettings,
        limits: LimitsSpec,
        wake: Wake,
        load: Callable[[Outbox], None],
        create_future: Callable[[], asyncio.Future[Grant | Denial]],
    ) -> None:
        self.tenant = tenant
        self.outboxes: list[Outbox] = []
        self._worker = worker
        self._keys = TenantKeys(tenant)
        self._settings = settings
        self._wake = wake
        self._load = load
        self._create_future = create_future
        self._limits = limits
        self._compiled: AccountLimits | None = None
        self._period = Period("", 0, 0)
        self._until_s = 0
        self._asked_of: AccountLimits | None = None
        self._asked = 0
        self._waiting: list[_Waiting] = []
        self._aboard: list[_Waiting] = []
        self._members: list[tuple[str, tuple[str, ...]]] = []
        self._held: dict[str, _Stage] = {}
        self._renewals: list[str] = []
        self._releases: list[Release] = []
        self._releasing: list[Release] = []
        self._away_ms = 0
        self._readers: list[asyncio.Future[None]] = []
        self._idle_renewals = 0
        self._turn = 0
        self._sending: Outbox | None = None

    def __repr__(self) -> str:
        return f"TenantAccount({self.tenant!r}, {self.unbooked} unbooked)"

    @property
    def waiting(self) -> int:
        """Asks not yet decided."""
        return len(self._waiting) + len(self._aboard)

    @property
    def unbooked(self) -> int:
        """Records Redis has not confirmed."""
        return sum(outbox.pending for outbox in self.outboxes)

    @property
    def leases(self) -> int:
        """Leases held, those whose settlement is not booked yet included."""
        return len(self._held)

    def ask(
        self, limits: LimitsSpec, ask: Ask, key_limits: KeyLimitsSpec | None = None
    ) -> asyncio.Future[Grant | Denial]:
        """Asks for a lease with the next call."""
        self._idle_renewals = 0
        decided = self._create_future()
        self._waiting.append(_Waiting(ask, limits, key_limits, decided))
        self._wake(self)
        return decided

    def withdraw(self, decided: asyncio.Future[Grant | Denial]) -> None:
        """Nobody waits for this decision any more: what it granted is given back."""
        if decided.done() and not decided.cancelled() and decided.exception() is None:
            decision = decided.result()
            if isinstance(decision, Grant):
                self._release(decision.lease)

    def settles(self, lease: Lease) -> bool:
        """Notes that the lease's settlement is on its way. False if it was before: a lease is settled once."""
        if self._held.get(lease.member) is not _Stage.RUNS:
            return False
        self._held[lease.member] = _Stage.SETTLES
        return True

    def renew(self) -> None:
        """Renews all leases with the next call, and asks whether Redis still has what it had; more rarely after a while
        in which nothing was asked. A call also frees what was granted in an answer that never arrived."""
        self._renewals = self._renewable()
        self._idle_renewals += 1
        if self._idle_renewals < IDLE_RENEWALS or self._idle_renewals % IDLE_RENEWALS == 0:
            # One tells for all: what Redis lost of one journal it lost of others too.
            told = [outbox for outbox in self.outboxes if outbox.confirmed] or self.outboxes
            if told:
                told[self._idle_renewals % len(told)].poll()
        if self._renewals or self._outbox_waits():
            self._wake(self)

    def reconnected(self, away_ms: int) -> None:
        """Redis may have lost what it knew: leases are renewed and outboxes verified before anything is decided."""
        self._away_ms = max(self._away_ms, away_ms)
        for outbox in self.outboxes:
            outbox.suspect()
        self._renewals = self._renewable()
        if self._held or self.unbooked:
            self._wake(self)

    def booked(self) -> asyncio.Future[None]:
        """Done when Redis has what is on disk now, or turns out to be away. Sends it at once."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.append(future)
        self._wake(self)
        return future

    def booking_waits(self) -> None:
        """An outbox has something new."""
        self._load_missing()
        if self._outbox_waits():
            self._wake(self, within_s=BOOKING_LATE_S)

    def take(self, now_ms: int) -> Call | None:
        outbox = self._sending = self._next_outbox()
        batch = None if outbox is None else outbox.batch()
        if batch is not None:
            self._note_sent(batch)
        waiting = self._aboard = self._board()
        still_held = [member for member in self._renewals if self._is_renewable(member)]
        renewals, self._renewals = still_held[:CALL_MAX], still_held[CALL_MAX:]
        releases = self._releasing = self._releases[:CALL_MAX]
        self._releases = self._releases[CALL_MAX:]
        if not (waiting or renewals or releases or outbox is not None):
            return None
        if waiting:
            limits = waiting[-1].limits
            if limits is not self._limits:
                self._limits, self._compiled = limits, None
        compiled = self._limits_at(now_ms // 1000)
        of_keys = {
            ask.key: windows_at(key_limits, now_ms // 1000, self._limits.time_zone, key=ask.key)
            for ask, _, key_limits, _ in waiting
            if key_limits is not None
        }
        if of_keys:
            windows = (*compiled.windows, *(window for of_key in of_keys.values() for window in of_key))
            compiled = msgspec.structs.replace(compiled, windows=windows)
        self._asked_of = compiled
        asks: list[str | int] = []
        members = self._members = []
        has_more = compiled.has_more
        for ask, _, _, _ in waiting:
            self._asked += 1
            windows_of: tuple[str, ...] = ()
            member = f"{ask.lease_id}|{self._worker}.{self._asked}|{ask.nanousd}|{compiled.period}"
            if has_more:
                windows_of = tuple(
                    dict.fromkeys(window.period for window in compiled.windows if window.key in ("", ask.key))
                )
                member = f"{member}|{ask.most_tokens}|{','.join(windows_of)}"
            members.append((member, windows_of))
            asks += (member, ask.tokens, ask.nanousd, ask.input_tokens, ask.output_tokens, ask.most_tokens, ask.key)
        return account_call(
            self._keys,
            now_ms=now_ms,
            lease_ttl_ms=int(self._settings.lease_ttl_s * 1000),
            limits=compiled,
            budget_ttl_s=self._settings.budget_ttl_s,
            producer=self._worker if outbox is None else outbox.producer,
            away_ms=self._away_ms,
            renewals=renewals,
            releases=releases,
            asks=asks,
            booking=None if batch is None else self._booking(batch, now_ms),
        )

    def finish(self, reply: bytes) -> bool:
        answer = account_reply(reply)
        aboard, self._aboard = self._aboard, []
        self._releasing = []
        self._away_ms = 0
        for (ask, _, _, decided), (member, windows), verdict in zip(
            aboard, self._members, answer.verdicts, strict=True
        ):
            decision = self._decision(ask, member, windows, verdict, answer.now_ms)
            if not decided.done():
                decided.set_result(decision)
            elif isinstance(decision, Grant):
                self._release(decision.lease)
        if self._sending is not None:
            self._hear(self._sending, answer.last)
        self._load_missing()
        if self._readers and not self.unbooked:
            self._tell_readers()
        return bool(self._waiting or self._renewals or self._releases or self._outbox_waits())

    def fail(self, error: StoreUnavailable) -> bool:
        refused, self._aboard = self._aboard, []
        if not self._is_verified:  # they wait for what this call was to ask
            refused, self._waiting = refused + self._waiting, []
        for waiting in refused:
            if not waiting.decided.done():
                waiting.decided.set_exception(error)
        self._tell_readers()
        self._releases = self._releasing + self._releases
        self._releasing = []
        return bool(self._waiting or self._releases or self.unbooked)

    def _tell_readers(self) -> None:
        readers, self._readers = self._readers, []
        for future in readers:
            if not future.done():
                future.set_result(None)

    def _board(self) -> list[_Waiting]:
        """The asks of the next call. Before Redis has said where it stands there are none; while it is being given back
        what it lost, they are refused: they would be decided as if that had not been spent."""
        waiting = [waiting for waiting in self._waiting if not waiting.decided.done()]
        if any(outbox.replays for outbox in self.outboxes):
            for asked in waiting:
                asked.decided.set_exception(StoreUnavailable("Redis has lost usage and is being given it back"))
            waiting = []
        elif not self._is_verified:
            self._waiting = waiting
            return []
        self._waiting = waiting[CALL_MAX:]
        return waiting[:CALL_MAX]

    @property
    def _is_verified(self) -> bool:
        """Whether Redis has said of every outbox where it stands."""
        return all(outbox.verified for outbox in self.outboxes)

    def _hear(self, outbox: Outbox, last: int) -> None:
        lost = outbox.lost
        for record in outbox.told(last):
            if record.lease is not None:
                self._held.pop(record.lease.member, None)
        if outbox.lost > lost:
            for other in self.outboxes:
                if other is not outbox:
                    other.suspect()

    def _note_sent(self, batch: Batch) -> None:
        for record in batch.records:
            if record.lease is not None and record.lease.member in self._held:
                self._held[record.lease.member] = _Stage.SENT

    def _is_renewable(self, member: str) -> bool:
        return self._held.get(member, _Stage.SENT) is not _Stage.SENT

    def _renewable(self) -> list[str]:
        return [member for member in self._held if self._is_renewable(member)]

    def _next_outbox(self) -> Outbox | None:
        """In turns, so that a long backlog of a dead worker does not keep this one's own bookings waiting."""
        for _ in self.outboxes:
            self._turn = (self._turn + 1) % len(self.outboxes)
            if self.outboxes[self._turn].wants_call:
                return self.outboxes[self._turn]
        return None

    def _load_missing(self) -> None:
        for outbox in self.outboxes:
            if outbox.missing is not None:
                self._load(outbox)

    def _outbox_waits(self) -> bool:
        return any(outbox.wants_call for outbox in self.outboxes)

    def _decision(
        self, ask: Ask, member: str, windows: tuple[str, ...], verdict: Verdict, now_ms: int
    ) -> Grant | Denial:
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
            self._held[member] = _Stage.RUNS
            lease = Lease(
                member,
                self.tenant,
                self._period.name,
                ask.tokens,
                ask.nanousd,
                now_ms,
                ask.input_tokens,
                ask.output_tokens,
                windows,
            )
            return Grant(lease, standing)
        compiled = self._asked_of
        assert compiled is not None
        limit, period, resets_at_s = compiled.budget_nanousd, self._period.name, self._period.end_s
        match dimension:
            case "budget_usd":
                pass
            case "tokens_per_day" | "usd_per_hour" | "usd_per_day" | "usd_per_month":
                window = next(
                    window for window in compiled.windows if window.dimension == dimension and window.key == verdict.key
                )
                limit, period, resets_at_s = window.limit, window.period.removeprefix(f"{window.key}:"), window.end_s
            case _:
                limit = getattr(compiled, dimension)
        return Denial(
            dimension=dimension,
            limit=limit,
            asked=verdict.asked,
            remaining=verdict.available,
            retry_after_ms=None if verdict.retry_after_ms < 0 else verdict.retry_after_ms,
            standing=standing,
            spent_nanousd=verdict.spent_nanousd,
            reserved_nanousd=verdict.reserved_nanousd,
            period=period,
            resets_at_s=resets_at_s,
            key=verdict.key,
        )

    def _limits_at(self, now_s: int) -> AccountLimits:
        if self._compiled is None or not self._period.start_s <= now_s < self._until_s:
            limits = self._limits
            self._period = period_at(limits.budget_period, now_s, limits.time_zone)
            windows = windows_at(limits, now_s, limits.time_zone)
            self._until_s = min([self._period.end_s, *(window.end_s for window in windows)])
            self._compiled = AccountLimits(
                requests_per_minute=min(PER_MINUTE_MAX, _or_unlimited(limits.requests_per_minute)),
                tokens_per_minute=min(PER_MINUTE_MAX, _or_unlimited(limits.tokens_per_minute)),
                concurrent_requests=_or_unlimited(limits.concurrent_requests),
                budget_nanousd=-1 if limits.budget_usd is None else nanousd_of_usd(limits.budget_usd),
                input_tokens_per_minute=min(PER_MINUTE_MAX, _or_unlimited(limits.input_tokens_per_minute)),
                output_tokens_per_minute=min(PER_MINUTE_MAX, _or_unlimited(limits.output_tokens_per_minute)),
                concurrent_tokens=min(EXACT_MAX, _or_unlimited(limits.concurrent_tokens)),
                windows=windows,
                period=self._period.name,
            )
        return self._compiled

    def _booking(self, batch: Batch, now_ms: int) -> Booking:
        settings = self._settings
        return Booking(
            first=batch.first,
            skips=batch.skips,
            producer_ttl_s=settings.producer_ttl_s,
            events_after_ms=max(0, now_ms - settings.events_kept_s * 1000),
            events=[record.packed for record in batch.records],
            settlements=[
                _settlement(number, record.lease, record)
                for number, record in enumerate(batch.records, batch.first)
                if record.lease is not None
            ],
            bucket_kept_s=settings.bucket_kept_s,
            usage=usage_sums(record.event for record in batch.records),
        )

    def _release(self, lease: Lease) -> None:
        self._held.pop(lease.member, None)
        self._releases.append((lease.member, lease.tokens, lease.reserved_ms, lease.input_tokens, lease.output_tokens))
        self._wake(self)


def _settlement(number: int, lease: Lease, record: Record) -> Settlement:
    """What an event leaves of the reservation. Never run means that its place in requests/min comes back too."""
    event = record.event
    assert abs(event.cost_nanousd) <= EXACT_MAX
    return (
        number,
        lease.member,
        lease.period,
        ",".join(lease.windows),
        lease.tokens,
        lease.reserved_ms,
        event.usage.total_tokens,
        event.cost_nanousd,
        int(event.status == "refused"),
        lease.input_tokens,
        event.usage.input_tokens,
        lease.output_tokens,
        event.usage.output_tokens,
    )


def windows_at(limits: LimitsSpec | KeyLimitsSpec, now_s: int, time_zone: str, *, key: str = "") -> tuple[Window, ...]:
    """The windows, beside the budget's period, that hold at `now_s` (Unix seconds); those of a key bear its name."""
    scope = f"{key}:" if key else ""
    windows: list[Window] = []

    def add(dimension: Dimension, kind: PeriodKind, limit: int | None) -> None:
        if limit is not None:
            period = period_at(kind, now_s, time_zone)
            windows.append(
                Window(dimension=dimension, period=scope + period.name, limit=limit, end_s=period.end_s, key=key)
            )

    def nanousd(usd: Decimal | None) -> int | None:
        return None if usd is None else nanousd_of_usd(usd)

    tokens = limits.tokens_per_day
    add("tokens_per_day", "day", None if tokens is None else min(EXACT_MAX, tokens))
    add("usd_per_hour", "hour", nanousd(limits.usd_per_hour))
    add("usd_per_day", "day", nanousd(limits.usd_per_day))
    add("usd_per_month", "month", nanousd(limits.usd_per_month))
    return tuple(windows)


def _or_unlimited(limit: int | None) -> int:
    return -1 if limit is None else limit
