"""One worker's journal: what ended, on disk before its answer ends, and what is open, about once a second.

A SQLite file (WAL, `synchronous=FULL`) with one thread that writes: whatever gathered while it was at the last commit
goes with the next, so all answers that end together share one fsync. The records that one commit has of one tenant are
one row, numbered by the producer's sequence for that tenant; that number is what makes a resend to Redis harmless.

A commit that fails is rolled back and tried again with everything that has gathered since.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple, TypeVarTuple

import msgspec

from ._record import Record, pack_records, unpack_records

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
GATHER_S: Final = 0.005
GATHER_RECORDS: Final = 5
"""A commit costs 0.12 to 0.3 ms of CPU whatever it holds. So the next one begins so long after the last, or sooner if
so many records come meanwhile at the rate of late; an answer that ends alone does not wait for others. More saves CPU
where requests come at a steady rate, and costs it where each client waits for its answer before it asks again."""
BUSY_S: Final = 0.5
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
ROWS_AT_ONCE: Final = 64
"""Rows of one statement: a third cheaper than a statement each."""
PRUNE_ROWS_MAX: Final = 2000
CLOCK_SLACK_MS: Final = 10_000
"""A checkpoint's open requests are looked for among what was committed since so long before it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (producer TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS records_by_tenant ON records (tenant, last);
CREATE TABLE IF NOT EXISTS shipped (tenant TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open_requests (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body BLOB NOT NULL);
"""

# A tenant at a time: a journal holds days of rows, and GROUP BY would read all of them.
_LAST_BY_TENANT = """
WITH RECURSIVE tenants (tenant) AS (
    SELECT min(tenant) FROM records
    UNION ALL
    SELECT (SELECT min(tenant) FROM records WHERE tenant > tenants.tenant) FROM tenants WHERE tenant IS NOT NULL)
SELECT tenant, (SELECT max(last) FROM records WHERE records.tenant = tenants.tenant)
FROM tenants WHERE tenant IS NOT NULL
"""


class JournalUnavailable(Exception):
    """The journal cannot be written or read; the message says why."""


class Committed(NamedTuple):
    """Records of one tenant that are on disk now, numbered from `first`."""

    tenant: str
    first: int
    records: list[Record]


class Position(NamedTuple):
    """How far one tenant's records go: the last on disk, the last that Redis has on its disk."""

    appended: int
    shipped: int


class _Checkpoint(NamedTuple):
    records: list[Record]
    is_whole: bool


class _Shipped(NamedTuple):
    last: Mapping[str, int]
    prune_before_ms: int


class _Skip(NamedTuple):
    tenant: str
    last: int


class _Close(NamedTuple):
    """The last word."""


_Item = Record | _Checkpoint | _Shipped | _Skip | _Close


class _Work:
    """What one commit writes."""

    __slots__ = ("checkpoints", "closes", "prune_before_ms", "records", "shipped", "skips")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.checkpoints: list[_Checkpoint] = []
        self.shipped: dict[str, int] = {}
        self.skips: dict[str, int] = {}
        self.prune_before_ms = 0
        self.closes = False

    def take(self, item: _Item) -> None:
        """Adds what has come."""
        match item:
            case Record():
                self.records.append(item)
            case _Checkpoint():
                if item.is_whole:
                    self.checkpoints.clear()
                self.checkpoints.append(item)
            case _Shipped():
                self.shipped.update(item.last)
                self.prune_before_ms = max(self.prune_before_ms, item.prune_before_ms)
            case _Skip():
                self.skips[item.tenant] = item.last
            case _Close():
                self.closes = True

    @property
    def is_plain(self) -> bool:
        """Whether it is records and nothing else."""
        return not (self.checkpoints or self.shipped or self.skips or self.prune_before_ms)


_INSERT = "INSERT INTO records (tenant, first, last, committed_ms, body) VALUES (?, ?, ?, ?, ?)"
_ROW = _INSERT.count("?")

_Told = TypeVarTuple("_Told")


class Journal:
    """One journal file. The caller holds its lock.

    `append` and the others return at once. Both callbacks are called in `loop`: `on_committed` after each commit that
    wrote records, and after the first that succeeded again, `on_failure` with the reason after each that failed.
    With `gives_back`, it gets the records too, which then are not tried again.
    """

    def __init__(
        self,
        path: Path,
        producer: str,
        *,
        loop: asyncio.AbstractEventLoop,
        now_ms: Callable[[], int],
        on_committed: Callable[[Journal, list[Committed]], None],
        on_failure: Callable[[Journal, str, list[Record]], None],
        gives_back: bool = False,
    ) -> None:
        """`producer` names a new journal; one that exists keeps its own name."""
        self.path = path
        self.producer = producer
        self._loop = loop
        self._now_ms = now_ms
        self._on_committed = on_committed
        self._on_failure = on_failure
        self._gives_back = gives_back
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._unwritten: list[Record] = []
        self._database: sqlite3.Connection | None = None
        self._appended: dict[str, int] = {}
        self._rests = False
        self._thread = self._new_thread()

    def open(self) -> dict[str, Position]:
        """Opens or makes the file, turns what a dead worker left open into events, and starts the thread. Returns how
        far each tenant's records go. Blocks.

        Raises:
            JournalUnavailable: the file cannot be used. `start` may still be called: it is tried again with each
                commit, as a new journal.
        """
        try:
            positions = self._open()
        except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
            self._close_database()
            raise JournalUnavailable(f"{self.path}: {error}") from error
        return positions

    def start(self) -> None:
        """Starts the thread that writes."""
        self._thread.start()

    def append(self, record: Record) -> None:
        """Has `record` written with the next commit."""
        self._inbox.put(record)

    def checkpoint(self, records: list[Record], *, is_whole: bool) -> None:
        """Has the open requests written down as they would be billed now: all of them (`is_whole`), or some more."""
        self._inbox.put(_Checkpoint(records, is_whole))

    def mark_shipped(self, last: Mapping[str, int], *, prune_before_ms: int) -> None:
        """Redis has these on its disk: their rows go once they were committed before `prune_before_ms`."""
        self._inbox.put(_Shipped(last, prune_before_ms))
        if self._rests:
            self._rests = False
            self._thread.start()

    def skip(self, tenant: str, last: int) -> None:
        """Redis has numbers up to `last` that this file has lost: new records are numbered after it."""
        self._inbox.put(_Skip(tenant, last))

    def read(self, tenant: str, first: int, limit: int) -> tuple[int, list[Record]]:
        """At least one record of a tenant from `first` on if there is any, up to about `limit`, and the number of the
        first of them: later than asked when earlier ones have been given up. Blocks; for any thread.

        Raises:
            JournalUnavailable: the file cannot be read.
        """
        found: list[Record] = []
        start = first
        try:
            with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as database:
                rows = database.execute(
                    "SELECT first, body FROM records WHERE tenant = ? AND last >= ? ORDER BY last", (tenant, first)
                )
                for row_first, body in rows:
                    records = unpack_records(body)
                    if not found:
                        start = max(first, row_first)
                        records = records[start - row_first :]
                    found += records
                    if len(found) >= limit:
                        break
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise JournalUnavailable(f"{self.path}: {error}") from error
        return start, found

    def close(self) -> list[Record]:
        """Writes what waits and stops the thread. Returns what could not be written. Blocks."""
        self._inbox.put(_Close())
        if self._thread.ident is not None:
            self._thread.join()
        self._close_database()
        return self._unwritten

    def rest(self) -> None:
        """Stops the thread and closes the file until `mark_shipped`: an adopted journal whose records are all in Redis
        has nothing else to write, and there may be hundreds. Blocks; only `read` may be called meanwhile."""
        if self._rests:
            return
        self.close()
        self._thread = self._new_thread()
        self._rests = self._inbox.empty()
        if not self._rests:
            self._thread.start()

    def is_empty(self) -> bool:
        """Whether no record is kept any more. Blocks for a moment."""
        with closing(sqlite3.connect(self.path)) as database:
            (is_any,) = database.execute("SELECT EXISTS (SELECT 1 FROM records)").fetchone()
        return not is_any

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=f"journal-{self.producer}", daemon=True)

    def _run(self) -> None:
        rest_s, retry_s = 0.0, RETRY_MIN_S
        work, fails = _Work(), False
        while not work.closes:
            if not fails:
                work.take(self._inbox.get())
            while not self._inbox.empty():
                work.take(self._inbox.get())
            begun_s = time.monotonic()
            try:
                committed = self._commit(work)
            except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
                self._roll_back()
                fails = True
                failed, work.records = (work.records, []) if self._gives_back else ([], work.records)
                self._tell(self._on_failure, str(error) or repr(error), failed)
                if not work.closes:
                    time.sleep(retry_s)
                    retry_s = min(RETRY_MAX_S, 2 * retry_s)
                continue
            if committed or fails:
                self._tell(self._on_committed, committed)
            retry_s, fails = RETRY_MIN_S, False
            if work.records:
                rest_s = min(GATHER_S, GATHER_RECORDS * (rest_s + time.monotonic() - begun_s) / len(work.records))
                if not work.closes:
                    time.sleep(max(0.0, begun_s + rest_s - time.monotonic()))
            work = work if work.closes else _Work()
        self._unwritten = work.records if fails else []

    def _roll_back(self) -> None:
        if self._database is not None and self._database.in_transaction:
            try:
                self._database.rollback()
            except sqlite3.Error:
                self._close_database()

    def _tell(self, callback: Callable[[Journal, *_Told], None], *told: *_Told) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, self, *told)
        except RuntimeError:
            log.debug("the event loop has ended before the journal")

    def _open(self) -> dict[str, Position]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = self._database = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
        )
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise OSError(f"written by a newer gateway (schema {version}); this one knows {SCHEMA_VERSION}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        named = database.execute("SELECT producer FROM journal").fetchone()
        if named is None:
            database.execute("INSERT INTO journal VALUES (?)", (self.producer,))
        else:
            self.producer = named[0]
        self._appended = dict(database.execute(_LAST_BY_TENANT))
        shipped = dict(database.execute("SELECT tenant, last FROM shipped"))
        for tenant, last in shipped.items():
            self._appended[tenant] = max(last, self._appended.get(tenant, 0))
        self._settle_open(database)
        return {tenant: Position(last, shipped.get(tenant, 0)) for tenant, last in self._appended.items()}

    def _settle_open(self, database: sqlite3.Connection) -> None:
        """What a dead worker left open ends now, billed at its last checkpoint."""
        rows = database.execute("SELECT at_ms, body FROM open_requests ORDER BY id").fetchall()
        if not rows:
            return
        left = {record.lease.member: record for _, body in rows for record in unpack_records(body) if record.lease}
        since_ms = rows[0][0] - CLOCK_SLACK_MS
        with closing(database.execute("SELECT committed_ms, body FROM records ORDER BY id DESC")) as newest_first:
            for committed_ms, body in newest_first:
                if committed_ms < since_ms:
                    break
                for record in unpack_records(body):
                    if record.lease is not None:
                        left.pop(record.lease.member, None)
        if left:
            log.warning("%s: %d requests were open when their gateway died", self.path.name, len(left))
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM open_requests")
        self._insert(database, list(left.values()))
        database.execute("COMMIT")

    def _commit(self, work: _Work) -> list[Committed]:
        database = self._database
        if database is None:
            self._open()
            database = self._database
            assert database is not None
        before = dict(self._appended)
        try:
            if work.is_plain and len(work.records) <= ROWS_AT_ONCE:  # one statement is a transaction by itself
                return self._insert(database, work.records)
            for tenant, last in work.skips.items():
                self._appended[tenant] = max(last, self._appended.get(tenant, 0))
            database.execute("BEGIN IMMEDIATE")
            committed = self._insert(database, work.records)
            for checkpoint in work.checkpoints:
                if checkpoint.is_whole:
                    database.execute("DELETE FROM open_requests")
                if checkpoint.records:
                    database.execute(
                        "INSERT INTO open_requests (at_ms, body) VALUES (?, ?)",
                        (self._now_ms(), pack_records(checkpoint.records)),
                    )
            if work.shipped:
                database.executemany("INSERT OR REPLACE INTO shipped VALUES (?, ?)", work.shipped.items())
            if work.prune_before_ms:
                self._prune(database, work.prune_before_ms)
            database.execute("COMMIT")
        except BaseException:
            self._appended = before
            raise
        return committed

    def _prune(self, database: sqlite3.Connection, before_ms: int) -> None:
        """Deletes the oldest rows, a bounded number at once: the answers that end meanwhile wait for this commit."""
        shipped = dict(database.execute("SELECT tenant, last FROM shipped"))
        done = []
        with closing(
            database.execute("SELECT id, tenant, last, committed_ms FROM records ORDER BY id")
        ) as oldest_first:
            for row, tenant, last, committed_ms in oldest_first:
                if committed_ms >= before_ms:
                    break
                if last <= shipped.get(tenant, 0):
                    done.append((row,))
                if len(done) >= PRUNE_ROWS_MAX:
                    self._inbox.put(_Shipped({}, before_ms))
                    break
        database.executemany("DELETE FROM records WHERE id = ?", done)

    def _insert(self, database: sqlite3.Connection, records: list[Record]) -> list[Committed]:
        by_tenant: dict[str, list[Record]] = {}
        for record in records:
            by_tenant.setdefault(record.event.tenant, []).append(record)
        now_ms = self._now_ms()
        committed: list[Committed] = []
        rows: list[str | int | bytes] = []
        for tenant, of_tenant in by_tenant.items():
            first = self._appended.get(tenant, 0) + 1
            last = self._appended[tenant] = first + len(of_tenant) - 1
            rows += (tenant, first, last, now_ms, pack_records(of_tenant))
            committed.append(Committed(tenant, first, of_tenant))
        for start in range(0, len(rows), _ROW * ROWS_AT_ONCE):
            some = rows[start : start + _ROW * ROWS_AT_ONCE]
            database.execute(_INSERT + ", (?, ?, ?, ?, ?)" * (len(some) // _ROW - 1), some)
        return committed

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except sqlite3.Error as error:
                log.error("%s: %s", self.path, error)
