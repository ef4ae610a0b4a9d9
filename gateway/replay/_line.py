"""One model's replicas and who waits for them: what `dispatch.Line` does, with virtual time for the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.admission import FairQueue, FirstTokens, Knee, Lanes, Predictor, Work
from gateway.routing import least_loaded

from ._replica import Replica

if TYPE_CHECKING:
    from ._replay import Request

TICK_MS = 1000.0
READ_TICKS = 10
"""A gateway reads its engines' gauges so often, and before it sends them anything."""

_MIXER = 0x9E3779B97F4A7C15
"""Odd, and far from any pattern in a count: multiples of it spread over all 64 bits (Knuth's golden ratio)."""


class Line:
    """`place` has a replica run a request, `turn` refuses it, `at` calls back at a time. Times in floats, `at_ms`, are
    milliseconds since `start_ms`, those of the decisions are Unix time."""

    def __init__(
        self,
        model: str,
        replicas: list[Replica],
        predictor: Predictor,
        *,
        locality_tokens: int,
        start_ms: int,
        at: Callable[[float, Callable[[float], None]], None],
        place: Callable[[Request, Replica], None],
        turn: Callable[[Request], None],
    ) -> None:
        self.model = model
        self.replicas = replicas
        self._predictor = predictor
        self._start_ms = start_ms
        self._at = at
        self._place = place
        self._turn = turn
        self._queue = FairQueue(locality_tokens=locality_tokens)
        self._queue.is_held = self._is_held
        self._knees = {replica: Knee() for replica in replicas}
        self._lanes = Lanes(self._knees, self._queue)
        self._used: set[Replica] = set()
        self._first_tokens = FirstTokens()
        self._waiting: dict[str, Request] = {}
        self._running: dict[str, Request] = {}
        self._itl_ms: int | None = None
        self._candidates: list[Replica] = []
        self._ticks = False
        self._ticked = 0
        self._now_ms = start_ms
        for replica, knee in self._knees.items():
            knee.observe(replica.gauges(start_ms), start_ms)
        self._note_places()

    def _note_places(self) -> None:
        self._queue.sequences = sum(knee.limits.sequences for knee in self._knees.values())

    def hold(self, itl_ms: int | None) -> None:
        """Keeps the time between tokens below this as well."""
        if itl_ms is not None and (self._itl_ms is None or itl_ms < self._itl_ms):
            self._itl_ms = itl_ms
            for knee in self._knees.values():
                knee.itl_ms = itl_ms

    def any_replica(self, number: int) -> Replica:
        """Where a request goes that nothing bounds."""
        return self._choose(number, self.replicas)

    def offer(self, request: Request, work: Work, at_ms: float, *, ttft_ms: int | None) -> None:
        """Runs it, lets it wait, or refuses it."""
        queue, now_ms = self._queue, self._start_ms + int(at_ms)
        self._now_ms = now_ms
        if ttft_ms is not None:
            fastest_per_s = max([self._knees[replica].prefill_per_s for replica in self._used], default=inf)
            own_ms = work.uncached_tokens * 1000 / fastest_per_s
            deadline_ms = self._first_tokens.dispatch_by_ms(work, ttft_ms, own_ms)
            if deadline_ms != work.deadline_ms:
                work = request.work = replace(work, deadline_ms=deadline_ms)
        if not self._ticks:
            self._ticks = True
            self._at((at_ms // TICK_MS + 1) * TICK_MS, self._tick)
        if (
            not len(queue)
            and not queue.has_its_share(work)
            and not self._is_held(work)
            and self._fits(work, queue.below_share(work))
        ):
            queue.start(work, now_ms)
            self._dispatch(request, work, now_ms)
            return
        if queue.offer(work, now_ms) is not None:
            self._turn(request)
            return
        self._waiting[work.id] = request
        self._pump(now_ms)
        if work.id in self._waiting:
            self._at(float(work.deadline_ms + 1 - self._start_ms), self._expire_at)

    def first_token(self, request: Request, work: Work, at_ms: float) -> None:
        """Its prompt has been read."""
        now_ms = self._start_ms + int(at_ms)
        knee = self._knees[request.replica]
        dispatched_ms = self._start_ms + int(request.arrived_ms + request.waited_ms)
        self._first_tokens.came(now_ms - dispatched_ms, knee.alone_ms(work))
        if owed_ms := knee.first_token(work.id, now_ms):
            self._at(at_ms + owed_ms, partial(self._paid, knee, work.uncached_tokens))
        if self._waiting:
            self._pump(now_ms)

    def _paid(self, knee: Knee, tokens: int, at_ms: float) -> None:
        knee.paid(tokens)
        if self._waiting:
            self._pump(self._start_ms + int(at_ms))

    def ended(self, request: Request, work: Work, output_tokens: int, at_ms: float) -> None:
        """The engine has ended it."""
        now_ms, run = self._start_ms + int(at_ms), request.run
        knee = self._knees[request.replica]
        knee.tokens(work.id, output_tokens, now_ms)
        knee.ended(work.id, now_ms)
        del self._running[work.id]
        self._queue.ended(
            work,
            input_tokens=run.input_tokens,
            cached_tokens=run.cached_tokens,
            output_tokens=output_tokens,
            now_ms=now_ms,
        )
        if output_tokens:
            self._predictor.answered(work.tenant, self.model, output_tokens)
        if self._waiting:
            self._pump(now_ms)

    def _pump(self, now_ms: int) -> None:
        """Runs what may run now, and refuses those whose time is over."""
        self._now_ms = now_ms
        while (work := self._queue.next(self._fits, now_ms)) is not None:
            self._dispatch(self._waiting.pop(work.id), work, now_ms)
        self._expire(now_ms)

    def _expire(self, now_ms: int) -> None:
        for work, _ in self._queue.expired(now_ms):
            self._turn(self._waiting.pop(work.id))

    def _expire_at(self, at_ms: float) -> None:
        self._expire(self._start_ms + int(at_ms))

    def _tick(self, at_ms: float) -> None:
        """About once a second, while anything runs or waits: the knees learn what was measured."""
        if not (self._running or self._waiting):
            self._ticks = False
            return
        now_ms = self._start_ms + int(at_ms)
        steps = {replica: (replica.step_at(at_ms), knee.tokens) for replica, knee in self._knees.items()}
        for work_id, request in self._running.items():
            run = request.run
            if run.first_ms >= 0:
                step, tell = steps[request.replica]
                tell(work_id, step - run.first_step + 1, now_ms)
        self._ticked += 1
        self._note_places()
        for replica, knee in self._knees.items():
            if self._ticked % READ_TICKS == 0:
                knee.observe(replica.gauges(now_ms), now_ms)
            knee.tick(now_ms, queued=len(self._queue))
        if self._waiting:
            self._pump(now_ms)
        self._at(at_ms + TICK_MS, self._tick)

    def _fits(self, work: Work, below_share: bool) -> bool:
        knees = self._knees
        self._candidates = [one for one, knee in knees.items() if knee.fits(work, below_share=below_share)]
        if not self._candidates and any(knee.may_read_beside for knee in knees.values()):
            self._candidates = [
                one for one, knee in knees.items() if knee.fits(work, below_share=below_share, tries=True)
            ]
        return bool(self._candidates)

    def _is_held(self, work: Work) -> bool:
        """Whether its prompt is long and has to wait for others that are being read."""
        lanes = self._lanes
        return lanes.is_long(work) and lanes.are_full(work, replicas=len(self.replicas), now_ms=self._now_ms)

    def _dispatch(self, request: Request, work: Work, now_ms: int) -> None:
        replica = self._choose(request.number, self._lanes.beside(self._candidates, work, now_ms))
        self._running[work.id] = request
        self._used.add(replica)
        self._knees[replica].dispatched(work, now_ms)
        self._place(request, replica)

    def _choose(self, number: int, candidates: Sequence[Replica]) -> Replica:
        return least_loaded(number * _MIXER & 0xFFFFFFFFFFFFFFFF, candidates)
