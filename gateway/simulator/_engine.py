"""vLLM 0.24's scheduler as a pure core: time comes in as numbers, steps come out.

    core.submit(job, now_s)         joins the waiting queue
    step = core.start(now_s)        the next step begins: what it computes is fixed, and so is its duration
    result = core.finish(step)      it is over: tokens, ends, freed blocks
    core.abort(id)                  at any time; between start and finish it takes effect with finish

`step(now_s)` is start and finish in one, for callers whose arrivals are known beforehand. Scheduling is asynchronous,
as vLLM's: while a step runs, the next one is planned already, so a newcomer joins the step after that, and an aborted
prompt is computed for one step more (measured: 280 ms to leave a long prefill, 680 ms until the next one's token).

The rules are those of `vllm/v1/core/sched/scheduler.py`: a budget of tokens per step; one for each decoding stream, the
rest to unfinished prompts in order of admission, then to waiting ones, first come first served, each at most
`long_prefill_token_threshold`; when no block is free, the one admitted last is preempted, loses its blocks, and waits
in front. Nobody is admitted in a step that preempted.

A step costs O(prompts in it + streams that need a block or end), not O(streams): streams that decode all advance by
one per batch, so where one stands follows from the batch's number, and the batches in which it needs a block or ends
are known when it begins to decode. Only the list of those decoding is copied, for the result.
"""

from __future__ import annotations

from collections import deque

from ._blocks import BlockPool
from ._profiles import Profile
from ._requests import Job, Request, State
from ._steps import Counters, Step, StepResult


