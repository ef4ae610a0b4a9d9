"""Tenants, a front and simulated engines in virtual time. The front is the gateway's own dispatcher, or one of the
admissions that others use: all see the same arrivals and the same engines.

A request of a front that does not dispatch it in time is refused, and does not come back.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf

from gateway.admission import Cost, Work
from gateway.dispatch import Dispatcher, Line, Slot
from gateway.errors import Refusal, Refused
from gateway.fleet import ModelFleet, Replica
from gateway.placement import Placement
from gateway.policy import ModelSpec, SloSpec
from gateway.routing import Query, Router, prefix_chain
from gateway.simulator import PROFILES, Profile, Step
from gateway.wire import StreamScanner, Usage
from tests.simulation.fair_world import jain
from tests.simulation.virtual_loop import VirtualLoop, run
from tests.simulation.virtual_replica import Stream, VirtualReplica, lengths, percentile

H200 = PROFILES["h200-llama-8b"].override(long_prefill_token_threshold=1024)
"""As it was for the runs with Poisson arrivals."""

CAPACITY_PER_S = 35.0
"""Of one such replica at 800 tokens in and 200 out: the most at which all it was offered was good."""

TTFT_SLO_S, ITL_SLO_S = 0.6, 0.08
MAX_WAIT_S = 0.4
PROMPT, ANSWER = 800, 200
GRACE_S = 20.0


class Engine(VirtualReplica):
    """One engine that runs on the event loop, beside others."""

    def __init__(self, profile: Profile, replica: Replica, loop: VirtualLoop) -> None:
        super().__init__(profile)
        self.replica = replica
        self.firsts: dict[str, Callable[[], None]] = {}
        self._loop = loop
        self._steps = False

    def at(self, when: float, act: Callable[[float], None]) -> None:
        self._loop.call_at(when, lambda: act(self._loop.time()))

    def _submit(self, stream: Stream, now: float) -> None:
        super()._submit(stream, now)
        self._step(now)

    def _step(self, now: float) -> None:
        if not self._steps and (step := self.core.start(now)) is not None:
            self._steps = True
            self._loop.call_at(step.end_s, self._end, step)

    def _end(self, step: Step) -> None:
        self.now = step.end_s
        self._finish(step)
        self._steps = False
        self._step(self.now)

    def _first(self, stream: Stream) -> None:
        self.firsts.pop(stream.id)()


@dataclass(slots=True, eq=False)
class Asked:
    """One request: what it asked for, and what became of it."""

    tenant: str
    arrived_s: float
    prompt: int
    answer: int
    weight: float = 1.0
    band: int = 0
    max_wait_s: float = MAX_WAIT_S
    refused: Refused | None = None
    refused_s: float = inf
    sent_s: float = inf
    stream: Stream | None = None

    def ttft_s(self, now_s: float) -> float:
        """From its arrival on; of one still without a token, until now."""
        stream = self.stream
        return (stream.token_s[0] if stream is not None and stream.token_s else now_s) - self.arrived_s

    @property
    def itl_s(self) -> float:
        """Its mean; 0 where it has too few tokens."""
        return self.stream.mean_itl_s if self.stream is not None and len(self.stream.token_s) > 1 else 0.0

    def is_good(self, *, ttft_s: float = TTFT_SLO_S, itl_s: float = ITL_SLO_S) -> bool:
        stream = self.stream
        return stream is not None and stream.done and self.ttft_s(0.0) <= ttft_s and self.itl_s <= itl_s

    @property
    def cost(self) -> float:
        return Cost().of(input_tokens=self.prompt, cached_tokens=0, output_tokens=self.answer)


class Front(ABC):
    """Decides where and when a request runs. `enter` raises `Refused`."""

    engines: Sequence[Engine]

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        self.engines = engines
        self.loop = loop

    @abstractmethod
    async def enter(self, asked: Asked) -> Engine: ...

    def sent(self, asked: Asked, stream: Stream) -> None:  # noqa: B027
        """It has gone to its engine."""

    def first(self, asked: Asked) -> None:  # noqa: B027
        """Its first token has come."""

    @abstractmethod
    def ended(self, asked: Asked, engine: Engine) -> None:
        """So has its last."""


class Queued(Front):
    """First come, first served, to the engine with the fewest running; who has waited too long is dropped."""

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)
        self._queue: deque[tuple[Asked, asyncio.Future[Engine]]] = deque()
        self.live: dict[Engine, list[Asked]] = {engine: [] for engine in engines}
        self.every(0.02, self.pump)

    @abstractmethod
    def fits(self, engine: Engine) -> bool:
        """Whether one more may run there."""

    def every(self, seconds: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.loop.call_later(seconds, again)

        self.loop.call_later(seconds, again)

    async def enter(self, asked: Asked) -> Engine:
        placed: asyncio.Future[Engine] = self.loop.create_future()
        self._queue.append((asked, placed))
        self.pump()
        return await placed

    def ended(self, asked: Asked, engine: Engine) -> None:
        self.live[engine].remove(asked)
        self.pump()

    def pump(self) -> None:
        now_s = self.loop.time()
        while self._queue:
            asked, placed = self._queue[0]
            if now_s - asked.arrived_s > asked.max_wait_s:
                self._queue.popleft()
                placed.set_exception(Refused(_DROPPED))
                continue
            free = [engine for engine in self.engines if self.fits(engine)]
            if not free:
                return
            self._queue.popleft()
            engine = min(free, key=lambda engine: len(self.live[engine]))
            self.live[engine].append(asked)
            placed.set_result(engine)


_DROPPED = Refusal(status=429, code="overloaded", message="It has waited too long.")


class Open(Queued):
    """No admission: all go at once."""

    def fits(self, engine: Engine) -> bool:
        return True


class Static(Queued):
    """At most so many at an engine."""

    def __init__(self, most: int) -> None:
        self.most = most

    def fits(self, engine: Engine) -> bool:
        return len(self.live[engine]) < self.most


class Gauges(Queued):
    """The inference extension's utilization detector with its defaults: of the pool the mean of waiting/5 and KV/0.8,
    as read every 200 ms, below 1."""

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)
        self._open = True
        self.every(0.2, self._read)

    def fits(self, engine: Engine) -> bool:
        return self._open

    def _read(self) -> None:
        scores = [max(engine.core.waiting / 5, engine.core.kv_usage / 0.8) for engine in self.engines]
        self._open = sum(scores) / len(scores) < 1
        self.pump()


class Aimd(Queued):
    """A limit for each engine that grows by 4 a second while the time between tokens keeps the SLO with a fifth to
    spare and half of the limit is used, and shrinks to 0.85 of itself where it does not, at most every 3 s.

    The time is the 90th percentile over streams of what each saw in the last second.
    """

    FIRST, LEAST = 64, 4

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)
        self.limits = {engine: float(self.FIRST) for engine in engines}
        self._cool_until_s = dict.fromkeys(engines, 0.0)
        self.every(1.0, self._adapt)

    def fits(self, engine: Engine) -> bool:
        return len(self.live[engine]) < int(self.limits[engine])

    def _adapt(self) -> None:
        now_s = self.loop.time()
        for engine in self.engines:
            gaps = []
            for asked in self.live[engine]:
                times = [] if asked.stream is None else asked.stream.token_s
                recent = times[bisect_left(times, now_s - 1.0) :]
                if len(recent) > 1:
                    gaps.append((recent[-1] - recent[0]) / (len(recent) - 1))
            if len(gaps) < 10:
                continue
            itl_s = percentile(gaps, 0.9)
            if itl_s > ITL_SLO_S and now_s >= self._cool_until_s[engine]:
                self.limits[engine] = max(self.LEAST, 0.85 * self.limits[engine])
                self._cool_until_s[engine] = now_s + 3.0
            elif itl_s < 0.8 * ITL_SLO_S and len(self.live[engine]) >= self.limits[engine] / 2:
                self.limits[engine] += 4
        self.pump()


class _Counted(StreamScanner):
    """Counts a simulated answer's tokens."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def output_events(self) -> int:
        return len(self._stream.token_s)

    def usage(self) -> Usage | None:
        return None

    def _event(self, block: bytes) -> bytes:
        return block


