"""Where an admitted request waits for its replica: one fair queue per model, one knee per replica.

A request of a class without latency targets is bounded by nothing here. One with targets runs at once while nobody
waits and a replica has room; else it waits in fair order until its class's `max_wait_s`, but only as long as its first
token can still come within the class's target, or is refused on arrival where that would not be enough. Where other
workers use the same replicas, a line has a share of them, which it exchanges with theirs (`gateway.sharing`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from zlib import crc32

from msgspec.structs import replace

from gateway.admission import (
    FairQueue,
    FirstTokens,
    Gauges,
    Heard,
    Knee,
    Lanes,
    Pool,
    Predictor,
    Turned,
    Work,
)
from gateway.errors import Refusal, Refused, RefusedBy
from gateway.fleet import Interrupted, ModelFleet, Replica
from gateway.policy import SloSpec
from gateway.wire import StreamScanner, Usage

log = logging.getLogger(__name__)

TICK_S = 1.0
LONG_PREFILL_FLAG = "--long-prefill-token-threshold 512"
"""On an H200 it brought others' ITL beside a prompt of 100,000 tokens from 359 ms to 37; that one took 12 % longer."""
HELD_LEAST_MS = 1000
HELD_SPREAD = 0.25
"""Those whose long prompts are held come back when that ends, each by up to so much of it later."""
FULL_FOR_S = 0.25
"""How long a replica that said it is full is left alone: some tens of its steps."""

Choose = Callable[[Sequence[Replica]], Replica]


class Slot:
    """One request's place: at a replica, in the queue, or neither. Ending it twice changes nothing.

    It is guarded like a connection: `interrupt` ends its wait.
    """

    __slots__ = (
        "_answers",
        "_line",
        "_placed",
        "_presumed_read",
        "_requeued",
        "_scanner",
        "candidates",
        "choose",
        "dispatched_ms",
        "replica",
        "streams",
        "targets",
        "work",
    )

    def __init__(self, line: Line, work: Work, *, streams: bool) -> None:
        self.work = work
        self.streams = streams
        self.replica: Replica | None = None
        self.dispatched_ms = 0
        self.targets: Callable[[], Sequence[Replica]] = tuple
        self.choose: Choose = _first
        self.candidates: list[Replica] = []
        self._line = line
        self._placed: asyncio.Future[Replica] | None = None
        self._presumed_read: asyncio.TimerHandle | None = None
        self._scanner: StreamScanner | None = None
        self._answers = 1
        self._requeued = False

    async def place(self, targets: Callable[[], Sequence[Replica]], choose: Choose) -> Replica:
        """A replica that has room, one of those that `targets` gives when it has, and debited with this request.

        Raises `Refused` (429) when none has by the deadline or is not expected to, `Interrupted`.
        """
        self.targets, self.choose = targets, choose
        line = self._line
        if not self._requeued and (replica := line.start(self)):
            return replica
        loop = asyncio.get_running_loop()
        if not self._requeued:
            line.offer(self)
        self._requeued = False
        placed: asyncio.Future[Replica] = loop.create_future()
        self._placed = placed
        deadline = loop.call_later(max(0, self.work.deadline_ms + 1 - line.now_ms()) / 1000, line.expire)
        try:
            return await placed
        finally:
            self._placed = None
            deadline.cancel()
            if self.replica is None:
                line.withdraw(self)
            elif placed.cancelled() or placed.exception() is not None:
                self.ended(None)

    def placed(self, replica: Replica) -> None:
        """It may run there, and has been debited."""
        if self._placed is not None and not self._placed.done():
            self._placed.set_result(replica)

    def turned(self, refusal: Refusal) -> None:
        """It will not run."""
        if self._placed is not None and not self._placed.done():
            self._placed.set_exception(Refused(refusal))

    def interrupt(self) -> None:
        """The client has left, or the gateway stops."""
        if self._placed is not None and not self._placed.done():
            self._placed.set_exception(Interrupted())

    def first_token(self) -> None:
        """The engine has begun to answer."""
        if self.replica is not None:
            self._line.first_token(self, self.replica)

    def presume_read_after(self, wait_ms: int, read: Callable[[Work], None]) -> None:
        """Has `read` called with its work in `wait_ms`, unless it has left its replica by then."""
        self._presumed_read = asyncio.get_running_loop().call_later(wait_ms / 1000, read, self.work)

    def leave(self) -> Replica:
        """The replica it was at. It is at none now."""
        replica, self.replica = self.replica, None
        assert replica is not None
        if self._presumed_read is not None:
            self._presumed_read.cancel()
        return replica

    def follow(self, scanner: StreamScanner, answers: int) -> None:
        """Where the tokens are counted of the so many answers that the engine generates side by side."""
        self._scanner, self._answers = scanner, answers

    def tell_tokens(self, now_ms: int) -> None:
        """Tells the replica's knee how far the answer is."""
        if self._scanner is None or self.replica is None:
            return
        told = self._scanner.usage()
        count = max(self._scanner.output_events, told.output_tokens if told else 0) // self._answers
        if count:
            self._line.knee(self.replica).tokens(self.work.id, count, now_ms)

    def left(self, *, full: bool = False) -> None:
        """The replica was lost, or said that it is full; another is placed next, maybe after a wait."""
        self._requeued = full
        self._line.left(self, full=full)

    def moved_to(self, replica: Replica) -> None:
        """It runs there now, which had not been asked for room."""
        self._line.move(self, replica)

    def lost(self, now_ms: int) -> None:
        """The replica was lost in mid-answer; another is placed next, and may be waited for as long as the first."""
        if self.replica is not None:
            self.left()
        self.work = replace(self.work, deadline_ms=now_ms + self.work.deadline_ms - self.work.arrived_ms)

    def ended(self, usage: Usage | None) -> None:
        """The engine has ended; what it used corrects the tenant's counter. None: nothing is known. One that was to
        wait again, since a replica was full, does not."""
        if self.replica is not None:
            self._line.end(self, usage)
        elif self._requeued:
            self._requeued = False
            self._line.withdraw(self)


