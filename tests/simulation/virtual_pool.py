"""Gateway workers that share replicas, in virtual time: each with a queue and knees of its own, and a store between
them that does what scripts/share.lua does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.admission import Heard, Knee, Pool, Told, Work
from tests.simulation.fair_world import MS_PER_TOKEN, Clock, World

SILENT_MS = 2500
AWAY_MS = 1000
INTERVAL_MS = 500
ASK_MS = 100
PREFILL_MS = 40
"""From an answer's dispatch to its first token."""
ITL_MS = 50
"""At which the 40 ms of a slot's tokens are what the knee steers to."""

Want = tuple[str, int, int]
Grant = tuple[str, int, int, int]
Limited = tuple[str, int, int, int]


class Answer(NamedTuple):
    leads: bool
    limits: Sequence[Limited]
    grants: list[Grant]
    others: dict[str, Told]


class Store:
    """The script, but for the growths and how things are written down."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[int, list[Grant], Told]] = {}
        self.away = False
        self.called_ms = self.awake_ms = 0
        self.leader = ""
        self.led_until_ms = -1
        self.limits: Sequence[Limited] | None = None

    def call(self, worker: str, told: Told, limits: Sequence[Limited], wants: Sequence[Want], now_ms: int) -> Answer:
        if now_ms - self.called_ms > AWAY_MS:
            self.awake_ms = now_ms
        self.called_ms = now_ms
        heard = {
            name: record for name, record in self.records.items() if now_ms - max(record[0], self.awake_ms) <= SILENT_MS
        }
        before = heard.pop(worker, None)
        led = self.leader == worker
        leads = led or self.led_until_ms < now_ms
        if led or self.limits is None:
            kept: Sequence[Limited] = limits
        else:
            kept = self.limits
        if leads:
            self.leader, self.led_until_ms, self.limits = worker, now_ms + SILENT_MS, kept
        most = {limit[0]: limit[1] for limit in (*limits, *kept)}
        mine = {} if before is None else {replica: sequences for replica, sequences, *_ in before[1]}
        grants: list[Grant] = []
        for replica, sequences, lane in wants:
            taken = [grant for _, theirs, _ in heard.values() for grant in theirs if grant[0] == replica]
            left = most.get(replica, 0) - sum(grant[1] for grant in taken)
            lane_taken = any(grant[2] for grant in taken)
            granted = max(0, min(sequences, max(left, mine.get(replica, 0))))
            grants.append((replica, granted, int(lane and not lane_taken), left - granted))
        self.records[worker] = (now_ms, grants, told)
        return Answer(leads, kept, grants, {name: record[2] for name, record in heard.items()})


class Fleet:
    """The replicas' real state: what runs there, whoever sent it."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.running = dict.fromkeys(names, 0)
        self.most = dict.fromkeys(names, 0)
        """The most that ever ran."""

    def adds(self, replica: str, count: int) -> None:
        self.running[replica] += count
        self.most[replica] = max(self.most[replica], self.running[replica])