class Mtok(Front):
    """The gateway's own queue, knees and placement, for one class with these targets."""

    def __init__(self, *, ttft_s: float = TTFT_SLO_S, itl_s: float = ITL_SLO_S) -> None:
        self.slo = SloSpec(ttft_p99_ms=round(ttft_s * 1000), itl_p99_ms=round(itl_s * 1000))

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)
        self.dispatcher = Dispatcher(loop.now_ms)
        self.model = ModelFleet(ModelSpec(name=_MODEL, replicas=()), [engine.replica for engine in engines])
        self.router = Router()
        self._by_name = {engine.replica.name: engine for engine in engines}
        self._slots: dict[Asked, Slot] = {}
        self._placements: dict[Asked, Placement] = {}
        self._numbers = count(1)
        self._runs = loop.create_task(self.dispatcher.run())

    @property
    def line(self) -> Line:
        return self.dispatcher.lines[_MODEL]

    async def enter(self, asked: Asked) -> Engine:
        number = next(self._numbers)
        chain = prefix_chain(b"%d" % number)
        arrived_ms = int(asked.arrived_s * 1000)
        work = Work(
            id=str(number),
            tenant=asked.tenant,
            band=asked.band,
            weight=asked.weight,
            input_tokens=asked.prompt,
            cached_tokens=0,
            output_tokens=self.dispatcher.predictor.output_tokens(asked.tenant, _MODEL, None),
            retry=False,
            arrived_ms=arrived_ms,
            deadline_ms=arrived_ms + round(asked.max_wait_s * 1000),
            prefix=chain.blocks[0],
        )
        slot = self.dispatcher.slot(self.model, self.slo, work, streams=True)
        placement = Placement(self.router, Query(chain=chain, prompt_tokens=asked.prompt), self.loop.now_ms)
        replica = await slot.place(self.model.healthy, placement.choose)
        self._slots[asked], self._placements[asked] = slot, placement
        return self._by_name[replica.name]

    def sent(self, asked: Asked, stream: Stream) -> None:
        self._slots[asked].follow(_Counted(stream), answers=1)

    def first(self, asked: Asked) -> None:
        self._placements[asked].first_token()
        self._slots[asked].first_token()

    def ended(self, asked: Asked, engine: Engine) -> None:
        self._placements.pop(asked).ended()
        self._slots.pop(asked).ended(Usage(input_tokens=asked.prompt, output_tokens=asked.answer))