@dataclass(slots=True)
class LineCounts:
    """What a line's metrics are made of. `waits_ms` are of those that waited, from their arrival on, and
    `wait_errors_ms` by how much longer they were than predicted."""

    first_attempts: int = 0
    retries: int = 0
    waits_ms: list[int] = field(default_factory=list)
    wait_errors_ms: list[float] = field(default_factory=list)


class Line:
    """One model's queue and its replicas' knees."""

    def __init__(self, model: ModelFleet, predictor: Predictor, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.queue = FairQueue(locality_tokens=model.spec.locality_tokens)
        self.queue.is_held = self._is_held
        self._model = model
        self.itl_ms: int | None = None
        """The shortest time between tokens that a class here asks for."""
        self._first_tokens = FirstTokens()
        self._predictor = predictor
        self._knees: dict[Replica, Knee] = {}
        self._lanes = Lanes(self._knees, self.queue)
        self._full: set[Replica] = set()
        self._long_steps: set[Replica] = set()
        self._waiting: dict[str, Slot] = {}
        self._running: dict[str, Slot] = {}
        self._pumping: asyncio.Handle | None = None
        self._counts = LineCounts()
        self._pool: Pool | None = None
        self._ask: Callable[[], None] = _nothing
        self.has_news = False
        """Whether anything has happened since this was set to False."""
        self.silent = False
        """Whether the others hear nothing of this line, since it had nothing to tell."""
        self._note_places()

    def _note_places(self) -> None:
        """How many sequences all replicas may run, of which a tenant may hold a part."""
        self.queue.sequences = sum(self.knee(replica).limits.sequences for replica in self._model.replicas)

    def share(self, pool: Pool, ask: Callable[[], None]) -> None:
        """Other workers use the replicas too: from now on this line has its part of them. `ask` asks for more of it
        before the next exchange."""
        self._pool, self._ask = pool, ask
        for knee in self._knees.values():
            pool.admit(knee)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._waiting or self._running)

    def knees_by_name(self) -> dict[str, Knee]:
        """Of the replicas there are now, whether or not they have been used."""
        return {replica.name: self.knee(replica) for replica in self._model.replicas}

    def heard(self, heard: Heard) -> None:
        """The other workers' part of the exchange."""
        self.queue.beside(other.demand for other in heard.others.values())
        if self._pool is not None:
            self._pool.heard(heard, self.knees_by_name(), self.now_ms())
            asked = [itl_ms for itl_ms in (self.itl_ms, self._pool.itl_ms_elsewhere) if itl_ms is not None]
            for knee in self._knees.values():
                knee.itl_ms = min(asked, default=knee.itl_ms)
        if self._waiting:
            self._pump_soon()

    def lost(self) -> None:
        """The store does not answer."""
        if self._pool is not None:
            self._pool.lost(self.knees_by_name())
        if self._waiting:
            self._pump_soon()

    def counts(self) -> LineCounts:
        """What has happened since this was called last."""
        counts, self._counts = self._counts, LineCounts()
        return counts

    def note_attempt(self, work: Work) -> None:
        """A request has come."""
        self.has_news = True
        if self.silent:
            self.silent = False
            self._ask()
        if work.retry:
            self._counts.retries += 1
        else:
            self._counts.first_attempts += 1

    def knee(self, replica: Replica) -> Knee:
        """The replica's."""
        knee = self._knees.get(replica)
        if knee is None:
            knee = self._knees[replica] = Knee(itl_ms=self.itl_ms)
            _observe(knee, replica, self.now_ms())
            if self._pool is not None:
                self._pool.admit(knee)
        return knee

    def hold(self, itl_ms: int | None) -> None:
        """Keeps the time between tokens below this as well, in milliseconds."""
        if itl_ms is not None and (self.itl_ms is None or itl_ms < self.itl_ms):
            self.itl_ms = itl_ms
            for knee in self._knees.values():
                knee.itl_ms = itl_ms

    def in_time(self, work: Work, ttft_ms: int) -> Work:
        """`work`, to be dispatched by when its first token can still come within `ttft_ms`."""
        fastest_per_s = max([knee.prefill_per_s for knee in self._knees.values()], default=inf)
        deadline_ms = self._first_tokens.dispatch_by_ms(work, ttft_ms, work.uncached_tokens * 1000 / fastest_per_s)
        return work if deadline_ms == work.deadline_ms else replace(work, deadline_ms=deadline_ms)

    def relax(self) -> None:
        """Holds what it held only until the next request says its own target; the order is bent as policies say now."""
        self.itl_ms = None
        self.queue.bend(self._model.spec.locality_tokens)

    @property
    def knees(self) -> dict[Replica, Knee]:
        """Of the replicas that have been used."""
        return self._knees

    def start(self, slot: Slot) -> Replica | None:
        """Dispatches at once where nobody waits and there is room."""
        if len(self.queue):
            return None
        if self.queue.has_its_share(slot.work):
            return None
        below = self.queue.below_share(slot.work)
        if self._is_held(slot.work) or not self._fits(slot, below):
            return None
        self.queue.start(slot.work, self.now_ms())
        return self._dispatch(slot)

    def offer(self, slot: Slot) -> None:
        """Lets it wait. Raises `Refused` where it would wait too long."""
        turned = self.queue.offer(slot.work, self.now_ms())
        if turned is not None:
            raise Refused(overloaded(slot.work, self._retried(slot.work, turned)))
        self._waiting[slot.work.id] = slot
        self._pump_soon()

    def withdraw(self, slot: Slot) -> None:
        """Nobody waits for it any more."""
        if self._waiting.pop(slot.work.id, None) is not None:
            self.queue.withdraw(slot.work)
            self._pump_soon()

    def expire(self) -> None:
        """Refuses those whose time is over."""
        for work, turned in self.queue.expired(self.now_ms()):
            self._waiting.pop(work.id).turned(overloaded(work, self._retried(work, turned)))

    def first_token(self, slot: Slot, replica: Replica) -> None:
        knee, now_ms = self.knee(replica), self.now_ms()
        self._first_tokens.came(now_ms - slot.dispatched_ms, knee.alone_ms(slot.work))
        self._owe(knee, slot.work, knee.first_token(slot.work.id, now_ms))
        self._tell_if_long(knee, slot.work)
        if self._waiting:
            self._pump_soon()

    def left(self, slot: Slot, *, full: bool) -> None:
        replica, now_ms = slot.leave(), self.now_ms()
        del self._running[slot.work.id]
        knee = self.knee(replica)
        knee.ended(slot.work.id, now_ms)
        if full:
            knee.engine_full(now_ms)
            self._full.add(replica)
            asyncio.get_running_loop().call_later(FULL_FOR_S, self._is_asked_again, replica)
            self.queue.requeue(slot.work, now_ms)
            self._waiting[slot.work.id] = slot
        else:
            self.queue.ended(slot.work, input_tokens=0, cached_tokens=0, output_tokens=0, now_ms=now_ms)
        self._pump_soon()

    def move(self, slot: Slot, replica: Replica) -> None:
        """From the replica it was sent to first to one that answers sooner."""
        now_ms = self.now_ms()
        self.knee(slot.leave()).ended(slot.work.id, now_ms)
        slot.replica = replica
        self.knee(replica).dispatched(slot.work, now_ms)

    def end(self, slot: Slot, usage: Usage | None) -> None:
        now_ms, work = self.now_ms(), slot.work
        slot.tell_tokens(now_ms)
        replica = slot.leave()
        del self._running[work.id]
        self.knee(replica).ended(work.id, now_ms)
        self.has_news = True
        used = usage or Usage()
        self.queue.ended(
            work,
            input_tokens=used.input_tokens,
            cached_tokens=used.input_cached_tokens,
            output_tokens=used.output_tokens,
            now_ms=now_ms,
        )
        if used.output_tokens:
            self._predictor.answered(work.tenant, self._model.spec.name, used.output_tokens)
        if self._waiting:
            self._pump_soon()

    def tick(self) -> None:
        """About once a second: the knees learn what was measured, and who waits is looked at."""
        now_ms = self.now_ms()
        for slot in self._running.values():
            slot.tell_tokens(now_ms)
        self._note_places()
        queued = len(self.queue) + (0 if self._pool is None else self._pool.queued_elsewhere)
        for replica, knee in self._knees.items():
            _observe(knee, replica, now_ms)
            knee.tick(now_ms, queued=queued)
            self._tell_of_long_steps(replica, knee)
        if self._waiting:
            self._pump_soon()

    def _tell_of_long_steps(self, replica: Replica, knee: Knee) -> None:
        """Warns, once, of an engine whose steps are longer than the SLO while it reads a long prompt: nothing here can
        keep the others' tokens in time then."""
        if self.itl_ms is None or knee.itl_beside_ms <= self.itl_ms:
            self._long_steps.discard(replica)
        elif replica not in self._long_steps:
            self._long_steps.add(replica)
            log.warning(
                "replica %s: while a long prompt is read there other answers' tokens come every %.0f ms, "
                "and the target is %d ms: start vLLM with %s",
                *(replica.name, knee.itl_beside_ms, self.itl_ms, LONG_PREFILL_FLAG),
            )

    def _is_asked_again(self, replica: Replica) -> None:
        self._full.discard(replica)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._pumping is None:
            self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        while work := self.queue.next(self._waiting_fits, self.now_ms()):
            slot = self._waiting.pop(work.id)
            waited_ms = self.now_ms() - work.arrived_ms
            self._counts.waits_ms.append(waited_ms)
            predicted_ms = self.queue.predicted_wait_ms(work)
            if predicted_ms is not None:
                self._counts.wait_errors_ms.append(waited_ms - predicted_ms)
            slot.placed(self._dispatch(slot))
        self.expire()

    def _waiting_fits(self, work: Work, below_share: bool) -> bool:
        return self._fits(self._waiting[work.id], below_share)

    def _fits(self, slot: Slot, below_share: bool) -> bool:
        slot.candidates = [
            replica
            for replica in slot.targets()
            if replica not in self._full and self.knee(replica).fits(slot.work, below_share=below_share)
        ]
        if not slot.candidates and any(knee.may_read_beside for knee in self._knees.values()):
            slot.candidates = [
                replica
                for replica in slot.targets()
                if replica not in self._full and self.knee(replica).fits(slot.work, below_share=below_share, tries=True)
            ]
        if not slot.candidates and self._pool is not None and self._pool.asks_early:
            self._ask()
        return bool(slot.candidates)

    def _is_held(self, work: Work) -> bool:
        """Whether its prompt is long and has to wait for others that are being read."""
        lanes = self._lanes
        return lanes.is_long(work) and lanes.are_full(work, replicas=len(self._model.healthy()), now_ms=self.now_ms())

    def _retried(self, work: Work, turned: Turned) -> Turned:
        """Whose long prompt is held by others' comes back when those have been read; how the queue drains says nothing
        of that."""
        if not self._is_held(work):
            return turned
        now_ms = self.now_ms()
        after_ms = min([knee.long_ends_ms(now_ms) for knee in self._knees.values()]) - now_ms
        spread = 1 + HELD_SPREAD * (crc32(work.id.encode()) % 100) / 100
        return replace(turned, retry_after_ms=int(max(HELD_LEAST_MS, after_ms) * spread))

    def _dispatch(self, slot: Slot) -> Replica:
        now_ms = slot.dispatched_ms = self.now_ms()
        places = self._lanes.beside(self._model.first_pool(slot.candidates), slot.work, now_ms)
        replica = slot.replica = slot.choose(places)
        self._running[slot.work.id] = slot
        knee = self.knee(replica)
        knee.dispatched(slot.work, now_ms)
        self._tell_if_long(knee, slot.work)
        if not slot.streams:
            slot.presume_read_after(knee.prefill_ms(slot.work.id), partial(self._presume_read, knee))
        return replica

    def _presume_read(self, knee: Knee, work: Work) -> None:
        self._owe(knee, work, knee.presumed_read(work.id, self.now_ms()))
        if self._waiting:
            self._pump_soon()

    def _tell_if_long(self, knee: Knee, work: Work) -> None:
        """The other workers keep away while a long prompt is read."""
        if self._pool is not None and not self._pool.alone and knee.is_long(work):
            self._ask()

    def _owe(self, knee: Knee, work: Work, owed_ms: int) -> None:
        """Its prompt has been read, and counts for so long yet."""
        if owed_ms:
            asyncio.get_running_loop().call_later(owed_ms / 1000, self._paid, knee, work.uncached_tokens)

    def _paid(self, knee: Knee, tokens: int) -> None:
        knee.paid(tokens)
        if self._waiting:
            self._pump_soon()


