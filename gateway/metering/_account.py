"""One tenant's account as this worker sees it: what waits to be asked, renewed and booked in one script call.

No clock and no Redis: the coalescer takes a call when its batch leaves and brings the answer. What is booked comes from
outboxes, one for each journal this worker ships; a call carries a batch of one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from gateway.admission import Ask, Denial, Grant, Lease, Note, Standing
from gateway.policy import LimitsSpec, Scope
from gateway.store import (
    CALL_MAX,
    DIMENSIONS,
    AccountLimits,
    AskPart,
    Booking,
    Call,
    Caller,
    Release,
    ScopeLimits,
    StoreUnavailable,
    TenantKeys,
    Verdict,
    account_call,
    account_reply,
)

from ._outbox import Batch, Outbox
from ._scopes import QUARTER_MS, CompiledLimits, or_none, period_of, scopes_named, windows_named
from ._settings import LedgerSettings
from ._settlements import settlements
from ._sums import usage_sums

BOOKING_LATE_S = 0.02
"""A booking may wait so long for company: nobody waits for it but the tenant's own next requests."""


REFUSES_ON_MS = 100
"""A requests/min that is used up refuses without asking again for so long, at most until it has refilled by one. What
could make room sooner is a request of another worker, admitted and then refused: its place comes back."""

SLICE = "s"
"""Ends the unique part of a slice's member (see account.lua)."""

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
    scopes: tuple[Scope, ...]
    slice_of: Lease | None
    decided: asyncio.Future[Grant | Denial]

    def of_ms(self, now_ms: int) -> int:
        """When the periods hold that pay for it: a slice's are those of its lease."""
        return now_ms if self.slice_of is None else self.slice_of.reserved_ms


class RefusedLately(NamedTuple):
    """A denial by requests/min at `at_ms`, which holds until `until_ms` for whoever meets the same limits and asks for
    no more: no other limit makes that one wait longer."""

    denial: Denial
    ask: Ask
    limits: LimitsSpec
    scopes: tuple[Scope, ...]
    at_ms: int
    until_ms: int

    def covers(self, limits: LimitsSpec, ask: Ask, scopes: tuple[Scope, ...], now_ms: int) -> bool:
        """Whether this ask would be denied likewise."""
        return (
            self.limits is limits
            and self.scopes == scopes
            and self.at_ms <= now_ms < self.until_ms
            and _asks_no_more(ask, self.ask)
        )

    def now(self, now_ms: int) -> Denial:
        """The denial as it is now."""
        passed_ms, denial = now_ms - self.at_ms, self.denial
        standing = denial.standing
        assert denial.retry_after_ms is not None
        return replace(
            denial,
            retry_after_ms=denial.retry_after_ms - passed_ms,
            standing=replace(standing, requests_reset_ms=max(0, standing.requests_reset_ms - passed_ms)),
        )


