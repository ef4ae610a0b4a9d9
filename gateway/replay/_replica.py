"""One engine, coarse: what `simulator.EngineCore` does step by step, with the steps between two events taken as one.

Streams that decode get one token in each step, all the same, so that nothing happens between one that ends and the
next prompt but the passing of equal steps: one multiplication. A step that reads prompts is planned as the engine plans
it: budget, chunks, places, cache. A newcomer joins the step after the next. Left out: preemptions (whoever was let in
runs to its end), the growth of steps within a stretch, and that blocks of a common prefix are there only once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf

import msgspec

from gateway.admission import Gauges
from gateway.simulator import Profile


class Run(msgspec.Struct, eq=False, gc=False):
    """A request as the engine has it, of at least one token each way, the last of its prompt's never cached. `first_ms`
    is the time of its first token, -1 before; the steps are those of its first and its last one."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    read_tokens: int
    first_ms: float = -1.0
    first_step: int = 0
    last_step: int = 0


def run_of(*, input_tokens: int, cached_tokens: int, output_tokens: int) -> Run:
    """A request of these sizes."""
    input_tokens = max(1, input_tokens)
    cached_tokens = min(cached_tokens, input_tokens - 1)
    return Run(input_tokens, cached_tokens, max(1, output_tokens), cached_tokens)


_NOBODY: Sequence[Run] = ()