_MODEL = "model"


class World:
    """What was asked of a front with some engines, until `until_s`. Answers have `GRACE_S` more to end."""

    def __init__(self, front: Front, arrivals: Iterable[Asked], *, until_s: float, profiles: Sequence[Profile]) -> None:
        self.front = front
        self.asked = sorted(arrivals, key=lambda one: one.arrived_s)
        self.until_s = until_s
        self.end_s = until_s + GRACE_S
        self.engines: list[Engine] = []
        self._failed: list[BaseException | None] = []
        run(self._run(profiles))

    async def _run(self, profiles: Sequence[Profile]) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for number, profile in enumerate(profiles):
            replica = Replica(f"http://replica-{number}:8000")
            replica.healthy = True
            self.engines.append(Engine(profile, replica, loop))
        self.front.begin(self.engines, loop)
        serving: set[asyncio.Task[None]] = set()

        def served(task: asyncio.Task[None]) -> None:
            serving.discard(task)
            if not task.cancelled() and task.exception() is not None:
                self._failed.append(task.exception())

        for asked in self.asked:
            if asked.arrived_s > loop.time():
                await asyncio.sleep(asked.arrived_s - loop.time())
            task = loop.create_task(self._serve(asked, loop))
            serving.add(task)
            task.add_done_callback(served)
        await asyncio.sleep(self.end_s - loop.time())
        assert not self._failed, self._failed[0]

    async def _serve(self, asked: Asked, loop: VirtualLoop) -> None:
        try:
            engine = await self.front.enter(asked)
        except Refused as refused:
            asked.refused, asked.refused_s = refused, loop.time()
            return
        ended: asyncio.Future[None] = loop.create_future()
        engine.replica.in_flight += 1
        asked.sent_s = loop.time()
        stream = engine.send(asked.sent_s, asked.prompt, asked.answer, lambda *_: ended.set_result(None))
        asked.stream = stream
        engine.firsts[stream.id] = partial(self.front.first, asked)
        self.front.sent(asked, stream)
        await ended
        engine.replica.in_flight -= 1
        self.front.ended(asked, engine)

    def of(self, since_s: float, *, tenants: Collection[str] | None = None) -> Seen:
        """What became of those that arrived from then on, of these tenants."""
        chosen = [one for one in self.asked if one.arrived_s >= since_s and (tenants is None or one.tenant in tenants)]
        return Seen(chosen, self.until_s - since_s, self.end_s)