class Dispatcher:
    """All models' lines. `run` keeps them moving."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.predictor = Predictor()
        self.on_line: Callable[[str, Line], None] = _nobody
        """Hears of each line once, when it is first used."""
        self._now_ms = now_ms
        self._lines: dict[str, Line] = {}

    @property
    def lines(self) -> dict[str, Line]:
        """By the model's name; those that have been used."""
        return self._lines

    def slot(self, model: ModelFleet, slo: SloSpec, work: Work, *, streams: bool) -> Slot:
        """A request's place in its model's line. Of several classes' targets the strictest time between tokens is held:
        their answers share steps. `streams`: the answer's first bytes come with its first token."""
        line = self._lines.get(model.spec.name)
        if line is None:
            line = self._lines[model.spec.name] = Line(model, self.predictor, self._now_ms)
            self.on_line(model.spec.name, line)
        line.hold(slo.itl_p99_ms)
        if slo.ttft_p99_ms is not None:
            work = line.in_time(work, slo.ttft_p99_ms)
        line.note_attempt(work)
        return Slot(line, work, streams=streams)

    def relax(self) -> None:
        """Policies have changed: the targets to hold are those of the requests that come from now on."""
        for line in self._lines.values():
            line.relax()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            for line in self._lines.values():
                line.tick()