class Worker(World):
    """One worker's requests; `store` None: it knows of nobody."""

    def __init__(self, number: int, seed: int, fleet: Fleet, store: Store | None, clock: Clock) -> None:
        super().__init__(1000 * seed + number, clock=clock)
        self.name = f"worker {number}"
        self.fleet = fleet
        self.store = store
        self.pool = Pool(self.name)
        self.knees = {name: Knee(itl_ms=ITL_MS) for name in fleet.names}
        self.dead = False
        self._growths: list[dict[str, float]] = []
        self._others: list[Worker] = []
        self._at: dict[str, tuple[str, int]] = {}
        self._candidates: list[str] = []
        self._asked_ms = -ASK_MS
        if store is not None:
            for knee in self.knees.values():
                self.pool.admit(knee)
            self.clock.at(INTERVAL_MS * number // 8, self._exchange_again)
        self.clock.at(1000, self._tick)

    def asked(self) -> None:
        """Its model is asked for: it speaks at once."""
        if self.store is not None:
            self._exchange()

    def meets(self, workers: Sequence[Worker]) -> None:
        """Who hears what it gave."""
        self._others = [worker for worker in workers if worker is not self]

    def dies(self) -> None:
        """What it runs goes on; nothing more is heard of it."""
        self.dead = True

    def pump(self) -> None:
        if not self.dead:
            super().pump()
            if len(self.queue) and self.store is not None and self.pool.asks_early:
                self._ask()

    def sequences(self) -> int:
        """Of its share, at all replicas."""
        return sum(knee.allowed.sequences for knee in self.knees.values())

    def _fits(self, work: Work, below_share: bool) -> bool:
        self._candidates = [name for name, knee in self.knees.items() if knee.fits(work, below_share=below_share)]
        return bool(self._candidates)

    def _run(self, work: Work) -> None:
        replica = min(self._candidates, key=lambda name: self.knees[name].load.sequences)
        knee = self.knees[replica]
        knee.dispatched(work, self.now_ms)
        self._at[work.id] = (replica, self.now_ms + PREFILL_MS)
        self.fleet.adds(replica, 1)
        self.clock.at(self.now_ms + PREFILL_MS, lambda: self._first(knee, work))
        super()._run(work)

    def _first(self, knee: Knee, work: Work) -> None:
        owed_ms = knee.first_token(work.id, self.now_ms)
        if owed_ms:
            self.clock.at(self.now_ms + owed_ms, lambda: knee.paid(work.uncached_tokens))
        self.pump()

    def _tell_tokens(self, work_id: str) -> None:
        replica, first_ms = self._at[work_id]
        self.knees[replica].tokens(work_id, 1 + (self.now_ms - first_ms) // MS_PER_TOKEN, self.now_ms)

    def _left(self, work: Work) -> None:
        self._tell_tokens(work.id)
        replica, _ = self._at.pop(work.id)
        self.knees[replica].ended(work.id, self.now_ms)
        self.fleet.adds(replica, -1)

    def _tick(self) -> None:
        if self.dead:
            return
        for work_id in self._at:
            self._tell_tokens(work_id)
        for knee in self.knees.values():
            knee.tick(self.now_ms, queued=len(self.queue) + self.pool.queued_elsewhere)
        self.pump()
        self.clock.at(self.now_ms + 1000, self._tick)

    def _ask(self) -> None:
        if self.now_ms - self._asked_ms >= ASK_MS:
            self._asked_ms = self.now_ms
            self._exchange()

    def _exchange_again(self) -> None:
        if not self.dead:
            self._exchange()
            self.clock.at(self.now_ms + INTERVAL_MS, self._exchange_again)

    def _exchange(self) -> None:
        assert self.store is not None
        if self.store.away:
            self.pool.lost(self.knees)
            return
        growth = self.queue.counters()
        for other in self._others:
            other._growths.append(growth)
        told = self.pool.told(self.queue, ITL_MS, self.knees)
        answer = self.store.call(
            self.name, told, self.pool.limits(self.knees), self.pool.wants(told, self.knees), self.now_ms
        )
        for growth in self._growths:
            self.queue.merge(growth)
        self._growths.clear()
        self.queue.beside(other.demand for other in answer.others.values())
        self.pool.heard(
            Heard(leads=answer.leads, limits=answer.limits, grants=answer.grants, others=answer.others),
            self.knees,
            self.now_ms,
        )
        self.pump()


def workers(count: int, seed: int, *, replicas: int = 1, sharing: bool = True) -> list[Worker]:
    """So many over the same replicas."""
    fleet, clock = Fleet(*(f"replica {number}" for number in range(replicas))), Clock()
    store = Store() if sharing else None
    made = [Worker(number, seed, fleet, store, clock) for number in range(count)]
    for worker in made:
        worker.meets(made)
    for worker in made:
        worker.asked()
    return made
