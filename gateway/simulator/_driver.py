"""The engine in real time: one task that starts a step, sleeps until its end, and hands out its tokens.

Steps follow each other on the model's own time line, so a late timer does not make the replica slower; only when the
process has fallen behind by more than `LAG_S` is the line moved, since catching up with a pause is not what a GPU does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ._engine import EngineCore
from ._metrics import EngineMetrics
from ._profiles import Profile
from ._requests import Job, Prompt, Request
from ._samples import Sample
from ._steps import StepResult

LAG_S: Final = 0.25
"""Longer than any pause of a busy event loop, shorter than what a person would call a hang."""


@dataclass(slots=True)
class Flight:
    """The samples of one HTTP request, and the signal that one of them has moved."""

    samples: list[Sample]
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    """The client hung up."""
    left: int = 0

    @property
    def done(self) -> bool:
        """Whether every sample has ended."""
        return self.left == 0

    def usage(self) -> tuple[int, int, int]:
        """Prompt, generated and cached tokens: prompts count once, whatever n is."""
        firsts = [one for one in self.samples if one.index % one.sampling.n == 0]
        return (
            sum(one.prompt_tokens for one in firsts),
            sum(one.tokens for one in self.samples),
            sum(max(0, one.cached_tokens) for one in firsts),
        )


class Driver:
    """Runs one `EngineCore` on the event loop that calls `start`."""

    def __init__(self, profile: Profile, metrics: EngineMetrics) -> None:
        """Nothing runs yet."""
        self.core = EngineCore(profile)
        self.metrics = metrics
        self.profile = profile
        self.in_api = 0
        """Generation requests accepted and not answered: vLLM's `/load`."""
        self._flights: dict[str, tuple[Flight, Sample]] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._api_free_s = 0.0
        self._serial = 0

    def start(self) -> None:
        """Begin to step."""
        assert self._task is None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop stepping; whoever waits is told that the client has gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for flight, _ in list(self._flights.values()):
            self.abort(flight)

    async def api_delay(self, prompt_tokens: int) -> None:
        """Wait as long as the API server takes for that many prompt tokens and the requests before."""
        times = self.profile.api
        await self.api_work(times.serial_ms + times.per_prompt_kt_ms * prompt_tokens / 1000.0, times.fixed_ms)

    async def api_work(self, serial_ms: float, fixed_ms: float = 0.0) -> None:
        """Wait for work that the API server does for one request after the other, and for what comes on top."""
        now = asyncio.get_running_loop().time()
        self._api_free_s = max(self._api_free_s, now) + serial_ms / 1000.0 / self.profile.speed
        delay = self._api_free_s - now + fixed_ms / 1000.0 / self.profile.speed
        if delay > 0:
            await asyncio.sleep(delay)

    def launch(self, samples: Sequence[Sample], prompts: Sequence[Prompt], arrival_s: float) -> Flight:
        """Give samples to the engine, each with its prompt."""
        flight = Flight(list(samples), left=len(samples))
        for sample, prompt in zip(samples, prompts, strict=True):
            self._serial += 1
            sample.job_id = f"{sample.job_id}-{self._serial}"
            self._flights[sample.job_id] = (flight, sample)
            job = Job(
                id=sample.job_id,
                prompt=prompt,
                output_tokens=sample.answer.length,
                token_at=sample.answer.token_at,
                reads_cache=not sample.sampling.prompt_logprobs,
            )
            self.core.submit(job, arrival_s)
        self._work.set()
        return flight

    def abort(self, flight: Flight) -> None:
        """The client has gone: nothing more is computed for it once the step in flight has ended."""
        flight.gone = True
        for sample in flight.samples:
            if self._flights.pop(sample.job_id, None) is not None:
                self.core.abort(sample.job_id)
        flight.moved.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            step = self.core.start(due)
            if step is None:
                self._work.clear()
                await self._work.wait()
                due = loop.time()
                continue
            now = loop.time()
            due = step.end_s if now - step.end_s < LAG_S else now
            await asyncio.sleep(max(0.0, due - now))
            self._deliver(self.core.finish(step))

    def _deliver(self, result: StepResult) -> None:
        end_s = result.end_s
        flights, metrics = self._flights, self.metrics
        gaps: dict[float, int] = {}
        for request in result.firsts:
            flight, sample = flights[request.id]
            if sample.tokens == 0:
                sample.cached_tokens = request.cached_tokens
                metrics.first_token(request)
            else:
                gap = end_s - sample.last_token_s
                gaps[gap] = gaps.get(gap, 0) + 1
            self._push(flight, sample, request, end_s)
        for request in result.decoded:
            flight, sample = flights[request.id]
            gap = end_s - sample.last_token_s
            gaps[gap] = gaps.get(gap, 0) + 1
            self._push(flight, sample, request, end_s)
        metrics.step(result, gaps)

    def _push(self, flight: Flight, sample: Sample, request: Request, end_s: float) -> None:
        sample.last_token_s = end_s
        ended = sample.push()
        if ended or sample.sampling.stream:
            flight.moved.set()
        if not ended:
            return
        del self._flights[sample.job_id]
        flight.left -= 1
        self.metrics.ended(request, sample, end_s)
        if sample.tokens < sample.answer.length:
            # A stop string: the engine itself does not know about it, so it is told to stop.
            self.core.abort(sample.job_id)
        if flight.done:
            self.metrics.flight_ended(flight.samples)
