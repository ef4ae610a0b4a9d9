"""One tenant within one band: what it waits for, what it has running, and what it was charged for."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from ._work import Work

SIZES = 40
"""Backlogs are summed by the power of two of their cost: costs of 2^40 share the last sum."""


class Entry:
    """A work as the queue keeps it, from its arrival to its end. `charged` is what its tenant was charged, `predicted`
    whether the rate was known when it was let wait, and `below_share` whether its tenant was that then."""

    __slots__ = (
        "below_share",
        "charged",
        "cost",
        "flow",
        "predicted_ms",
        "rank",
        "runs",
        "sequence",
        "started_ms",
        "waits",
        "work",
    )

    def __init__(self, work: Work, flow: Flow, cost: float, sequence: int) -> None:
        self.work = work
        self.flow = flow
        self.cost = cost
        self.sequence = sequence
        self.rank = 1 if work.retry else 0
        self.charged = 0.0
        self.started_ms = 0
        self.waits = False
        self.runs = False
        self.predicted_ms: float | None = None
        self.below_share = False


class Flow:
    """`counter` is service per unit of weight; `running` and `backlog` are costs, `elsewhere` is what runs of it at
    other gateways.

    `overtaken` is what others were given that came behind its head while its head did not fit.
    """

    __slots__ = (
        "_dead",
        "_first",
        "_heap",
        "_sizes",
        "backlog",
        "band",
        "counter",
        "elsewhere",
        "given",
        "max_share",
        "order",
        "overtaken",
        "running",
        "sequences",
        "shortest_first",
        "tenant",
        "waiting",
        "weight",
    )

    def __init__(self, tenant: str, band: int, order: int, *, weight: float) -> None:
        self.tenant = tenant
        self.band = band
        self.order = order
        self.weight = weight
        self.max_share = 1.0
        self.counter = 0.0
        self.given = 0.0
        self.running = 0.0
        self.elsewhere = 0.0
        self.sequences = 0
        self.backlog = 0.0
        self.waiting = 0
        self.overtaken = 0.0
        self._first = 0.0
        self.shortest_first = False
        self._sizes: list[float] = []
        self._heap: list[tuple[int, float, int, Entry]] = []
        self._dead = 0

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.waiting > 0 or self.sequences > 0

    @property
    def head(self) -> Entry:
        """The one that goes first; something must wait."""
        while not self._heap[0][3].waits:
            heappop(self._heap)
            self._dead -= 1
        return self._heap[0][3]

    def go_by_size(self, shortest_first: bool) -> None:
        """By size, not by arrival; or by arrival again. While something waits its order stays."""
        if not self.waiting:
            self.shortest_first = shortest_first
            self._sizes = [0.0] * SIZES if shortest_first else []

    def ahead(self, cost: float, *, retry: bool) -> float:
        """The cost of those that would go before a newcomer that costs `cost`."""
        if retry:
            return self.backlog
        if not self.shortest_first:
            return self._first
        size = _size(cost)
        return sum(self._sizes[:size]) + self._sizes[size] / 2

    def push(self, entry: Entry) -> None:
        entry.waits = True
        size = entry.cost if self.shortest_first else 0.0
        heappush(self._heap, (entry.rank, size, entry.sequence, entry))
        self.waiting += 1
        self._count(entry, entry.cost)

    def remove(self, entry: Entry) -> None:
        """Takes out one that waits, wherever it stands."""
        entry.waits = False
        self.waiting -= 1
        if self._heap[0][3] is entry:
            heappop(self._heap)
            self.overtaken = 0.0
        else:
            self._dead += 1
            if self._dead > len(self._heap) // 2:
                self._heap = [item for item in self._heap if item[3].waits]
                heapify(self._heap)
                self._dead = 0
        self._count(entry, -entry.cost)
        if not self.waiting:
            self._heap.clear()
            self._dead = 0
            self.overtaken = self.backlog = self._first = 0.0
            self._sizes = [0.0] * len(self._sizes)

    def _count(self, entry: Entry, cost: float) -> None:
        self.backlog += cost
        if entry.rank <= 0:
            self._first += cost
            if self.shortest_first:
                self._sizes[_size(entry.cost)] += cost


def _size(cost: float) -> int:
    return min(SIZES - 1, int(cost).bit_length())
