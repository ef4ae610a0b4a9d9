"""One simulated engine behind several gateway workers that share its knee."""

from __future__ import annotations

import random
from collections import deque
from functools import partial

from msgspec.structs import replace

from gateway.admission import FirstTokens, Heard, Knee, Pool, Work
from gateway.simulator import Profile
from tests.simulation.virtual_fleet import (
    ITL_SLO_S,
    READ_EVERY_S,
    READ_LATE_S,
    TTFT_SLO_S,
    WAIT_S,
    MeasuredReplica,
)
from tests.simulation.virtual_pool import Store
from tests.simulation.virtual_replica import Stream, lengths

EXCHANGE_S = 0.5
ASK_S = 0.1
NAME = "replica"


class Waiting(deque[tuple[float, Work, int]]):
    """First come, first served."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0

    def demand(self) -> dict[str, tuple[float, int, float]]:
        sequences = len(self) + self.running
        return {"0 a": (1.0, sequences, 1000.0 * self.running)} if sequences else {}


class Gate:
    """One worker."""

    def __init__(self, number: int, kv_tokens: int, *, shares: bool) -> None:
        self.knee = Knee(itl_ms=int(ITL_SLO_S * 1000), kv_tokens=kv_tokens)
        self.pool = Pool(f"worker {number}")
        self.queue = Waiting()
        self.first_tokens = FirstTokens()
        self.asked_s = -ASK_S
        if shares:
            self.pool.admit(self.knee)


class SharedFleet(MeasuredReplica):
    """`shares` False: the workers know nothing of each other."""

    def __init__(self, profile: Profile, workers: int, *, shares: bool = True) -> None:
        super().__init__(profile)
        kv_tokens = (profile.kv_blocks - 1) * profile.block_size
        self.gates = [Gate(number, kv_tokens, shares=shares) for number in range(workers)]
        self.most: list[int] = []
        """At each second, how many ran."""
        self._store = Store() if shares else None
        self._live: dict[str, tuple[float, Work, Gate]] = {}
        self._streams: dict[str, Stream] = {}

    def load(self, rate: float, prompt: float, answer: float, until: float, seed: int) -> None:
        """As `VirtualFleet.load`, each request at any of the workers."""
        source, now = random.Random(seed), 0.0
        while (now := now + source.expovariate(rate)) < until:
            tokens = lengths(source, prompt, answer)
            self.at(now, partial(self._offer, gate=source.choice(self.gates), prompt=tokens[0], answer=tokens[1]))
        for number, gate in enumerate(self.gates):
            for half_second in range(int(until / EXCHANGE_S) + 1):
                if self._store is not None:
                    self.at(half_second * EXCHANGE_S + 0.06 * number, partial(self._exchange, gate=gate))
            for second in range(1, int(until) + 1):
                self.at(second + 0.1 * number, partial(self._tick, gate=gate))
        for second in range(1, int(until) + 1):
            self.at(float(second), lambda _: self.most.append(self.core.running + self.core.waiting))

    def read_per_s(self, since: float, until: float) -> float:
        """Prompt tokens of those sent in [since, until)."""
        return sum(one.prompt.tokens for one in self.streams if since <= one.sent_s < until) / (until - since)

    def _offer(self, now: float, gate: Gate, prompt: int, answer: int) -> None:
        work = self.work(f"{now}", prompt, now, WAIT_S)
        own_ms = gate.knee.alone_ms(work)
        deadline_ms = gate.first_tokens.dispatch_by_ms(work, int(TTFT_SLO_S * 1000), own_ms)
        gate.queue.append((now, replace(work, deadline_ms=deadline_ms), answer))
        self._dispatch(gate, now)

    def _dispatch(self, gate: Gate, now: float) -> None:
        while gate.queue:
            arrived, work, answer = gate.queue[0]
            if now * 1000 > work.deadline_ms + 1:
                gate.queue.popleft()
            elif gate.knee.fits(work, below_share=False):
                gate.queue.popleft()
                gate.queue.running += 1
                stream = self.send(now, work.input_tokens, answer, self._end)
                self._live[stream.id] = (arrived, work, gate)
                gate.knee.dispatched(work, int(now * 1000))
                self._tell_if_long(gate, work)
            else:
                if gate.pool.asks_early:
                    self._ask(gate, now)
                return

    def _tell_if_long(self, gate: Gate, work: Work) -> None:
        if gate.knee.is_long(work):
            self._ask(gate, self.now)

    def _ask(self, gate: Gate, now: float) -> None:
        if self._store is not None and now - gate.asked_s >= ASK_S:
            gate.asked_s = now
            self._exchange(now, gate)

    def _end(self, stream: Stream, now: float) -> None:
        arrived, work, gate = self._live.pop(stream.id)
        self.note(stream, arrived)
        gate.queue.running -= 1
        gate.knee.tokens(work.id, len(stream.token_s), int(now * 1000))
        gate.knee.ended(work.id, int(now * 1000))

    def _first(self, stream: Stream) -> None:
        _, work, gate = self._live[stream.id]
        gate.first_tokens.came(stream.ttft_s * 1000, gate.knee.alone_ms(work))
        owed_ms = gate.knee.first_token(work.id, int(self.now * 1000))
        self._tell_if_long(gate, work)
        if owed_ms:
            self.at(self.now + owed_ms / 1000, lambda _: gate.knee.paid(work.uncached_tokens))

    def _tick(self, now: float, gate: Gate) -> None:
        if int(now) % READ_EVERY_S == 0:
            gauges = self.gauges(now)
            self.at(now + READ_LATE_S, lambda later: gate.knee.observe(gauges, int(later * 1000)))
        for stream_id, (_, work, of) in self._live.items():
            if of is gate:
                gate.knee.tokens(work.id, len(self.streams[int(stream_id)].token_s), int(now * 1000))
        gate.knee.tick(int(now * 1000), queued=len(gate.queue) + gate.pool.queued_elsewhere)

    def _exchange(self, now: float, gate: Gate) -> None:
        assert self._store is not None
        knees = {NAME: gate.knee}
        told = gate.pool.told(gate.queue, int(ITL_SLO_S * 1000), knees)  # type: ignore[arg-type]
        limits, wants = gate.pool.limits(knees), gate.pool.wants(told, knees)
        answer = self._store.call(gate.pool.name, told, limits, wants, int(now * 1000))
        heard = Heard(leads=answer.leads, limits=answer.limits, grants=answer.grants, others=answer.others)
        gate.pool.heard(heard, knees, int(now * 1000))

    def _settled(self) -> None:
        """What waits is tried after each step."""
        for gate in self.gates:
            self._dispatch(gate, self.now)
