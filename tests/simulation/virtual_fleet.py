"""Poisson arrivals through an admission onto one engine, in virtual time."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import NamedTuple, Protocol

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


class Admission(Protocol):
    """Whether one more may run there now."""

    def fits(self, work: Work, replica: VirtualReplica, running: int) -> bool: ...


class Open:
    """No admission: all go at once."""

    def fits(self, work: Work, replica: VirtualReplica, running: int) -> bool:
        return True


class Gauges:
    """The inference extension's utilization detector: waiting below 5 and KV below 0.8, as read every 200 ms."""

    def __init__(self) -> None:
        self._read_s, self._waiting, self._kv = -1.0, 0, 0.0

    def fits(self, work: Work, replica: VirtualReplica, running: int) -> bool:
        if replica.now - self._read_s >= 0.2:
            self._read_s, self._waiting, self._kv = replica.now, replica.core.waiting, replica.core.kv_usage
        return self._waiting < 5 and self._kv < 0.8


class Ours:
    """The knee."""

    def __init__(self, knee: Knee) -> None:
        self.knee = knee

    def fits(self, work: Work, replica: VirtualReplica, running: int) -> bool:
        return self.knee.fits(work, below_share=False)


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
    """One replica behind an admission and a first-come queue whose waiters leave after `wait_s`, or earlier where the
    knee says that their first token would come too late."""

    def __init__(
        self, profile: Profile, admission: Admission, *, wait_s: float = WAIT_S, reads_gauges: bool = True
    ) -> None:
        super().__init__(profile)
        self.admission = admission
        self.knee = admission.knee if isinstance(admission, Ours) else None
        self.arrived: list[float] = []
        self.first_tokens = FirstTokens()
        self.limits: list[int] = []
        self._wait_s = wait_s
        self._reads_gauges = reads_gauges
        self._queue: deque[tuple[float, Work, int]] = deque()
        self._live: dict[str, tuple[float, Work, Stream]] = {}

    def load(self, rate: float, prompt: float, answer: float, until: float, seed: int) -> None:
        """Poisson arrivals, lognormal lengths of cv 1 with these means."""
        source, now = random.Random(seed), 0.0
        while (now := now + source.expovariate(rate)) < until:
            tokens = lengths(source, prompt, answer)
            self.at(now, partial(self._offer, prompt=tokens[0], answer=tokens[1]))
        if self.knee is not None:
            for second in range(1, int(until) + 1):
                self.at(float(second), self._tick)

    def _offer(self, now: float, prompt: int, answer: int) -> None:
        work = self.work(str(len(self.arrived)), prompt, now, self._wait_s)
        if self.knee is not None:
            deadline_ms = self.first_tokens.dispatch_by_ms(work, int(TTFT_SLO_S * 1000), self.knee.alone_ms(work))
            work = replace(work, deadline_ms=deadline_ms)
        self.arrived.append(now)
        self._queue.append((now, work, answer))
        self._dispatch(now)

    def _dispatch(self, now: float) -> None:
        bounded = not isinstance(self.admission, Open)
        while self._queue:
            arrived, work, answer = self._queue[0]
            if bounded and now * 1000 > work.deadline_ms + 1:
                self._queue.popleft()
                continue
            if not self.admission.fits(work, self, len(self._live)):
                return
            self._queue.popleft()
            stream = self.send(now, work.input_tokens, answer, self._end)
            self._live[stream.id] = (arrived, work, stream)
            if self.knee is not None:
                self.knee.dispatched(work, int(now * 1000))

    def _end(self, stream: Stream, now: float) -> None:
        arrived, work, _ = self._live.pop(stream.id)
        self.note(stream, arrived)
        if self.knee is not None:
            self.knee.tokens(work.id, len(stream.token_s), int(now * 1000))
            self.knee.ended(work.id, int(now * 1000))

    def _tick(self, now: float) -> None:
        assert self.knee is not None
        if self._reads_gauges and now % READ_EVERY_S == 0:
            gauges = self.gauges(now)
            self.at(now + READ_LATE_S, lambda later: self.knee and self.knee.observe(gauges, int(later * 1000)))
        for _, work, stream in self._live.values():
            self.knee.tokens(work.id, len(stream.token_s), int(now * 1000))
        self.knee.tick(int(now * 1000), queued=len(self._queue))
        self.limits.append(self.knee.limits.sequences)

    def _first(self, stream: Stream) -> None:
        if self.knee is not None:
            work = self._live[stream.id][1]
            self.first_tokens.came(stream.ttft_s * 1000, self.knee.alone_ms(work))
            self.knee.first_token(work.id, int(self.now * 1000))

    def _settled(self) -> None:
        """What waits is tried after each step."""
        self._dispatch(self.now)
