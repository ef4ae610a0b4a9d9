"""The requests that run: noted in the journal, so that a worker that dies bills what it had delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.admission import Lease

from ._event import UsageEvent
from ._record import Record

NOTE_AFTER_S = 0.025
"""A request open for longer is written down, so that what it cost is explained if this worker dies. A snapshot and its
row cost some 25 µs; what is quicker than this, errors and the shortest answers, costs nothing here."""
SNAPSHOTS_AT_ONCE = 200
"""At 5 to 20 µs each, the event loop is held for a few ms at most."""

Snapshot = Callable[[], UsageEvent]


class Checkpoint(Protocol):
    """Has records written down: all that are open (`is_whole`), or some more."""

    def __call__(self, records: list[Record], *, is_whole: bool) -> None: ...


class OpenRequests:
    """Asks each for a snapshot after 25 ms, then all of them from time to time, and hands those to `checkpoint`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, tuple[Lease, Snapshot]] = {}
        self._fresh: list[str] = []
        self._fresher: list[str] = []
        self._noting: asyncio.TimerHandle | None = None

    def add(self, lease: Lease, snapshot: Snapshot) -> None:
        """A request runs. `snapshot` tells the event as it would be if this worker died now."""
        self._open[lease.member] = (lease, snapshot)
        self._fresher.append(lease.member)
        if self._noting is None:
            self._noting = self._loop.call_later(NOTE_AFTER_S, self._note)

    def remove(self, lease: Lease) -> None:
        """It has ended."""
        self._open.pop(lease.member, None)

    async def keep_noting(self, every_s: float) -> None:
        """Notes all that are open, until cancelled."""
        is_blank = True
        while True:
            await asyncio.sleep(every_s)
            records: dict[str, Record] = {}
            while left := [member for member in self._open if member not in records]:
                for member in left[:SNAPSHOTS_AT_ONCE]:
                    lease, snapshot = self._open[member]
                    records[member] = Record(snapshot(), lease)
                if len(left) > SNAPSHOTS_AT_ONCE:
                    await asyncio.sleep(0)
            if records or not is_blank:
                is_blank = not records
                self._checkpoint([records[member] for member in records if member in self._open], is_whole=True)

    def close(self) -> None:
        """Notes nothing any more."""
        if self._noting is not None:
            self._noting.cancel()

    def _note(self) -> None:
        """Those that were not quick."""
        open_ = self._open
        records = [Record(open_[member][1](), open_[member][0]) for member in self._fresh if member in open_]
        self._fresh, self._fresher = self._fresher, []
        self._noting = self._loop.call_later(NOTE_AFTER_S, self._note) if self._fresh else None
        if records:
            self._checkpoint(records, is_whole=False)
