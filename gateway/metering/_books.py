"""This worker's journals, its own and those it adopted, and the way of what is in them to Redis.

book      a record goes to the own journal and is on disk when that returns
ship      its outbox sends it with the tenant's account, in order
adopt     a journal whose worker is gone is taken over: what was open there has ended, what was not shipped is
prune     what Redis has on its own disk, and what has been kept long enough, leaves the journals
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from redis.asyncio import Redis

from gateway.store import StoreUnavailable, durable

from ._account import TenantAccount
from ._journal import Committed, Journal, JournalUnavailable, Position
from ._journals import Claim, JournalDirectory, is_corrupt
from ._outbox import BATCH_MAX, MEMORY_MAX, Outbox
from ._record import Record
from ._settings import LedgerSettings

log = logging.getLogger(__name__)

ADOPT_EVERY_S = 2.0
DURABLE_EVERY_S = 1.0
PRUNE_EVERY_S = 60.0


class Books:
    """`failure` is why the own journal cannot be written; empty when it can. `account_of` tells a tenant's account,
    whose outboxes are these. `worker` names what has no journal."""

    def __init__(
        self,
        redis: Redis,
        directory: Path,
        *,
        worker: str,
        settings: LedgerSettings,
        account_of: Callable[[str], TenantAccount],
        now_ms: Callable[[], int],
    ) -> None:
        self.failure = "it is not open yet"
        self._redis = redis
        self._directory = JournalDirectory(directory)
        self._worker = worker
        self._settings = settings
        self._account_of = account_of
        self._now_ms = now_ms
        self._loop = asyncio.get_running_loop()
        self._outboxes: dict[tuple[str, str], Outbox] = {}
        self._loading: set[Outbox] = set()
        self._own: Journal | None = None
        self._journals: dict[str, tuple[Claim, Journal]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._patience: asyncio.TimerHandle | None = None
        self._left_alone: set[Path] = set()
        self._given_up = 0
        self._closed = False

    @property
    def replayed(self) -> int:
        """Events that Redis lost and was sent again."""
        return sum(outbox.lost for outbox in self._outboxes.values())

    @property
    def given_up(self) -> int:
        """Events that neither Redis nor a journal has."""
        return self._given_up + sum(outbox.given_up for outbox in self._outboxes.values())

    @property
    def adopted(self) -> int:
        """Journals that are kept for others."""
        return max(0, len(self._journals) - 1)

    async def open(self) -> None:
        """A journal of this worker's own: one that was left behind, or a new one."""
        try:
            found = await asyncio.to_thread(self._claim_one)
        except (OSError, JournalUnavailable) as error:
            if str(error) != self.failure:
                log.critical("No journal can be opened: %s", error)
            self.failure = str(error)
            return
        self._own = found[1]
        self.failure = ""
        self._take_over(*found)

    async def book(self, record: Record) -> None:
        """Returns when `record` is on disk, or where the policy is to serve on without one.

        Raises:
            JournalUnavailable: the disk has failed for longer than `commit_wait_s`.
        """
        own = self._own
        if own is None or (self.failure and self._settings.on_journal_failure == "serve"):
            self._book_volatile(record)
            return
        own.append(record)
        if self.failure and self._patience is None:
            raise JournalUnavailable(self.failure)
        on_disk = record.on_disk = self._loop.create_future()
        self._waiting.add(on_disk)
        try:
            await on_disk
        finally:
            self._waiting.discard(on_disk)

    def checkpoint(self, records: list[Record], *, is_whole: bool) -> None:
        """Notes the open requests as they would be billed now: all of them (`is_whole`), or some more."""
        if self._own is not None and not self.failure:
            self._own.checkpoint(records, is_whole=is_whole)

    async def adopt(self) -> None:
        """Takes over what dead workers left, and tries again to have a journal of its own."""
        while True:
            await asyncio.sleep(ADOPT_EVERY_S)
            if self._own is None:
                await self.open()
            elif self.failure:
                self._own.checkpoint([], is_whole=True)  # so that there is something to try it with
            try:
                found = await asyncio.to_thread(self._claim_abandoned)
            except OSError as error:
                log.error("journals without a worker cannot be looked for: %s", error)
                continue
            for claim, journal, positions in found:
                log.warning("adopted the journal %s of a worker that is gone", journal.producer)
                self._take_over(claim, journal, positions)

    async def prune(self) -> None:
        """Lets go of what Redis has on its disk and the journals need not keep any more.

        Raises:
            StoreUnavailable: what Redis has on its disk is not known.
        """
        await self._mark_durable(prunes=True)
        await self._remove_finished()

    async def keep_durable(self) -> None:
        """Marks what Redis has on its disk, and prunes, until cancelled."""
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

    def load(self, outbox: Outbox) -> None:
        """Fetches what `outbox` misses from its journal."""
        if outbox in self._loading:
            return
        self._loading.add(outbox)
        task = self._loop.create_task(self._load_missing(outbox), name=f"load {outbox!r}")
        task.add_done_callback(lambda _: self._loading.discard(outbox))

    async def finish(self) -> None:
        """Writes what waits to the own journal, the last that does; what is not written is in the log."""
        self._closed = True
        if self._patience is not None:
            self._patience.cancel()
        own, self._own = self._own, None
        unwritten = await asyncio.to_thread(own.close) if own is not None else []
        await asyncio.sleep(0)  # what the journal said last comes first
        for record in unwritten:
            self._give_up(record)

    async def close(self) -> None:
        """Leaves the journals to whoever comes next."""
        for claim, journal in self._journals.values():
            await asyncio.to_thread(journal.close)
            claim.release()

    def _book_volatile(self, record: Record) -> None:
        """There is no disk: the event goes to Redis from memory, as another producer's: its number is not kept."""
        outbox = self._outbox(record.event.tenant, f"{self._worker}-memory", memory_max=self._settings.volatile_max)
        if outbox.pending >= self._settings.volatile_max or self._closed:
            self._give_up(record)
            return
        outbox.committed(outbox.appended + 1, [record])
        self._account_of(outbox.tenant).booking_waits()

    def _on_committed(self, journal: Journal, committed: list[Committed]) -> None:
        if self.failure and journal is self._own:
            log.warning("the journal can be written again")
            self.failure = ""
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
            self._account_of(tenant).booking_waits()

    def _on_failure(self, journal: Journal, why: str, failed: list[Record]) -> None:
        if journal is not self._own:
            log.error("An adopted journal cannot be written: %s", why)
            return
        if not self.failure:
            log.critical("The journal cannot be written: %s", why)
        self.failure = why
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
                on_disk.set_exception(JournalUnavailable(self.failure))

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
            self._account_of(tenant).reconnected(0)

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
            for tenant, of in list(self._outboxes):
                if of == producer:
                    self._account_of(tenant).outboxes.remove(self._outboxes.pop((tenant, of)))

    async def _rest_adopted(self) -> None:
        """Adopted journals that are in Redis hold no thread and no open file but their lock."""
        for producer, (_, journal) in list(self._journals.items()):
            if journal is not self._own and not self._pends(producer):
                await asyncio.to_thread(journal.rest)

    def _pends(self, producer: str) -> bool:
        """Whether Redis lacks anything of this journal."""
        return any(outbox.pending for outbox in self._outboxes.values() if outbox.producer == producer)

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
                self._loop.call_soon(self._account_of(outbox.tenant).booking_waits)
                return
        if outbox.missing == missing:
            outbox.loaded(first, records)
        self._loop.call_soon(self._account_of(outbox.tenant).booking_waits)

    def _give_up(self, record: Record) -> None:
        self._given_up += 1
        log.critical("A usage event could not be kept and leaves memory: %s", record.packed.decode())

    def _outbox(
        self, tenant: str, producer: str, *, appended: int = 0, shipped: int = 0, memory_max: int = MEMORY_MAX
    ) -> Outbox:
        outbox = self._outboxes.get((tenant, producer))
        if outbox is None:
            outbox = Outbox(tenant, producer, appended=appended, shipped=shipped, memory_max=memory_max)
            self._outboxes[tenant, producer] = outbox
            self._account_of(tenant).outboxes.append(outbox)
        return outbox