class EngineCore:
    """One replica's engine. Not thread-safe, no clock of its own."""

    def __init__(self, profile: Profile) -> None:
        """An idle engine with an empty cache."""
        self.profile = profile
        self.counters = Counters()
        self.pool = BlockPool(profile.kv_blocks - 1)
        self._waiting: deque[Request] = deque()
        self._running: dict[Request, None] = {}
        self._decoding: dict[Request, None] = {}
        self._prefilling: dict[Request, None] = {}
        self._by_id: dict[str, Request] = {}
        self._grow: dict[int, list[Request]] = {}
        self._ends: dict[int, list[Request]] = {}
        self._aborts: list[Request] = []
        self._in_flight: Step | None = None
        self._next: Step | None = None
        self._planned = 0
        self._context_tokens = 0
        self._waiting_aborted = 0

    @property
    def running(self) -> int:
        """Sequences admitted and not ended: `vllm:num_requests_running`."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences not admitted yet, or preempted: `vllm:num_requests_waiting`."""
        return len(self._waiting) - self._waiting_aborted

    @property
    def kv_usage(self) -> float:
        """Share of blocks in use, 0 to 1: `vllm:kv_cache_usage_perc`."""
        return self.pool.used / self.pool.total

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return self._next is None and not self._running and not self.waiting

    def submit(self, job: Job, now_s: float) -> Request:
        """Put a job into the waiting queue; its id must be new."""
        assert job.id not in self._by_id
        assert job.output_tokens >= 1
        assert job.prompt.tokens >= 1
        assert job.prompt.tokens + job.output_tokens <= self.pool.total * self.profile.block_size
        request = Request(job, now_s, target=job.prompt.tokens, chain=job.prompt.keys)
        self._by_id[job.id] = request
        self._waiting.append(request)
        return request

    def abort(self, job_id: str) -> bool:
        """Stop a job: nothing more comes of it; its blocks are free after the step in flight. False if it had ended."""
        request = self._by_id.pop(job_id, None)
        if request is None:
            return False
        waiting = request.state is State.WAITING
        self._waiting_aborted += waiting
        if not waiting and self._in_flight is None:
            self._leave(request)
            self._free(request)
        elif not waiting:
            self._aborts.append(request)
        request.state = State.ABORTED
        for step in (self._in_flight, self._next):
            if step is not None:
                step.has_aborted = True
        return True

    def step(self, now_s: float) -> StepResult | None:
        """Start and finish in one; None when there is nothing to compute."""
        step = self.start(now_s)
        return None if step is None else self.finish(step)

    def start(self, now_s: float) -> Step | None:
        """Begin the next step, and plan the one after it from what is known now; None when there is none."""
        assert self._in_flight is None
        wake_ms = 0.0
        step = self._next
        if step is None:
            wake_ms = self.profile.steps.wake_ms
            step = self._plan(now_s)
            if step is None:
                return None
        step.start_s = now_s
        step.duration_s = (self._duration_ms(step) + wake_ms) / 1000.0 / self.profile.speed
        self._in_flight = step
        self._next = self._plan(now_s)
        return step

    def finish(self, step: Step) -> StepResult:
        """End the step in flight: count and hand out its tokens, free what ended or was aborted."""
        assert step is self._in_flight
        self._in_flight = None
        end_s = step.end_s
        decoded, firsts = step.decodes, step.firsts
        if step.has_aborted:
            decoded = [one for one in decoded if one.state is not State.ABORTED]
            firsts = [one for one in firsts if one.state is not State.ABORTED]
        counters = self.counters
        computed = 0
        for request in firsts:
            if request.first_token_s < 0:
                request.first_token_s = end_s
                counters.prompt_tokens += request.job.prompt.tokens
                counters.cached_tokens += request.cached_tokens
                computed += request.job.prompt.tokens - request.cached_tokens
        counters.generation_tokens += len(decoded) + len(firsts)
        counters.steps += 1
        finished = []
        for request in self._ends.pop(step.index, ()):
            if request.last_batch == step.index and request.state in (State.ENDING, State.DECODING):
                if request.state is State.DECODING:
                    self._leave(request)
                self._name_last_block(request)
                request.state = State.FINISHED
                request.finished_s = end_s
                del self._by_id[request.id]
                self._free(request)
                finished.append(request)
        for request in self._aborts:
            self._leave(request)
            self._free(request)
        self._aborts.clear()
        return StepResult(step.start_s, step.duration_s, decoded, firsts, finished, computed)

    def _duration_ms(self, step: Step) -> float:
        return self.profile.steps.step_ms(
            decoding=len(step.decodes),
            context_tokens=step.context_tokens,
            prefill_tokens=step.prefill_tokens,
            attention_kt2=step.attention_kt2,
            admitted_tokens=step.admitted_tokens,
            hit_tokens=step.hit_tokens,
        )

    def _plan(self, now_s: float) -> Step | None:
        index = self._planned + 1
        for request in self._ends.get(index - 1, ()):
            if request.state is State.DECODING and request.last_batch == index - 1:
                self._stop_decoding(request, index)
                request.state = State.ENDING
        preemptions = self.counters.preemptions
        self._grow_decodes(index)
        step = Step(index, [])
        budget = self.profile.max_num_batched_tokens - len(self._decoding)
        for request in list(self._prefilling):
            if budget <= 0:
                break
            if request.state is State.PREFILLING:
                budget -= self._prefill(request, step, budget)
        if self.counters.preemptions == preemptions:
            self._admit(step, budget, now_s)
        step.decodes = list(self._decoding)
        if not step.decodes and not step.prefill_tokens:
            return None
        step.context_tokens = self._context_tokens
        self._context_tokens += len(step.decodes)
        self._planned = index
        for request in step.firsts:
            self._begin_decoding(request, index)
        return step

    def _grow_decodes(self, index: int) -> None:
        """Give a block to each stream whose next token begins one; preempt while none is free."""
        block_size = self.profile.block_size
        for request in self._grow.pop(index, ()):
            # A stream that was preempted meanwhile leaves an entry behind, which asks for nothing.
            if request.state is not State.DECODING or self._blocks_for(request.context_at(index)) <= request.blocks:
                continue
            self._name_full_block(request, (request.context_at(index) - 1) // block_size - 1)
            if self._make_room(request, 1, index):
                self.pool.take(1)
                request.anonymous += 1
                self._grow.setdefault(index + block_size, []).append(request)

    def _prefill(self, request: Request, step: Step, budget: int) -> int:
        """Plan the next chunk of a running prompt; how many tokens it takes from the budget."""
        tokens = self._chunk(request.target - request.computed, budget)
        if not self._make_room(request, self._blocks_for(request.computed + tokens) - request.blocks, step.index):
            return 0
        self._compute(request, step, tokens)
        return tokens

    def _admit(self, step: Step, budget: int, now_s: float) -> None:
        """Let waiting prompts in, in order, until budget, places or blocks are used up."""
        profile, pool = self.profile, self.pool
        while self._waiting and budget > 0 and len(self._running) < profile.max_num_seqs:
            request = self._waiting[0]
            if request.state is State.ABORTED:
                self._waiting.popleft()
                self._waiting_aborted -= 1
                continue
            hits = 0
            if request.job.reads_cache:
                hits = pool.cached_prefix(request.chain[: (request.target - 1) // profile.block_size])
            found = request.chain[:hits]
            computed = hits * profile.block_size
            tokens = self._chunk(request.target - computed, budget)
            # The whole prompt must fit, not only its first chunk (`scheduler_reserve_full_isl`): else prompts are let
            # in only to be preempted, and 37.5 req/s give 34 preemptions where 28 were measured (with it 29).
            if self._blocks_for(request.target) - hits + pool.idle_among(found) > pool.free:
                break
            self._waiting.popleft()
            pool.hold(found)
            request.keys = list(found)
            request.computed = computed
            request.state = State.PREFILLING
            self._running[request] = None
            self._prefilling[request] = None
            if request.cached_tokens < 0:
                request.scheduled_s = now_s
                request.cached_tokens = computed
                self.counters.cache_queries += request.target if request.job.reads_cache else 0
                self.counters.cache_hits += computed
            step.admitted_tokens += request.target
            step.hit_tokens += computed
            self._compute(request, step, tokens)
            budget -= tokens

    def _compute(self, request: Request, step: Step, tokens: int) -> None:
        """Put a chunk into the step: its blocks, its cost, and the end of the prefill if it is the last."""
        assert tokens > 0
        before, after = request.computed, request.computed + tokens
        new = self._blocks_for(after) - request.blocks
        self.pool.take(new)
        request.anonymous += new
        request.computed = after
        step.prefill_tokens += tokens
        step.attention_kt2 += tokens * (before + tokens / 2) / 1e6
        block_size, chain = self.profile.block_size, request.chain
        for block in range(before // block_size, min(after // block_size, len(chain))):
            if self.pool.name(chain[block]):
                request.anonymous -= 1
                request.keys.append(chain[block])
        if after == request.target:
            del self._prefilling[request]
            step.firsts.append(request)

    def _begin_decoding(self, request: Request, index: int) -> None:
        """Its prefill ends with this batch, which gives it a token; from the next one on it decodes."""
        request.emitted += 1
        left = request.job.output_tokens - request.emitted
        request.last_batch = index + left
        request.decode_from = index + 1
        self._ends.setdefault(request.last_batch, []).append(request)
        if not left:
            request.state = State.ENDING
            return
        request.state = State.DECODING
        self._decoding[request] = None
        self._context_tokens += request.context_at(index + 1)
        wait = -request.target % self.profile.block_size
        self._grow.setdefault(index + 1 + wait, []).append(request)

    def _stop_decoding(self, request: Request, index: int) -> None:
        """Take it out of the decoding set before batch `index` is planned."""
        del self._decoding[request]
        self._context_tokens -= request.context_at(index)

    def _make_room(self, request: Request, blocks: int, index: int) -> bool:
        """Preempt from the last admitted on until `blocks` are free; False if it had to be this one itself."""
        while self.pool.free < blocks:
            victim = next(one for one in reversed(self._running) if one.state in (State.DECODING, State.PREFILLING))
            self._preempt(victim, index)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request, index: int) -> None:
        """Take its blocks and put it in front of the queue; it will compute prompt and answer again."""
        if request.state is State.DECODING:
            self._stop_decoding(request, index)
            request.emitted += index - request.decode_from
            request.target = request.job.prompt.tokens + request.emitted
        self._prefilling.pop(request, None)
        self._free(request)
        request.state = State.WAITING
        request.computed = 0
        self._waiting.appendleft(request)
        self.counters.preemptions += 1

    def _leave(self, request: Request) -> None:
        """Take an aborted or ended request out of the sets it is in."""
        self._prefilling.pop(request, None)
        if request in self._decoding:
            self._stop_decoding(request, self._planned + 1)

    def _free(self, request: Request) -> None:
        self.pool.release(request.keys, request.anonymous)
        request.keys, request.anonymous = [], 0
        del self._running[request]

    def _name_full_block(self, request: Request, block: int) -> None:
        """Make a block that the answer has filled findable."""
        if block * self.profile.block_size + self.profile.block_size <= request.job.prompt.tokens:
            return
        key = request.extend_chain(block, self.profile.block_size)
        if key is not None and self.pool.name(key):
            request.anonymous -= 1
            request.keys.append(key)

    def _name_last_block(self, request: Request) -> None:
        computed = request.job.prompt.tokens + request.job.output_tokens - 1
        if computed % self.profile.block_size == 0 and request.job.output_tokens > 1:
            self._name_full_block(request, computed // self.profile.block_size - 1)

    def _chunk(self, wanted: int, budget: int) -> int:
        threshold = self.profile.long_prefill_token_threshold
        return min(wanted, budget, threshold) if threshold else min(wanted, budget)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.profile.block_size)

    def check(self) -> None:
        """What must hold between any two calls; O(everything), for tests."""
        self.pool.check()
        active = self._running
        assert len(active) <= self.profile.max_num_seqs
        assert sum(one.anonymous for one in active) == self.pool.used - len({k for one in active for k in one.keys})
        assert self._context_tokens == sum(one.context_at(self._planned + 1) for one in self._decoding)
        assert all(one in active for one in self._decoding)
        assert all(one in active for one in self._prefilling)
        assert not self._decoding.keys() & self._prefilling.keys()
        assert self.waiting == sum(one.state is State.WAITING for one in self._waiting)
        for one in self._decoding:
            assert one.state in (State.DECODING, State.ABORTED)
            assert one.blocks >= self._blocks_for(one.context_at(self._planned + 1) - 1)
        for step in (self._in_flight, self._next):
            assert step is None or step.prefill_tokens + len(step.decodes) <= self.profile.max_num_batched_tokens
