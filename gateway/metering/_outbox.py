"""What one journal has of one tenant and Redis has not: what to send next, and from where.

No I/O. Redis says with every call which record of this producer it has applied last. A number lower than one it said
before means that it lost some (a fail-over, an older file, a flush), and they are sent again from the journal; a higher
one, that an answer was lost. So a resend is the same act as a send, and nobody keeps a set of what has been seen.
"""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from ._record import Record

log = logging.getLogger(__name__)

BATCH_MAX: Final = 256
"""Records of one call: at about 5 µs each in Redis, one account keeps the others waiting for little over a ms."""
MEMORY_MAX: Final = 2048
"""Records kept in memory to be sent; what comes beyond is read from the journal again when its turn comes."""


class Batch(NamedTuple):
    """Records numbered from `first`. `skips`: the ones before are given up, the journal does not have them any more."""

    first: int
    skips: bool
    records: list[Record]


class Outbox:
    """The records of one producer and tenant on their way to Redis."""

    def __init__(
        self, tenant: str, producer: str, *, appended: int = 0, shipped: int = 0, memory_max: int = MEMORY_MAX
    ) -> None:
        """`appended` and `shipped` are the last on disk and the last known to be in Redis."""
        self.tenant = tenant
        self.producer = producer
        self.appended = appended
        self.applied = shipped
        """The last that Redis said it has."""
        self.verified = appended == 0
        """Whether Redis has said where it stands since the connection was made; of a new journal it has nothing."""
        self.confirmed = shipped
        """The last that Redis ever said it has."""
        self.durable = shipped
        """The last that Redis said it has on its disk."""
        self.lost = 0
        """Records that Redis had and lost, and that were sent again."""
        self.given_up = 0
        """Records that Redis lost and the journal does not keep any more."""
        self._memory: deque[Record] = deque()
        self._memory_first = appended + 1
        self._skips = False
        self._polls = False
        self._memory_max = memory_max

    def __repr__(self) -> str:
        return f"Outbox({self.tenant!r}, {self.producer}, {self.applied} of {self.appended})"

    @property
    def pending(self) -> int:
        """Records Redis has not confirmed."""
        return self.appended - self.applied

    @property
    def missing(self) -> int | None:
        """The number of the record that has to be read from the journal before anything can be sent, if so."""
        if not self.verified or not self.pending or self._has(self.applied + 1):
            return None
        return self.applied + 1

    @property
    def wants_call(self) -> bool:
        """Whether there is something to ask or send."""
        return not self.verified or self._polls or (self.pending > 0 and self.missing is None)

    @property
    def replays(self) -> bool:
        """Whether Redis lacks records it once had: until it has them again, money spent looks unspent there."""
        return self.applied < self.confirmed

    def poll(self) -> None:
        """Has Redis asked where it stands, with the next call."""
        self._polls = True

    def suspect(self) -> None:
        """The connection was lost or is new: where Redis stands has to be asked before anything is sent."""
        self.verified = False

    def committed(self, first: int, records: list[Record]) -> list[Record]:
        """`records`, numbered from `first`, are in the journal now. Returns those that need other numbers, since Redis
        says that it has theirs: the journal had lost what they were given to."""
        overlap = self.appended + 1 - first
        assert overlap >= 0, "the journal numbers records without a gap"
        renumbered = records[:overlap]
        first, records = first + overlap, records[overlap:]
        self.appended += len(records)
        end = self._memory_first + len(self._memory)
        if not self._memory:
            self._memory_first = end = first
        if end == first and len(self._memory) + len(records) <= self._memory_max:
            self._memory.extend(records)
        return renumbered

    def loaded(self, first: int, records: list[Record]) -> None:
        """What the journal had from `missing` on. A later `first`, or nothing, means that the others are not kept."""
        wanted = self.applied + 1
        if not records:
            first = self.appended + 1
        if first > wanted:
            log.critical(
                "Redis lost %d usage events of %s that the journal does not keep any more", first - wanted, self.tenant
            )
            self.given_up += first - wanted
            self.applied = first - 1
            self.confirmed = max(self.confirmed, self.applied)
            self._skips = True
        self._memory = deque(records)
        self._memory_first = first

    def batch(self) -> Batch | None:
        """What to send now. The same again until `told` says that it has arrived."""
        if not self.verified or not self.pending or not self._has(self.applied + 1):
            return None
        skip = self.applied + 1 - self._memory_first
        return Batch(self.applied + 1, self._skips, list(islice(self._memory, skip, skip + BATCH_MAX)))

    def told(self, last: int) -> list[Record]:
        """Redis has applied this producer's records up to `last`. Returns those of which that is news."""
        self._polls = False
        if self._skips and last < self.applied:
            self.verified = True  # it waits for the batch that skips
            return []
        self._skips = False
        if last < self.applied:
            log.warning("Redis lost %d usage events of %s; they are sent again", self.applied - last, self.tenant)
            self.lost += self.applied - last
        elif last > self.appended:
            log.critical("Redis has %d usage events of %s that the journal lost", last - self.appended, self.tenant)
            self.appended = last
            self._memory.clear()
        self.verified = True
        self.applied = last
        self.confirmed = max(self.confirmed, last)
        booked: list[Record] = []
        while self._memory and self._memory_first <= last:
            booked.append(self._memory.popleft())
            self._memory_first += 1
        if not self._memory:
            self._memory_first = max(self._memory_first, last + 1)
        return booked

    def _has(self, number: int) -> bool:
        return self._memory_first <= number < self._memory_first + len(self._memory)
