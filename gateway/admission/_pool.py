"""One worker's part in what a model's replicas can take together: what it tells the other workers, and what it makes of
what it hears. The exchange itself, about twice a second, is the store's.

One worker, the leader, adapts the limits of each replica from what all have measured; all follow them. Of each limit
every worker has been granted a share; the store grants no more than there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ._knee import Knee, KneeLimits, KneeReport
from ._queue import FairQueue
from ._shares import targets

MOST_TENANTS = 100
"""So many of a worker's tenants are told by name: eight workers' take two milliseconds to divide among."""
FIRST_PART = 8
"""A worker that has never heard of the others takes itself for one of so many."""


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What one worker tells: what its tenants run and wait for, as its queue has it, how many requests wait, the time
    between tokens that its classes ask for (ms, 0: none), and its replicas."""

    demand: dict[str, tuple[float, int, float]]
    queued: int
    itl_ms: int
    replicas: dict[str, KneeReport]


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `leads`: this worker is the one that adapts the limits. `limits` are all workers' by replica:
    sequences, prefill tokens, resident tokens (-1: no bound). `grants` are this one's: sequences, and whether it has
    the lane for prompts larger than P (1), and how many are left. `others` is what the other workers told last."""

    leads: bool
    limits: Sequence[tuple[str, int, int, int]]
    grants: Sequence[tuple[str, int, int, int]]
    others: Mapping[str, Told]


class Pool:
    """Decides for one worker and model; no clock and no I/O. `name` is the worker's. `knees` are by replica."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.leads = False
        self.queued_elsewhere = 0
        self.itl_ms_elsewhere: int | None = None
        """The shortest time between tokens that classes at other workers ask for."""
        self._others: Mapping[str, Told] = {}
        self._has_heard = False
        self._told_queued = 0
        self._granted: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._may_get_more = False

    @property
    def alone(self) -> bool:
        """Whether nobody else was heard."""
        return self._has_heard and not self._others

    @property
    def asks_early(self) -> bool:
        """Whether a request that finds no room should not wait for the next exchange: the others do not know that one
        waits here, or there may be more to get."""
        return not self.alone and (self._may_get_more or not self._told_queued)

    def admit(self, knee: Knee) -> None:
        """A replica that is used from now on: until shares of it have been granted, a small one."""
        if not self.alone:
            granted = max(1, knee.limits.sequences // FIRST_PART)
            knee.share = knee.shared(granted, workers=FIRST_PART, lane=not self._has_heard)

    def lost(self, knees: Mapping[str, Knee]) -> None:
        """The store is away: the last shares stay, but none is less than an even part. All together have at most twice
        the limit then, where everybody was idle but those who had it all."""
        if self._others:
            for knee in knees.values():
                workers = 1 + len(self._others)
                granted = max(knee.limits.sequences // workers, 0 if knee.share is None else knee.share.sequences)
                knee.share = knee.shared(granted, workers=workers, lane=knee.share is None or knee.share.lane)

    def told(self, queue: FairQueue, itl_ms: int | None, knees: Mapping[str, Knee]) -> Told:
        """What the others are told now; `itl_ms` is what this worker's classes ask for."""
        self._told_queued = len(queue)
        return Told(
            self._shortened(queue.demand()),
            len(queue),
            itl_ms or 0,
            {replica: knee.report() for replica, knee in knees.items()},
        )

    def _shortened(self, demand: dict[str, tuple[float, int, float]]) -> dict[str, tuple[float, int, float]]:
        """With many tenants, those that want most by name, and the others of each band together as one that asks
        nobody else: a tenant's name has no space."""
        if len(demand) <= MOST_TENANTS:
            return demand
        names = sorted(demand, key=lambda name: -demand[name][1])
        told = {name: demand[name] for name in names[:MOST_TENANTS]}
        for name in names[MOST_TENANTS:]:
            rest = f"{name.partition(' ')[0]}  {self.name}"
            weight, sequences, running = told.get(rest, (0.0, 0, 0.0))
            own = demand[name]
            told[rest] = (weight + own[0], sequences + own[1], running + own[2])
        return told

    def limits(self, knees: Mapping[str, Knee]) -> list[tuple[str, int, int, int]]:
        """As this worker adapts or follows them."""
        of = {replica: knee.limits for replica, knee in knees.items()}
        return [
            (replica, limits.sequences, limits.prefill_tokens, -1 if limits.kv_tokens is None else limits.kv_tokens)
            for replica, limits in of.items()
        ]

    def wants(self, told: Told, knees: Mapping[str, Knee]) -> list[tuple[str, int, int]]:
        """What to ask for, by what this worker tells now and the others told last. What runs is not given back before
        it has ended: nothing is preempted."""
        self._limits = {replica: knee.limits.sequences for replica, knee in knees.items()}
        demands = {self.name: told.demand} | {name: other.demand for name, other in self._others.items()}
        self._targets = targets(self.name, self._limits, demands)
        return [
            (
                replica,
                max(self._targets[replica], min(self._granted.get(replica, 0), knee.load.sequences)),
                int(knee.takes_lane() or self.alone),
            )
            for replica, knee in knees.items()
        ]

    def heard(self, heard: Heard, knees: Mapping[str, Knee], now_ms: int) -> None:
        """Puts in force what came back."""
        before, self._others = self._others, heard.others
        self._has_heard = True
        self.queued_elsewhere = sum([other.queued for other in heard.others.values()])
        self.itl_ms_elsewhere = min([other.itl_ms for other in heard.others.values() if other.itl_ms], default=None)
        led, self.leads = self.leads, heard.leads
        if not (led and heard.leads):
            for replica, *limits in heard.limits:
                if knee := knees.get(replica):
                    sequences, prefill_tokens, kv_tokens = limits
                    knee.follow(KneeLimits(sequences, prefill_tokens, None if kv_tokens < 0 else kv_tokens))
        self._may_get_more = False
        for replica, knee in knees.items():
            if heard.leads:
                knee.follow(None)
            self._listen(replica, knee, before, now_ms)
        self._granted = {replica: sequences for replica, sequences, *_ in heard.grants}
        for replica, sequences, lane, left in heard.grants:
            knee, target = knees.get(replica), self._targets.get(replica)
            if knee is None or target is None:
                continue
            self._may_get_more = self._may_get_more or left > 0 or sequences < target
            if self.alone:
                knee.share = None
                continue
            # A limit that has fallen is given way to at once, not only where the next call gives the rest back.
            now = min(target, target * knee.limits.sequences // self._limits[replica])
            knee.share = knee.shared(min(sequences, now), workers=1 + len(heard.others), lane=lane == 1)

    def _listen(self, replica: str, knee: Knee, before: Mapping[str, Told], now_ms: int) -> None:
        sequences = prefill_tokens = kv_tokens = 0
        used_per_s = 0.0
        long: list[str] = []
        for name, other in self._others.items():
            report = other.replicas.get(replica)
            if report is None:
                continue
            sequences += report.sequences
            prefill_tokens += report.prefill_tokens
            kv_tokens += report.kv_tokens
            used_per_s += report.used_per_s
            long += report.long
            earlier = before[name].replicas.get(replica) if name in before else None
            if self.leads and earlier is not None:
                knee.hear(earlier, report, now_ms)
        self._may_get_more = self._may_get_more or bool(long)
        knee.elsewhere(KneeLimits(sequences, prefill_tokens, kv_tokens), used_per_s, long=long, now_ms=now_ms)
