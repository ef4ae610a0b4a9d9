"""A fleet of slots in virtual time: what the fair queue does with tenants that flood, idle, return and retry.

A request holds one slot for as long as its answer takes. With the same seed a world runs the same.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import exp, log, sqrt
from typing import NamedTuple

from gateway.admission import Cost, FairQueue, Predictor, Turned, Work

MS_PER_TOKEN = 40
"""Of an answer: 250 tokens are 10 s."""

MEAN_OUTPUT = 250
PROMPT = 800


def told_ms(refused: Turned) -> int:
    return refused.retry_after_ms


class Clock:
    """Virtual time, shared by worlds that run at the same time."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, ms: int, call: Callable[[], None]) -> None:
        heappush(self._events, (ms, next(self._numbers), call))

    def run(self, until_ms: int) -> None:
        while self._events and self._events[0][0] <= until_ms:
            self.now_ms, _, call = heappop(self._events)
            call()
        self.now_ms = until_ms


class World:
    """`extra` slots are for tenants below their share. `charge_first`: by prediction at dispatch, or all at the end.
    Where it is not `fair` all go in one queue, first come first served."""

    def __init__(
        self,
        seed: int,
        *,
        slots: int = 64,
        extra: int = 0,
        queue: FairQueue | None = None,
        fair: bool = True,
        charge_first: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.clock = clock or Clock()
        self.slots = slots
        self.extra = extra
        self.queue = FairQueue() if queue is None else queue
        self.fair = fair
        self.charge_first = charge_first
        self.predictor = Predictor(default_output_tokens=MEAN_OUTPUT)
        self.running = 0
        self.busy_ms = 0
        self.idle_with_work = 0
        self.waits: defaultdict[str, list[int]] = defaultdict(list)
        self.served: list[tuple[int, str, float]] = []
        """At each dispatch: when, whose, and its real cost."""
        self.turned: Counter[int] = Counter()
        """Refused and expired, by attempt: 0 the first."""
        self.expired = 0
        """Of these, those that had waited."""
        self.admitted: Counter[int] = Counter()
        """Dispatched, by attempt."""
        self._numbers = count()
        self._asked: dict[str, _Asked] = {}
        self._refills: dict[str, Callable[[], None]] = {}

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms

    def output(self, mean: float = MEAN_OUTPUT, variation: float = 1.0) -> int:
        """A lognormal answer's length with this mean and coefficient of variation."""
        sigma = sqrt(log(1 + variation * variation))
        return max(1, round(mean * exp(self.random.gauss(-sigma * sigma / 2, sigma))))

    def request(
        self,
        tenant: str,
        *,
        output: int | None = None,
        weight: float = 1.0,
        band: int = 0,
        wait_ms: int = 10**9,
        attempt: int = 0,
        turned: Callable[[Turned], None] = lambda _: None,
    ) -> None:
        """One request, which waits at most `wait_ms`; `turned` hears of its refusal."""
        predicted = self.predictor.output_tokens(tenant, "model", None) if self.charge_first else 0
        work = Work(
            id=f"{self.random.getrandbits(64):016x}-{next(self._numbers)}",
            tenant=tenant if self.fair else "all",
            band=band,
            weight=weight,
            input_tokens=PROMPT if self.charge_first else 0,
            cached_tokens=0,
            output_tokens=predicted,
            retry=attempt > 0,
            arrived_ms=self.now_ms,
            deadline_ms=self.now_ms + wait_ms,
        )
        asked = _Asked(tenant, self.output() if output is None else output, attempt, turned)
        refused = self.queue.offer(work, self.now_ms)
        if refused is not None:
            self._tell(asked, refused)
            return
        self._asked[work.id] = asked
        self.pump()
        if wait_ms < 10**9 and work.id in self._asked:
            self.clock.at(work.deadline_ms + 1, self.expire)

    def pump(self) -> None:
        """Dispatches what may run now."""
        while (work := self.queue.next(self._fits, self.now_ms)) is not None:
            self._run(work)
        self.idle_with_work += self.running < self.slots and len(self.queue) > 0

    def expire(self) -> None:
        for work, refused in self.queue.expired(self.now_ms):
            self.expired += 1
            self._tell(self._asked.pop(work.id), refused)

    def sdk(self, tenant: str, *, wait_ms: int, told_ms: Callable[[Turned], int] = told_ms, attempt: int = 0) -> None:
        """A client as OpenAI's: two retries, each when it was told to, unless that is more than two minutes away."""

        def turned(refused: Turned) -> None:
            after_ms = told_ms(refused)
            if attempt < 2 and after_ms <= 120_000:
                self.clock.at(self.now_ms + after_ms, again)

        def again() -> None:
            self.sdk(tenant, wait_ms=wait_ms, told_ms=told_ms, attempt=attempt + 1)

        self.request(tenant, wait_ms=wait_ms, attempt=attempt, turned=turned)

    def poisson(self, per_s: float, ask: Callable[[], None], *, start_ms: int = 0, end_ms: int) -> None:
        """Calls `ask` at random times."""

        def arrive() -> None:
            ask()
            at = self.now_ms + max(1, round(self.random.expovariate(per_s) * 1000))
            if at < end_ms:
                self.clock.at(at, arrive)

        self.clock.at(start_ms + round(self.random.expovariate(per_s) * 1000), arrive)

    def backlogged(
        self,
        tenant: str,
        *,
        depth: int = 100,
        until_ms: int,
        weight: float = 1.0,
        band: int = 0,
        mean_output: float = MEAN_OUTPUT,
    ) -> None:
        """`tenant` has `depth` requests waiting at all times."""

        def ask() -> None:
            if self.now_ms < until_ms:
                self.request(tenant, weight=weight, band=band, output=self.output(mean_output))

        self._refills[tenant] = ask
        for _ in range(depth):
            ask()

    def service(self, *, from_ms: int = 0, to_ms: int = 10**12) -> dict[str, float]:
        """The real cost of what was dispatched of each tenant."""
        total: dict[str, float] = defaultdict(float)
        for at_ms, tenant, cost in self.served:
            if from_ms <= at_ms < to_ms:
                total[tenant] += cost
        return total

    def utilisation(self, until_ms: int) -> float:
        """The part of the slots' time that was used, until now."""
        return self.busy_ms / (self.slots * until_ms)

    def _fits(self, _work: Work, below_share: bool) -> bool:
        return self.running < self.slots + (self.extra if below_share else 0)

    def _run(self, work: Work) -> None:
        asked = self._asked.pop(work.id)
        service_ms = asked.output * MS_PER_TOKEN
        started_ms = self.now_ms
        self.running += 1
        self.admitted[asked.attempt] += 1
        self.waits[asked.tenant].append(started_ms - work.arrived_ms)
        self.served.append((started_ms, asked.tenant, real_cost(asked.output)))

        def end() -> None:
            self.running -= 1
            self.busy_ms += service_ms
            self.predictor.answered(asked.tenant, "model", asked.output)
            self.queue.ended(work, input_tokens=PROMPT, cached_tokens=0, output_tokens=asked.output, now_ms=self.now_ms)
            self._left(work)
            self.pump()

        self.clock.at(started_ms + service_ms, end)
        refill = self._refills.get(asked.tenant)
        if refill is not None:
            self.clock.at(started_ms, refill)

    def _left(self, work: Work) -> None:
        """Its answer has ended."""

    def _tell(self, asked: _Asked, refused: Turned) -> None:
        self.turned[asked.attempt] += 1
        asked.turned(refused)


class _Asked(NamedTuple):
    tenant: str
    output: int
    attempt: int
    turned: Callable[[Turned], None]


def real_cost(output: int) -> float:
    return Cost().of(input_tokens=PROMPT, cached_tokens=0, output_tokens=output)


def percentile(values: list[int], part: float) -> int:
    """The value that `part` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0


def jain(values: list[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