@dataclass(frozen=True, slots=True)
class Seen:
    """Some requests, of `seconds`, as they stood at `now_s`."""

    asked: list[Asked]
    seconds: float
    now_s: float

    @property
    def good(self) -> list[Asked]:
        return [one for one in self.asked if one.is_good()]

    @property
    def good_per_s(self) -> float:
        return len(self.good) / self.seconds

    @property
    def goodput(self) -> float:
        """Tokens per second of good answers."""
        return sum(one.answer for one in self.good) / self.seconds

    def ttft_s(self, part: float) -> float:
        """A percentile of those admitted, their wait included; of one without a token yet, so far."""
        return percentile([one.ttft_s(self.now_s) for one in self.asked if one.refused is None] or [0.0], part)

    def itl_s(self, part: float) -> float:
        """A percentile of the single gaps between tokens."""
        streams = [one.stream for one in self.asked if one.stream is not None]
        return percentile([gap for stream in streams for gap in stream.gaps()] or [0.0], part)

    @property
    def refused(self) -> float:
        """The part of them."""
        return sum(one.refused is not None for one in self.asked) / len(self.asked)

    @property
    def jain(self) -> float:
        """Jain's index of what each tenant was served, as a part of the most that a fair share could give it (max-min,
        of all that was served)."""
        asked: dict[str, float] = defaultdict(float)
        served: dict[str, float] = defaultdict(float)
        for one in self.asked:
            asked[one.tenant] += one.cost
            served[one.tenant] += one.cost if one.stream is not None and one.stream.token_s else 0.0
        fair = max_min(asked, sum(served.values()))
        return jain([served[tenant] / fair[tenant] for tenant in asked]) if any(served.values()) else 0.0


def max_min(asked: Mapping[str, float], total: float) -> dict[str, float]:
    """The max-min fair division of `total` among those that asked for so much."""
    given: dict[str, float] = {}
    left = total
    for number, (name, wanted) in enumerate(sorted(asked.items(), key=lambda item: item[1])):
        given[name] = min(wanted, left / (len(asked) - number))
        left -= given[name]
    return given


def poisson(
    tenant: str,
    per_s: float,
    *,
    seed: int,
    until_s: float,
    since_s: float = 0.0,
    prompt: float = PROMPT,
    answer: float = ANSWER,
    weight: float = 1.0,
    band: int = 0,
    max_wait_s: float = MAX_WAIT_S,
) -> list[Asked]:
    """One tenant's requests. The same seed is the same tenant, whoever is beside it."""
    source, now_s, asked = random.Random(f"{tenant} {seed}"), since_s, []
    while (now_s := now_s + source.expovariate(per_s)) < until_s:
        tokens = lengths(source, prompt, answer)
        asked.append(Asked(tenant, now_s, *tokens, weight=weight, band=band, max_wait_s=max_wait_s))
    return asked