class Replica:
    """`advance` is to be called at `next_ms`, and what it is told in between comes in the order of its times."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name = name
        self.in_flight = 0
        self.next_ms = inf
        self._times = profile.steps
        self._speed = profile.speed
        self._budget = profile.max_num_batched_tokens
        self._chunk_most = profile.long_prefill_token_threshold or profile.max_num_batched_tokens
        self._sequences_most = profile.max_num_seqs
        self._kv_tokens = (profile.kv_blocks - 1) * profile.block_size
        self._api_ms = profile.api.serial_ms / profile.speed
        self._api_token_ms = profile.api.per_prompt_kt_ms / 1000 / profile.speed
        self._api_fixed_ms = profile.api.fixed_ms / profile.speed
        self._api_free_ms = 0.0
        self._coming: deque[tuple[float, Run]] = deque()
        self._waiting: deque[tuple[int, Run]] = deque()
        """With the step that each may join."""
        self._reading: list[Run] = []
        self._reading_tokens = 0
        self._read: list[Run] = []
        """Whose prompt the step in progress ends."""
        self._ends: list[tuple[int, int, Run]] = []
        """Those that decode, by their last step."""
        self._order = 0
        self._context_tokens = 0
        self._step = 0
        """How many steps there were before the stretch in progress, of `_steps` steps of `_step_ms` from `_since_ms`
        to `_until_ms`; that is inf while the engine idles."""
        self._steps = 0
        self._step_ms = 1.0
        self._since_ms = 0.0
        self._until_ms = inf
        self._reads = False

    def submit(self, run: Run, now_ms: float) -> None:
        """A request reaches the API server."""
        self.in_flight += 1
        self._api_free_ms = max(self._api_free_ms, now_ms) + self._api_ms + self._api_token_ms * run.input_tokens
        ready_ms = self._api_free_ms + self._api_fixed_ms
        if ready_ms < self._until_ms < inf and not self._coming:
            self._join(run, ready_ms)  # whatever comes until then, it comes after
            self.next_ms = self._until_ms
        else:
            self._coming.append((ready_ms, run))
            self.next_ms = min(self.next_ms, ready_ms)

    def step_at(self, now_ms: float) -> int:
        """How many steps there have been: an answer has a token of each from its `first_step` on."""
        return self._step + self._passed(now_ms)

    def advance(self) -> tuple[Sequence[Run], Sequence[Run]]:
        """What happens at `next_ms`: those whose first token has come, and those that have ended."""
        now_ms = self.next_ms
        firsts, ended = _NOBODY, _NOBODY
        was_idle = self._until_ms == inf
        if self._until_ms <= now_ms:
            firsts, ended = self._end_stretch(now_ms)
        coming = self._coming
        while coming and coming[0][0] <= now_ms:
            self._join(coming.popleft()[1], now_ms)
        if self._until_ms == inf:
            self._begin_stretch(now_ms, wakes=was_idle)
        self.next_ms = min(self._until_ms, coming[0][0]) if coming else self._until_ms
        return firsts, ended

    def gauges(self, now_ms: int) -> Gauges:
        """As its metrics page would have them; `now_ms` is Unix time."""
        running = len(self._ends) + len(self._reading) + len(self._read)
        used = (self._context_tokens + self._reading_tokens) / self._kv_tokens
        return Gauges(
            read_ms=now_ms,
            sequences=running + len(self._waiting),
            waiting=len(self._waiting),
            kv_usage=min(1.0, used),
            kv_tokens=self._kv_tokens,
            preemptions=0,
        )

    def _passed(self, now_ms: float) -> int:
        """Whole steps of the stretch in progress."""
        return 0 if self._reads or self._until_ms == inf else int((now_ms - self._since_ms) / self._step_ms)

    def _join(self, run: Run, now_ms: float) -> None:
        if self._until_ms == inf:
            self._waiting.append((self._step, run))
            return
        joins = self._step + self._passed(now_ms) + 2
        self._waiting.append((joins, run))
        if not self._reads and len(self._waiting) == 1 and joins < self._step + self._steps:
            self._steps = joins - self._step
            self._until_ms = self._since_ms + self._steps * self._step_ms

    def _end_stretch(self, now_ms: float) -> tuple[Sequence[Run], Sequence[Run]]:
        step = self._step = self._step + self._steps
        self._context_tokens += self._steps * len(self._ends)
        firsts, self._read = self._read, []
        for run in firsts:
            run.first_ms = now_ms
            run.first_step = step
            run.last_step = step + run.output_tokens - 1
            self._context_tokens += run.input_tokens + 1
            self._reading_tokens -= run.input_tokens
            self._order += 1
            heappush(self._ends, (run.last_step, self._order, run))
        ended: list[Run] = []
        while self._ends and self._ends[0][0] <= step:
            run = heappop(self._ends)[2]
            self._context_tokens -= run.input_tokens + run.output_tokens
            self.in_flight -= 1
            ended.append(run)
        self._until_ms = inf
        return firsts, ended

    def _begin_stretch(self, now_ms: float, *, wakes: bool) -> None:
        decoding, waiting = len(self._ends), self._waiting
        if not decoding and not self._reading:
            if not waiting:
                return
            wakes = True
        if (self._reading or (waiting and (waiting[0][0] <= self._step or not decoding))) and self._plan(now_ms, wakes):
            return
        last_step = self._ends[0][0]
        if waiting and self._step < waiting[0][0] < last_step:
            last_step = waiting[0][0]
        self._reads = False
        step_ms = self._times.step_ms(
            decoding=decoding,
            context_tokens=self._context_tokens,
            prefill_tokens=0,
            attention_kt2=0.0,
            admitted_tokens=0,
            hit_tokens=0,
        )
        self._run(now_ms, last_step - self._step, step_ms)

    def _plan(self, now_ms: float, wakes: bool) -> bool:
        """A step that reads prompts; False where those that wait find no room."""
        decoding = len(self._ends)
        budget = self._budget - decoding
        tokens = admitted = hits = 0
        attention_kt2 = 0.0
        going_on: list[Run] = []
        reading, self._reading = self._reading, going_on
        waiting = self._waiting
        sequences = decoding + len(reading)
        while budget > 0:
            if reading:
                run = reading.pop(0)
            elif (
                waiting
                and (waiting[0][0] <= self._step or not (decoding or tokens))
                and sequences < self._sequences_most
                and self._has_room(waiting[0][1], sequences)
            ):
                run = waiting.popleft()[1]
                sequences += 1
                admitted += run.input_tokens
                hits += run.cached_tokens
                self._reading_tokens += run.input_tokens
            else:
                break
            chunk = min(run.input_tokens - run.read_tokens, budget, self._chunk_most)
            attention_kt2 += chunk * (run.read_tokens + chunk / 2) / 1e6
            run.read_tokens += chunk
            budget -= chunk
            tokens += chunk
            (going_on if run.read_tokens < run.input_tokens else self._read).append(run)
        going_on += reading
        if not tokens:
            return False
        self._reads = True
        step_ms = self._times.step_ms(
            decoding=decoding,
            context_tokens=self._context_tokens,
            prefill_tokens=tokens,
            attention_kt2=attention_kt2,
            admitted_tokens=admitted,
            hit_tokens=hits,
        )
        self._run(now_ms, 1, step_ms + self._times.wake_ms if wakes else step_ms)
        return True

    def _has_room(self, run: Run, sequences: int) -> bool:
        return not sequences or self._context_tokens + self._reading_tokens + run.input_tokens <= self._kv_tokens

    def _run(self, now_ms: float, steps: int, step_ms: float) -> None:
        self._since_ms, self._steps, self._step_ms = now_ms, steps, step_ms / self._speed
        self._until_ms = now_ms + steps * self._step_ms