def overloaded(work: Work, turned: Turned) -> Refusal:
    """The 429 of a request that cannot run in time."""
    wait_s = turned.predicted_wait_ms / 1000
    most_ms = work.deadline_ms - work.arrived_ms
    return Refusal(
        status=429,
        code="overloaded",
        message=(
            f"All replicas of this model are busy: this request would wait for about {wait_s:.1f} s, and it may "
            f"wait for at most {most_ms / 1000:g} s. Try again in {turned.retry_after_ms / 1000:.1f} s."
        ),
        retry_after_ms=turned.retry_after_ms,
        refused_by=RefusedBy(
            dimension="max_wait_s",
            scope="class",
            limit=most_ms,
            asked=turned.predicted_wait_ms,
            retry_after_ms=turned.retry_after_ms,
        ),
    )


def _observe(knee: Knee, replica: Replica, now_ms: int) -> None:
    """What the engine's own page said last."""
    if reading := replica.reading:
        gauges = Gauges(
            read_ms=reading.asked_ms,
            sequences=reading.running,
            waiting=reading.waiting,
            kv_usage=reading.kv_usage,
            kv_tokens=reading.kv_tokens,
            preemptions=reading.preemptions,
        )
        knee.observe(gauges, now_ms)


def _nothing() -> None:
    """Nobody is asked."""


def _nobody(model: str, line: Line) -> None:
    """Nobody hears of it."""


def _first(replicas: Sequence[Replica]) -> Replica:
    return replicas[0]