class _Sent(NamedTuple):
    """What an ask of the call that is away would get."""

    member: str
    windows: tuple[str, ...]


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
        self._compiled = CompiledLimits()
        self._asked_of: AccountLimits | None = None
        self._scopes: dict[str, Scope] = {}
        self._sent_scopes: list[ScopeLimits] = []
        self._shares = False
        self._sweeps = False
        self.refused: RefusedLately | None = None
        """What was refused a moment ago, and would be again."""
        self._asked = 0
        self._waiting: list[_Waiting] = []
        self._aboard: list[_Waiting] = []
        self._members: list[_Sent] = []
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
        self, limits: LimitsSpec, ask: Ask, scopes: tuple[Scope, ...] = (), slice_of: Lease | None = None
    ) -> asyncio.Future[Grant | Denial]:
        """Asks for a lease with the next call, by the tenant's `limits` and those of `scopes`; or for a slice of one
        that is held, in the same periods."""
        self._idle_renewals = 0
        decided = self._create_future()
        self._waiting.append(_Waiting(ask, limits, scopes, slice_of, decided))
        self._wake(self)
        return decided

    def refuses(self, limits: LimitsSpec, ask: Ask, scopes: tuple[Scope, ...], now_ms: int) -> Denial | None:
        """What was refused a moment ago and would be again; None: ask. A flood of refusals costs Redis nothing."""
        refused = self.refused
        if refused is None or not refused.covers(limits, ask, scopes, now_ms):
            return None
        return refused.now(now_ms)

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
        for held in (lease, *lease.slices):
            self._held[held.member] = _Stage.SETTLES
        self.refused = None
        return True

    def sweep(self) -> None:
        """Frees with the next call what a killed worker holds of scopes that tenants share."""
        self._shares = self._sweeps = True
        self._wake(self)

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
        waiting = self._aboard = self._board(now_ms)
        still_held = [member for member in self._renewals if self._is_renewable(member)]
        renewals, self._renewals = still_held[:CALL_MAX], still_held[CALL_MAX:]
        releases = self._releasing = self._releases[:CALL_MAX]
        self._releases = self._releases[CALL_MAX:]
        sweeps, self._sweeps = self._sweeps, False
        if not (waiting or renewals or releases or outbox is not None or sweeps):
            return None
        if waiting:
            self._limits = waiting[-1].limits
        at_s = (waiting[0].of_ms(now_ms) if waiting else now_ms) // 1000
        compiled = self._asked_of = self._compiled.of_tenant(self._limits, at_s)
        numbers: dict[str, int] = {}
        self._sent_scopes = []
        for scope in self._scopes_of(waiting, batch, releases):
            self._sent_scopes.append(self._compiled.of_scope(scope, at_s))
            numbers[scope.name] = len(self._sent_scopes)
        asks: list[AskPart] = []
        members = self._members = []
        for ask, _, scopes, slice_of, _ in waiting:
            self._asked += 1
            unique = f"{self._worker}.{self._asked}{'' if slice_of is None else SLICE}"
            member = f"{ask.lease_id}|{unique}|{ask.nanousd}|{compiled.period}"
            windows_of: tuple[str, ...] = ()
            of = tuple([numbers[scope.name] for scope in scopes])
            if compiled.has_more or of:
                met: list[ScopeLimits] = [compiled, *(self._sent_scopes[number - 1] for number in of)]
                windows_of = tuple(dict.fromkeys(window.name for limits_of in met for window in limits_of.windows))
                names = ",".join([limits_of.name for limits_of in met[1:] if limits_of.has_state])
                member = f"{member}|{ask.most_tokens}|{','.join(windows_of)}|{names}"
            members.append(_Sent(member, windows_of))
            asks += (
                member,
                ask.tokens,
                ask.nanousd,
                ask.input_tokens,
                ask.output_tokens,
                ask.most_tokens,
                of or False,
            )
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
            scopes=self._sent_scopes,
            shared_by=self.tenant if self._shares else "",
            booking=None if batch is None else self._booking(batch, now_ms),
        )

    def finish(self, reply: bytes) -> bool:
        answer = account_reply(reply)
        aboard, self._aboard = self._aboard, []
        self._releasing = []
        self._away_ms = 0
        for waited, sent, verdict in zip(aboard, self._members, answer.verdicts, strict=True):
            decision, decided = self._decision(waited, sent, verdict, answer.now_ms), waited.decided
            if isinstance(decision, Denial):
                self._note_refused(waited, decision, answer.now_ms)
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

    def _note_refused(self, waited: _Waiting, denial: Denial, now_ms: int) -> None:
        if denial.dimension == "requests_per_minute" and denial.retry_after_ms and not denial.notes:
            until_ms = now_ms + min(REFUSES_ON_MS, denial.retry_after_ms)
            self.refused = RefusedLately(denial, waited.ask, waited.limits, waited.scopes, now_ms, until_ms)

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

    def _board(self, now_ms: int) -> list[_Waiting]:
        """The asks of the next call, all of one time. Before Redis has said where it stands there are none; while it is
        being given back what it lost, they are refused: they would be decided as if that had not been spent."""
        waiting = [waiting for waiting in self._waiting if not waiting.decided.done()]
        if any(outbox.replays for outbox in self.outboxes):
            for asked in waiting:
                asked.decided.set_exception(StoreUnavailable("Redis has lost usage and is being given it back"))
            waiting = []
        elif not self._is_verified:
            self._waiting = waiting
            return []
        aboard: list[_Waiting] = []
        left: list[_Waiting] = []
        for asked in waiting:
            same = not aboard or asked.of_ms(now_ms) // QUARTER_MS == aboard[0].of_ms(now_ms) // QUARTER_MS
            (aboard if same and len(aboard) < CALL_MAX else left).append(asked)
        self._waiting = left
        return aboard

    @property
    def _is_verified(self) -> bool:
        """Whether Redis has said of every outbox where it stands."""
        return all(outbox.verified for outbox in self.outboxes)

    def _hear(self, outbox: Outbox, last: int) -> None:
        lost = outbox.lost
        for record in outbox.told(last):
            if record.lease is not None:
                for held in (record.lease, *record.lease.slices):
                    self._held.pop(held.member, None)
        if outbox.lost > lost:
            for other in self.outboxes:
                if other is not outbox:
                    other.suspect()

    def _note_sent(self, batch: Batch) -> None:
        for record in batch.records:
            if record.lease is not None and record.lease.member in self._held:
                for held in (record.lease, *record.lease.slices):
                    self._held[held.member] = _Stage.SENT

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

    def _scopes_of(
        self, waiting: Sequence[_Waiting], batch: Batch | None, releases: Sequence[Release]
    ) -> Iterable[Scope]:
        """What the asks meet, and what those that end have taken from, as far as this worker has met it."""
        for asked in waiting:
            for scope in asked.scopes:
                if self._scopes.get(scope.name) is not scope:
                    self._scopes[scope.name] = scope
                    self._shares = self._shares or scope.is_shared
        if not self._scopes:
            return ()
        names = {scope.name for asked in waiting for scope in asked.scopes}
        members = [release[0] for release in releases]
        for record in batch.records if batch is not None else ():
            if record.lease is not None:
                members += (held.member for held in (record.lease, *record.lease.slices))
        for member in members:
            names.update(scopes_named(member))
        return [self._scopes[name] for name in sorted(names) if name in self._scopes]

    def _decision(self, waited: _Waiting, sent: _Sent, verdict: Verdict, now_ms: int) -> Grant | Denial:
        compiled = self._asked_of
        assert compiled is not None
        limits: list[ScopeLimits] = [compiled, *self._sent_scopes]
        standing = Standing(
            or_none(limits[verdict.requests_scope].requests_per_minute),
            verdict.requests_remaining,
            verdict.requests_reset_ms,
            or_none(limits[verdict.tokens_scope].tokens_per_minute),
            verdict.tokens_remaining,
            verdict.tokens_reset_ms,
        )
        notes = self._notes(verdict.notes, limits) if verdict.notes else ()
        dimension = DIMENSIONS[verdict.dimension]
        if dimension is None:
            member, windows = sent.member, sent.windows
            if verdict.member:
                member, windows = verdict.member, windows_named(verdict.member)
            self._held[member] = _Stage.RUNS
            ask = waited.ask
            lease = Lease(
                member,
                self.tenant,
                self._compiled.period.name,
                ask.tokens,
                ask.nanousd,
                now_ms if waited.slice_of is None else waited.slice_of.reserved_ms,
                ask.input_tokens,
                ask.output_tokens,
                windows,
            )
            return Grant(lease, standing, notes)
        refusing = limits[verdict.scope]
        limit, window = (compiled.budget_nanousd, None) if dimension == "budget_usd" else refusing.limit_of(dimension)
        period, resets_at_s = self._compiled.period.name, self._compiled.period.end_s
        if window is not None:
            period, resets_at_s = period_of(window.name), window.end_s
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
            scope=self._scopes[refusing.name].label if refusing.name else "",
            notes=notes,
        )

    def _notes(self, told: Sequence[int], limits: Sequence[ScopeLimits]) -> tuple[Note, ...]:
        notes = []
        for number, dimension_number, percent in zip(told[::3], told[1::3], told[2::3], strict=True):
            of, dimension = limits[number], DIMENSIONS[dimension_number]
            assert dimension is not None
            scope = self._scopes[of.name]
            limit, window = of.limit_of(dimension)
            notes.append(
                Note(
                    kind=scope.kind,
                    of=self.tenant if scope.kind == "tenant" else scope.of,
                    scope=scope.label,
                    dimension=dimension,
                    limit=limit,
                    percent=None if percent < 0 else percent,
                    period="" if window is None else period_of(window.name),
                    resets_at_s=0 if window is None else window.end_s,
                )
            )
        return tuple(notes)

    def _booking(self, batch: Batch, now_ms: int) -> Booking:
        settings = self._settings
        return Booking(
            first=batch.first,
            skips=batch.skips,
            producer_ttl_s=settings.producer_ttl_s,
            events_after_ms=max(0, now_ms - settings.events_kept_s * 1000),
            events=[record.packed for record in batch.records],
            settlements=[
                settlement
                for number, record in enumerate(batch.records, batch.first)
                if record.lease is not None
                for settlement in settlements(number, record.lease, record)
            ],
            bucket_kept_s=settings.bucket_kept_s,
            usage=usage_sums(record.event for record in batch.records),
        )

    def _release(self, lease: Lease) -> None:
        self.refused = None
        self._held.pop(lease.member, None)
        self._releases.append((lease.member, lease.tokens, lease.reserved_ms, lease.input_tokens, lease.output_tokens))
        self._wake(self)


def _asks_no_more(ask: Ask, than: Ask) -> bool:
    return (
        ask.tokens <= than.tokens
        and ask.nanousd <= than.nanousd
        and ask.input_tokens <= than.input_tokens
        and ask.output_tokens <= than.output_tokens
        and ask.most_tokens <= than.most_tokens
    )
