"""Poisson arrivals through a knee onto one engine, in virtual time."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from gateway.admission import FirstTokens, Knee, Work
from gateway.admission import Gauges as EngineGauges
from gateway.simulator import Profile
from tests.simulation.virtual_replica import Stream, VirtualReplica, lengths

TTFT_SLO_S = 0.6
ITL_SLO_S = 0.08
WAIT_S = 0.4
READ_EVERY_S = 10.0
READ_LATE_S = 5.0
"""The engine's gauges, as most workers hear of them."""
PREDICTED_TOKENS = 200
"""Of every answer, however long it gets."""


class Answered(NamedTuple):
    """When it arrived, and what its client saw from then on."""

    arrived_s: float
    ttft_s: float
    itl_s: float


class MeasuredReplica(VirtualReplica):
    """One replica behind an admission: what is asked of it, and how much of that is good."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.ended: list[Answered] = []

    def work(self, name: str, prompt: int, now: float, wait_s: float) -> Work:
        """One request, which may wait so long."""
        now_ms = int(now * 1000)
        return Work(
            id=name,
            tenant="a",
            band=0,
            weight=1.0,
            input_tokens=prompt,
            cached_tokens=0,
            output_tokens=PREDICTED_TOKENS,
            retry=False,
            arrived_ms=now_ms,
            deadline_ms=now_ms + int(wait_s * 1000),
        )

    def gauges(self, now: float) -> EngineGauges:
        """The engine's, as they are now."""
        core = self.core
        return EngineGauges(
            read_ms=int(now * 1000),
            sequences=core.running + core.waiting,
            waiting=core.waiting,
            kv_usage=core.kv_usage,
            kv_tokens=(self.profile.kv_blocks - 1) * self.profile.block_size,
            preemptions=core.counters.preemptions,
        )

    def note(self, stream: Stream, arrived_s: float) -> None:
        """It has been answered."""
        itl_s = stream.mean_itl_s if len(stream.token_s) > 1 else 0.0
        self.ended.append(Answered(arrived_s, stream.token_s[0] - arrived_s, itl_s))

    def good_per_s(self, since: float, until: float) -> float:
        """Answers within both SLOs, of those that arrived in [since, until)."""
        return sum(
            since <= one.arrived_s < until and one.ttft_s <= TTFT_SLO_S and one.itl_s <= ITL_SLO_S for one in self.ended
        ) / (until - since)

    def ttft_p99_s(self, since: float, until: float) -> float:
        """Of those admitted, their wait included."""
        seen = sorted(one.ttft_s for one in self.ended if since <= one.arrived_s < until)
        return seen[int(0.99 * len(seen))] if seen else 0.0


class VirtualFleet(MeasuredReplica):
    """One replica behind its knee and a first-come queue whose waiters leave after `WAIT_S`, or earlier where their
    first token would come too late."""

    def __init__(self, profile: Profile, knee: Knee, *, reads_gauges: bool = True) -> None:
        super().__init__(profile)
        self.knee = knee
        self.first_tokens = FirstTokens()
        self._reads_gauges = reads_gauges
        self._arrived = 0
        self._queue: deque[tuple[float, Work, int]] = deque()
        self._live: dict[str, tuple[float, Work, Stream]] = {}

    def load(self, rate: float, prompt: float, answer: float, until: float, seed: int) -> None:
        """Poisson arrivals, lognormal lengths of cv 1 with these means."""
        source, now = random.Random(seed), 0.0
        while (now := now + source.expovariate(rate)) < until:
            tokens = lengths(source, prompt, answer)
            self.at(now, partial(self._offer, prompt=tokens[0], answer=tokens[1]))
        for second in range(1, int(until) + 1):
            self.at(float(second), self._tick)

    def _offer(self, now: float, prompt: int, answer: int) -> None:
        work = self.work(str(self._arrived), prompt, now, WAIT_S)
        deadline_ms = self.first_tokens.dispatch_by_ms(work, int(TTFT_SLO_S * 1000), self.knee.alone_ms(work))
        self._arrived += 1
        self._queue.append((now, replace(work, deadline_ms=deadline_ms), answer))
        self._dispatch(now)

    def _dispatch(self, now: float) -> None:
        while self._queue:
            arrived, work, answer = self._queue[0]
            if now * 1000 > work.deadline_ms + 1:
                self._queue.popleft()
                continue
            if not self.knee.fits(work, below_share=False):
                return
            self._queue.popleft()
            stream = self.send(now, work.input_tokens, answer, self._end)
            self._live[stream.id] = (arrived, work, stream)
            self.knee.dispatched(work, int(now * 1000))

    def _end(self, stream: Stream, now: float) -> None:
        arrived, work, _ = self._live.pop(stream.id)
        self.note(stream, arrived)
        self.knee.tokens(work.id, len(stream.token_s), int(now * 1000))
        self.knee.ended(work.id, int(now * 1000))

    def _tick(self, now: float) -> None:
        if self._reads_gauges and now % READ_EVERY_S == 0:
            gauges = self.gauges(now)
            self.at(now + READ_LATE_S, lambda later: self.knee.observe(gauges, int(later * 1000)))
        for _, work, stream in self._live.values():
            self.knee.tokens(work.id, len(stream.token_s), int(now * 1000))
        self.knee.tick(int(now * 1000), queued=len(self._queue))

    def _first(self, stream: Stream) -> None:
        work = self._live[stream.id][1]
        self.first_tokens.came(stream.ttft_s * 1000, self.knee.alone_ms(work))
        self.knee.first_token(work.id, int(self.now * 1000))

    def _settled(self) -> None:
        """What waits is tried after each step."""
        self._dispatch(self.now)
