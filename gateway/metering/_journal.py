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
from typing import Final, NamedTuple, TypeVar

import msgspec

from ._record import Record, pack_records, unpack_records

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
GATHER_S: Final = 0.002
"""Time from one commit's begin to the next's: under load a commit costs 0.1 to 0.3 ms of CPU, whatever it holds."""
BUSY_S: Final = 0.5
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
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


class _Work:
    """What waits to be written."""

    __slots__ = ("checkpoints", "prune_before_ms", "records", "shipped", "skips")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.checkpoints: list[_Checkpoint] = []
        self.shipped: dict[str, int] = {}
        self.skips: dict[str, int] = {}
        self.prune_before_ms = 0

    def __bool__(self) -> bool:
        return bool(self.records or self.checkpoints or self.shipped or self.skips or self.prune_before_ms)

    @property
    def is_plain(self) -> bool:
        """Whether it is records of one tenant and nothing else."""
        records = self.records
        if not records or self.checkpoints or self.shipped or self.skips or self.prune_before_ms:
            return False
        tenant = records[0].event.tenant
        return all(record.event.tenant == tenant for record in records)

    def put_before(self, later: _Work) -> None:
        """Takes in what gathered after this."""
        self.records += later.records
        self.checkpoints += later.checkpoints
        self.shipped.update(later.shipped)
        self.skips.update(later.skips)
        self.prune_before_ms = max(self.prune_before_ms, later.prune_before_ms)


_Told = TypeVar("_Told")


class Journal:
    """One journal file. The caller holds its lock.

    `append` and the others return at once. Both callbacks are called in `loop`: `on_committed` after each commit that
    wrote records, and after the first that succeeded again, `on_failure` with the reason after each that failed.
    """

    def __init__(
        self,
        path: Path,
        producer: str,
        *,
        loop: asyncio.AbstractEventLoop,
        now_ms: Callable[[], int],
        on_committed: Callable[[Journal, list[Committed]], None],
        on_failure: Callable[[Journal, str], None],
    ) -> None:
        """`producer` names a new journal; one that exists keeps its own name."""
        self.path = path
        self.producer = producer
        self._loop = loop
        self._now_ms = now_ms
        self._on_committed = on_committed
        self._on_failure = on_failure
        self._work = _Work()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._asleep = True
        self._closing = False
        self._database: sqlite3.Connection | None = None
        self._appended: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name=f"journal-{producer}", daemon=True)

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
        with self._lock:
            self._work.records.append(record)
        self._rouse()

    def checkpoint(self, records: list[Record], *, is_whole: bool) -> None:
        """Has the open requests written down as they would be billed now: all of them (`is_whole`), or some more."""
        with self._lock:
            if is_whole:
                self._work.checkpoints.clear()
            self._work.checkpoints.append(_Checkpoint(records, is_whole))
        self._rouse()

    def mark_shipped(self, shipped: Mapping[str, int], *, prune_before_ms: int) -> None:
        """Redis has these on its disk: their rows go once they were committed before `prune_before_ms`."""
        with self._lock:
            self._work.shipped.update(shipped)
            self._work.prune_before_ms = prune_before_ms
        self._rouse()

    def skip(self, tenant: str, last: int) -> None:
        """Redis has numbers up to `last` that this file has lost: new records are numbered after it."""
        with self._lock:
            self._work.skips[tenant] = last
        self._rouse()

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

    def take_back(self) -> list[Record]:
        """What waits to be written, which now will not be."""
        with self._lock:
            records, self._work.records = self._work.records, []
        return records

    def close(self) -> list[Record]:
        """Writes what waits and stops the thread. Returns what could not be written. Blocks."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._close_database()
        return self._work.records

    def is_empty(self) -> bool:
        """Whether no record is kept any more. Blocks for a moment."""
        with closing(sqlite3.connect(self.path)) as database:
            (count,) = database.execute("SELECT count(*) FROM records").fetchone()
        return bool(count == 0)

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.set()

    def _run(self) -> None:
        retry_s = RETRY_MIN_S
        fails = False
        while True:
            self._wake.wait()
            self._wake.clear()
            begun_s = time.monotonic()
            with self._lock:
                work, self._work = self._work, _Work()
            if work:
                try:
                    committed = self._commit(work)
                except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
                    self._put_back(work)
                    self._tell(self._on_failure, str(error) or repr(error))
                    fails = True
                    if self._closing:
                        return
                    time.sleep(retry_s)
                    retry_s = min(RETRY_MAX_S, 2 * retry_s)
                    self._wake.set()
                    continue
                if committed or fails:
                    self._tell(self._on_committed, committed)
                retry_s, fails = RETRY_MIN_S, False
            if self._closing:
                if not self._work:
                    return
                self._wake.set()
                continue
            rest_s = begun_s + GATHER_S - time.monotonic()
            if work.records and rest_s > 0:
                time.sleep(rest_s)
            self._asleep = True
            if self._work:  # came before `_asleep` was set, and so roused nobody
                self._asleep = False
                self._wake.set()

    def _put_back(self, work: _Work) -> None:
        with self._lock:
            work.put_before(self._work)
            self._work = work
        if self._database is not None and self._database.in_transaction:
            try:
                self._database.rollback()
            except sqlite3.Error:
                self._close_database()

    def _tell(self, callback: Callable[[Journal, _Told], None], value: _Told) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, self, value)
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
        self._appended = dict(database.execute("SELECT tenant, max(last) FROM records GROUP BY tenant"))
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
        for (body,) in database.execute("SELECT body FROM records WHERE committed_ms >= ?", (since_ms,)):
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
            if work.is_plain:  # one statement is a transaction by itself, and lets go of the interpreter less often
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
                database.execute(
                    "DELETE FROM records WHERE committed_ms < ? AND last <= "
                    "coalesce((SELECT last FROM shipped WHERE shipped.tenant = records.tenant), 0)",
                    (work.prune_before_ms,),
                )
            database.execute("COMMIT")
        except BaseException:
            self._appended = before
            raise
        return committed

    def _insert(self, database: sqlite3.Connection, records: list[Record]) -> list[Committed]:
        by_tenant: dict[str, list[Record]] = {}
        for record in records:
            by_tenant.setdefault(record.event.tenant, []).append(record)
        now_ms = self._now_ms()
        committed = []
        for tenant, of_tenant in by_tenant.items():
            first = self._appended.get(tenant, 0) + 1
            last = self._appended[tenant] = first + len(of_tenant) - 1
            database.execute(
                "INSERT INTO records (tenant, first, last, committed_ms, body) VALUES (?, ?, ?, ?, ?)",
                (tenant, first, last, now_ms, pack_records(of_tenant)),
            )
            committed.append(Committed(tenant, first, of_tenant))
        return committed

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except sqlite3.Error as error:
                log.error("%s: %s", self.path, error)
