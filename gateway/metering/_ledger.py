"""The ledger: reserve before a request runs, settle when it has ended; on disk before the answer ends, in Redis once.

    reserve   asks the tenant's account in Redis, with whatever else waits there
    watch     while it runs, about once a second its usage so far goes to the journal
    settle    the event goes to the journal; when that commit returns, the answer may end
    ship      outboxes send what is on disk to Redis, in order, with the next call or within 30 ms

Redis away at reserve: `StoreUnavailable`, and the request is refused. Redis away at settle: nothing waits for it. A
journal whose worker died is adopted by another one of the same directory: what was open there is billed at its last
checkpoint, and what was not shipped is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec
from redis.asyncio import Redis

from gateway.admission import Ask, Denial, Grant, Lease
from gateway.policy import LimitsSpec, TenantSpec
from gateway.store import EXACT_MAX, Coalescer, StoreUnavailable, durable, end_tasks, load_script

from ._account import TenantAccount
from ._event import UsageEvent
from ._journal import Committed, Journal, JournalUnavailable, Position
from ._journals import Claim, JournalDirectory, is_corrupt
from ._outbox import BATCH_MAX, MEMORY_MAX, Outbox
from ._record import Record
from ._settings import LedgerSettings

log = logging.getLogger(__name__)

ASK_TOKENS_MAX = 10**10
"""More is refused by any limit there can be; keeps the script's arithmetic exact."""

ADOPT_EVERY_S = 2.0
DURABLE_EVERY_S = 1.0
PRUNE_EVERY_S = 60.0
NOTE_AFTER_S = 0.01
"""A request open for longer is written down, so that what it cost is explained if this worker dies; most errors and
cached answers are quicker and cost nothing here."""
SNAPSHOTS_AT_ONCE = 200
"""At 5 to 10 µs each, the event loop is held for less than 2 ms."""

UNLIMITED = LimitsSpec()

Snapshot = Callable[[], UsageEvent]


class LedgerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of this worker: asks waiting for Redis, leases held, events on disk and not yet in Redis, events that
    Redis lost and got again, events given up, journals adopted, and failures of Redis in a row (0: it is there).
    `journal_failure` is why the disk cannot be written; empty when it can."""

    waiting: int
    leases: int
    unbooked: int
    replayed: int
    given_up: int
    adopted: int
    store_failures: int
    journal_failure: str


def wall_clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Ledger:
    """One worker's way to the accounts. `async with` opens its journal, and ships what is left at the end.

    Made inside the event loop it is used from. `now_ms` is Unix time: gateways' clocks have to agree within the time
    between two renewals of a lease, or one takes another's for dead. `limits_of` tells a tenant's limits by its name.
    """

    def __init__(
        self,
        redis: Redis,
        directory: Path,
        *,
        settings: LedgerSettings | None = None,
        limits_of: Callable[[str], LimitsSpec] = lambda _: UNLIMITED,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._settings = settings or LedgerSettings()
        self._loop = asyncio.get_running_loop()
        self._redis = redis
        self._now_ms = now_ms
        self._limits_of = limits_of
        self._directory = JournalDirectory(directory)
        self._coalescer = Coalescer(
            redis,
            load_script("account"),
            now_ms=now_ms,
            timeout_s=self._settings.call_timeout_s,
            random=random.random,
            on_connected=self._on_connected,
        )
        self._worker = secrets.token_hex(6)
        self._accounts: dict[str, TenantAccount] = {}
        self._outboxes: dict[tuple[str, str], Outbox] = {}
        self._loading: set[Outbox] = set()
        self._own: Journal | None = None
        self._journals: dict[str, tuple[Claim, Journal]] = {}
        self._failure = "it is not open yet"
        self._waiting: set[asyncio.Future[None]] = set()
        self._patience: asyncio.TimerHandle | None = None
        self._open: dict[str, tuple[Lease, Snapshot]] = {}
        self._fresh: list[str] = []
        self._fresher: list[str] = []
        self._noting: asyncio.TimerHandle | None = None
        self._left_alone: set[Path] = set()
        self._given_up = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Ledger:
        await self._open_own()
        for run in (self._renew_leases, self._checkpoint, self._adopt, self._make_durable):
            self._tasks.append(self._loop.create_task(run(), name=f"ledger {run.__name__}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def admits(self) -> bool:
        """Whether what a request uses can be written down, or the policy is to serve on without."""
        return not self._failure or self._settings.on_journal_failure == "serve"

    async def reserve(self, tenant: TenantSpec, ask: Ask) -> Grant | Denial:
        """May this request run? Either everything it asks for is taken, or nothing.

        A caller that is cancelled while it waits holds nothing: what was granted meanwhile is given back.

        Raises:
            StoreUnavailable: Redis did not answer, or too much waits for it. Nothing is held for longer than
                `lease_ttl_s`.
            JournalUnavailable: what it would use could not be written down.
        """
        assert ask.lease_id.isascii(), "request ids are plain"
        assert ask.tokens >= 0
        assert 0 <= ask.nanousd <= EXACT_MAX
        if self._closed:
            raise StoreUnavailable("The gateway is shutting down")
        if not self.admits:
            raise JournalUnavailable(self._failure)
        account = self._account(tenant.name)
        if account.waiting >= self._settings.waiting_max:
            raise StoreUnavailable(f"{account.waiting} requests of {tenant.name} already wait for Redis")
        if ask.tokens > ASK_TOKENS_MAX:
            ask = Ask(ask.lease_id, ASK_TOKENS_MAX, ask.nanousd)
        decided = account.ask(tenant.limits, ask)
        try:
            return await decided
        except asyncio.CancelledError:
            account.withdraw(decided)
            raise

    def watch(self, lease: Lease, snapshot: Snapshot) -> None:
        """While the request of `lease` runs, `snapshot` is asked for the event as it would be if this worker died."""
        self._open[lease.member] = (lease, snapshot)
        self._fresher.append(lease.member)
        if self._noting is None:
            self._noting = self._loop.call_later(NOTE_AFTER_S, self._note)

    async def settle(self, event: UsageEvent, lease: Lease) -> None:
        """Ends `lease` and books `event`: what it did not use goes back, its cost is spent in the period it was
        reserved in, the event joins the tenant's stream and usage sums. An event that was refused after all also gives
        back its place in requests/min.

        Returns when it is on disk; whoever is cancelled while waiting has settled all the same.

        Raises:
            JournalUnavailable: the disk has failed for longer than `commit_wait_s`. The event is kept in memory, and
                written when the disk is back.
        """
        assert event.tenant == lease.tenant
        self._open.pop(lease.member, None)
        if not self._account(lease.tenant).settles(lease):
            log.error("Request %s of %s was settled twice; the second changes nothing", event.id, event.tenant)
            return
        await self._book(Record(event, lease))

    async def record(self, event: UsageEvent, *, period: str = "") -> None:
        """Books the event of a request that held no lease; its cost, if it has one, in the budget of `period`. Returns
        and raises as `settle` does, except that an event is not kept in memory while the disk is known to fail."""
        if not self.admits:
            raise JournalUnavailable(self._failure)
        await self._book(Record(event, Lease("", event.tenant, period, 0, 0, 0) if period else None))

    async def shipped(self, timeout_s: float) -> bool:
        """Whether Redis has everything that is on disk, waiting for it for at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._unbooked():  # noqa: ASYNC110 - by commands and at the end, never for a request
                    await asyncio.sleep(0.005)
        return not self._unbooked()

    def renew(self) -> None:
        """Renews all leases now, as happens from time to time by itself."""
        for account in self._accounts.values():
            account.renew()

    async def close(self, timeout_s: float = 5.0) -> int:
        """Ships what is left, for at most `timeout_s`; returns how many events are left to the next worker."""
        if self._closed:
            return 0
        self._closed = True
        await end_tasks(self._tasks)
        for timer in (self._noting, self._patience):
            if timer is not None:
                timer.cancel()
        own, self._own = self._own, None
        unwritten = await asyncio.to_thread(own.close) if own is not None else []
        await asyncio.sleep(0)  # what the journal said last comes first
        for record in unwritten:
            self._give_up(record)
        await self.shipped(0.0 if self._coalescer.failures else timeout_s)
        self._coalescer.close()
        for claim, journal in self._journals.values():
            if journal is not own:
                await asyncio.to_thread(journal.close)
            claim.release()
        return self._unbooked()

    def statistics(self) -> LedgerStatistics:
        """Counts for metrics and for `/readyz`."""
        accounts = self._accounts.values()
        outboxes = self._outboxes.values()
        return LedgerStatistics(
            waiting=sum(account.waiting for account in accounts),
            leases=sum(account.leases for account in accounts),
            unbooked=self._unbooked(),
            replayed=sum(outbox.lost for outbox in outboxes),
            given_up=self._given_up + sum(outbox.given_up for outbox in outboxes),
            adopted=max(0, len(self._journals) - 1),
            store_failures=self._coalescer.failures,
            journal_failure=self._failure,
        )

    async def _book(self, record: Record) -> None:
        own = self._own
        if own is None or (self._failure and self._settings.on_journal_failure == "serve"):
            self._book_volatile(record)
            return
        own.append(record)
        if self._failure and self._patience is None:
            raise JournalUnavailable(self._failure)
        on_disk = record.on_disk = self._loop.create_future()
        self._waiting.add(on_disk)
        try:
            await on_disk
        finally:
            self._waiting.discard(on_disk)

    def _book_volatile(self, record: Record) -> None:
        """There is no disk: the event goes to Redis from memory, as another producer's: its number is not kept."""
        outbox = self._outbox(record.event.tenant, f"{self._worker}-memory", memory_max=self._settings.volatile_max)
        if outbox.pending >= self._settings.volatile_max or self._closed:
            self._give_up(record)
            return
        outbox.committed(outbox.appended + 1, [record])
        self._account(outbox.tenant).booking_waits()

    def _on_committed(self, journal: Journal, committed: list[Committed]) -> None:
        if self._failure and journal is self._own:
            log.warning("the journal can be written again")
            self._failure = ""
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        for tenant, first, records in committed:
            outbox = self._outbox(tenant, journal.producer)
            for record in outbox.committed(first, records):
                journal.skip(tenant, outbox.appended)
                journal.append(record)
            for record in records:
                if record.on_disk is not None and not record.on_disk.done():
                    record.on_disk.set_result(None)
            self._account(tenant).booking_waits()

    def _on_failure(self, journal: Journal, why: str, failed: list[Record]) -> None:
        if journal is not self._own:
            log.error("An adopted journal cannot be written: %s", why)
            return
        if not self._failure:
            log.critical("The journal cannot be written: %s", why)
        self._failure = why
        for record in failed:  # the policy is to serve on
            self._book_volatile(record)
            if record.on_disk is not None and not record.on_disk.done():
                record.on_disk.set_result(None)
        if self._waiting and self._patience is None:
            self._patience = self._loop.call_later(self._settings.commit_wait_s, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        for on_disk in list(self._waiting):
            if not on_disk.done():
                on_disk.set_exception(JournalUnavailable(self._failure))

    def _note(self) -> None:
        """Writes down the requests that were not quick."""
        open_ = self._open
        records = [Record(open_[member][1](), open_[member][0]) for member in self._fresh if member in open_]
        self._fresh, self._fresher = self._fresher, []
        self._noting = self._loop.call_later(NOTE_AFTER_S, self._note) if self._fresh else None
        if records and self._own is not None and not self._failure:
            self._own.checkpoint(records, is_whole=False)

    async def _checkpoint(self) -> None:
        is_blank = True
        while True:
            await asyncio.sleep(self._settings.checkpoint_s)
            records: dict[str, Record] = {}
            while left := [member for member in self._open if member not in records]:
                for member in left[:SNAPSHOTS_AT_ONCE]:
                    lease, snapshot = self._open[member]
                    records[member] = Record(snapshot(), lease)
                if len(left) > SNAPSHOTS_AT_ONCE:
                    await asyncio.sleep(0)
            if self._own is not None and not self._failure and (records or not is_blank):
                is_blank = not records
                self._own.checkpoint([records[member] for member in records if member in self._open], is_whole=True)

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_renew_s)
            self.renew()

    async def _adopt(self) -> None:
        """Takes over what dead workers left, and tries again to have a journal of its own."""
        while True:
            await asyncio.sleep(ADOPT_EVERY_S)
            if self._own is None:
                await self._open_own()
            elif self._failure:
                self._own.checkpoint([], is_whole=True)  # so that there is something to try it with
            for claim, journal, positions in await asyncio.to_thread(self._claim_abandoned):
                log.warning("adopted the journal %s of a worker that is gone", journal.producer)
                self._take_over(claim, journal, positions)

    async def _open_own(self) -> None:
        """A journal of this worker's own: one that was left behind, or a new one."""
        try:
            found = await asyncio.to_thread(self._claim_one)
        except (OSError, JournalUnavailable) as error:
            if str(error) != self._failure:
                log.critical("No journal can be opened: %s", error)
            self._failure = str(error)
            return
        self._own = found[1]
        self._failure = ""
        self._take_over(*found)

    def _claim_one(self) -> tuple[Claim, Journal, dict[str, Position]]:
        for found in self._claim_abandoned(most=1):
            return found
        claim = self._directory.new()
        try:
            return claim, *self._open_journal(claim)
        except JournalUnavailable:
            claim.release()
            raise

    def _claim_abandoned(self, most: int = 100) -> list[tuple[Claim, Journal, dict[str, Position]]]:
        found = []
        for claim in self._directory.abandoned():
            try:
                found.append((claim, *self._open_journal(claim)))
            except JournalUnavailable as error:
                if is_corrupt(error.__cause__):
                    log.critical("%s; it is kept as %s: what it held and Redis lacks is lost", error, claim.set_aside())
                else:
                    log.log(logging.DEBUG if claim.path in self._left_alone else logging.ERROR, "%s", error)
                    self._left_alone.add(claim.path)
                    claim.release()
            if len(found) >= most:
                break
        return found

    def _open_journal(self, claim: Claim) -> tuple[Journal, dict[str, Position]]:
        journal = Journal(
            claim.path,
            claim.producer,
            loop=self._loop,
            now_ms=self._now_ms,
            on_committed=self._on_committed,
            on_failure=self._on_failure,
            gives_back=self._settings.on_journal_failure == "serve",
        )
        return journal, journal.open()

    def _take_over(self, claim: Claim, journal: Journal, positions: dict[str, Position]) -> None:
        journal.start()
        self._journals[journal.producer] = (claim, journal)
        for tenant, position in positions.items():
            self._outbox(tenant, journal.producer, appended=position.appended, shipped=position.shipped)
            self._account(tenant).reconnected(0)

    async def prune(self) -> None:
        """Lets go of what Redis has on its disk and the journals need not keep any more; happens by itself.

        Raises:
            StoreUnavailable: what Redis has on its disk is not known.
        """
        await self._mark_durable(prunes=True)
        await self._remove_finished()

    async def _make_durable(self) -> None:
        pruned_s = self._loop.time()
        while True:
            await asyncio.sleep(DURABLE_EVERY_S)
            try:
                if self._loop.time() - pruned_s > PRUNE_EVERY_S:
                    pruned_s = self._loop.time()
                    await self.prune()
                else:
                    await self._mark_durable(prunes=False)
                await self._rest_adopted()
            except StoreUnavailable as error:
                log.debug("nothing is known to be on Redis' disk: %s", error)

    async def _mark_durable(self, *, prunes: bool) -> None:
        news = [
            (outbox, outbox.applied)
            for outbox in self._outboxes.values()
            if outbox.verified and outbox.applied > outbox.durable
        ]
        if not (news or prunes):
            return
        await durable(self._redis)
        prune_before_ms = self._now_ms() - self._settings.journal_kept_s * 1000 if prunes else 0
        for producer, (_, journal) in list(self._journals.items()):
            shipped = {outbox.tenant: applied for outbox, applied in news if outbox.producer == producer}
            if shipped or prunes:
                journal.mark_shipped(shipped, prune_before_ms=prune_before_ms)
        for outbox, applied in news:
            outbox.durable = applied

    async def _remove_finished(self) -> None:
        """Adopted journals that keep nothing any more."""
        for producer, (claim, journal) in list(self._journals.items()):
            if journal is self._own or self._pends(producer) or not await asyncio.to_thread(journal.is_empty):
                continue
            await asyncio.to_thread(journal.close)
            claim.remove()
            del self._journals[producer]
            for account in self._accounts.values():
                account.outboxes = [outbox for outbox in account.outboxes if outbox.producer != producer]
            self._outboxes = {key: outbox for key, outbox in self._outboxes.items() if outbox.producer != producer}

    async def _rest_adopted(self) -> None:
        """Adopted journals that are in Redis hold no thread and no open file but their lock."""
        for producer, (_, journal) in list(self._journals.items()):
            if journal is not self._own and not self._pends(producer):
                await asyncio.to_thread(journal.rest)

    def _pends(self, producer: str) -> bool:
        """Whether Redis lacks anything of this journal."""
        return any(outbox.pending for outbox in self._outboxes.values() if outbox.producer == producer)

    def _on_connected(self, away_s: float) -> None:
        for account in self._accounts.values():
            account.reconnected(int(away_s * 1000))

    def _load(self, outbox: Outbox) -> None:
        """Fetches what `outbox` misses from its journal."""
        if outbox in self._loading:
            return
        self._loading.add(outbox)
        task = self._loop.create_task(self._load_missing(outbox), name=f"load {outbox!r}")
        task.add_done_callback(lambda _: self._loading.discard(outbox))

    async def _load_missing(self, outbox: Outbox) -> None:
        missing = outbox.missing
        if missing is None:
            return
        first = missing
        records: list[Record] = []
        if outbox.producer in self._journals:
            journal = self._journals[outbox.producer][1]
            limit = min(MEMORY_MAX, 4 * BATCH_MAX)
            try:
                first, records = await asyncio.to_thread(journal.read, outbox.tenant, missing, limit)
            except JournalUnavailable as error:
                log.error("what Redis lacks cannot be read: %s", error)
                await asyncio.sleep(1.0)
                self._loop.call_soon(self._account(outbox.tenant).booking_waits)
                return
        if outbox.missing == missing:
            outbox.loaded(first, records)
        self._loop.call_soon(self._account(outbox.tenant).booking_waits)

    def _give_up(self, record: Record) -> None:
        self._given_up += 1
        log.critical("A usage event could not be kept and leaves memory: %s", record.packed.decode())

    def _unbooked(self) -> int:
        return sum(account.unbooked for account in self._accounts.values())

    def _outbox(
        self, tenant: str, producer: str, *, appended: int = 0, shipped: int = 0, memory_max: int = MEMORY_MAX
    ) -> Outbox:
        outbox = self._outboxes.get((tenant, producer))
        if outbox is None:
            outbox = Outbox(tenant, producer, appended=appended, shipped=shipped, memory_max=memory_max)
            self._outboxes[tenant, producer] = outbox
            self._account(tenant).outboxes.append(outbox)
        return outbox

    def _account(self, tenant: str) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = TenantAccount(
                tenant,
                worker=self._worker,
                settings=self._settings,
                limits=self._limits_of(tenant),
                wake=self._coalescer.wake,
                load=self._load,
                create_future=self._loop.create_future,
            )
        return account
