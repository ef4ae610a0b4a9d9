"""Replicas, sessions and one policy in virtual time.

A session's turns are planned beforehand; a turn comes when it was planned, or when the answer before it has ended if
that is later (as on the GPU: `vllm-0.24.0-h200/README.md`, "Routing"). Sessions themselves come whatever happens.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from gateway.simulator import EngineCore, Job, Profile, Request, Step, StepTimes

from .texts import Text, content, ids
from .workloads import Session, Workload

TTFT_SLO_S, ITL_SLO_S = 0.6, 0.08
"""What a good answer keeps: the same as in the admission simulations."""


@dataclass(slots=True, eq=False)
class Asked:
    """One request: what a router may know of it, and what became of it."""

    id: str
    session: Session
    turn: int
    arrived_s: float
    text: Text
    output_tokens: int
    replica: int = -1
    """Where it is, or was."""
    sent: int = 0
    """How often: more than once when its replica went away under it."""
    first_s: float = -1.0
    ended_s: float = -1.0
    cached_tokens: int = 0
    note: object = None
    """The policy's own."""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrived_s

    @property
    def itl_s(self) -> float:
        return (self.ended_s - self.first_s) / max(1, self.output_tokens - 1)

    @property
    def is_good(self) -> bool:
        return self.ttft_s <= TTFT_SLO_S and self.itl_s <= ITL_SLO_S


class Replica:
    """An engine behind its API server."""

    def __init__(self, number: int, profile: Profile) -> None:
        self.number = number
        self.profile = profile
        self.generation = 0
        self.restart()

    def restart(self) -> None:
        """Nothing runs and nothing is cached."""
        self.generation += 1
        self.core = EngineCore(self.profile)
        self.up = True
        self.steps = False
        self.api_free_s = 0.0
        self.at_work: dict[str, Asked] = {}


@dataclass(slots=True)
class Seen:
    """What came of a run."""

    cached_share: float
    computed_tokens: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    good_share: float
    output_per_s: float
    imbalance: float
    """Requests of the replica that had most, over the mean."""
    asked: list[Asked] = field(repr=False)
    answer_p50_s: float = 0.0


class Chooser(ABC):
    """What a policy has to do; see `policies`."""

    @abstractmethod
    def place(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        """Which of the usable replicas it goes to."""

    def first_token(self, asked: Asked, now_s: float) -> None:  # noqa: B027 - most need not know
        """Its first token has come."""

    @abstractmethod
    def ended(self, asked: Asked, now_s: float) -> None:
        """Its answer has, or its replica went away under it: then `cached_tokens` is -1."""

    def restarted(self, replica: int, now_s: float) -> None:  # noqa: B027
        """That replica runs again, with nothing cached."""


class World:
    """One run."""

    def __init__(self, workload: Workload, policy: Chooser) -> None:
        self.workload = workload
        self.policy = policy
        self.replicas = [Replica(number, workload.profile) for number in range(workload.replicas)]
        self.asked: list[Asked] = []
        self.now_s = 0.0
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self._open = 0
        self._began_s = 0.0

    def run(self) -> Seen:
        """To the end of the last answer."""
        for number, at_s, down_s in self.workload.restarts:
            self._at(at_s, self._crash, number, down_s)
        for phase in self.workload.phases:
            for session in phase:
                self._at(self.now_s + session.turns[0].planned_s, self._ask, session, 0, session.opening)
                self._open += len(session.turns)
            while self._open:
                self.now_s, _, act, given = heapq.heappop(self._agenda)
                act(*given)
            self._began_s = self.now_s
        return self._seen()

    def _at(self, when_s: float, act: Callable[..., None], *given: object) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (when_s, self._count, act, given))

    def _ask(self, session: Session, number: int, before: Text) -> None:
        turn = session.turns[number]
        text = before.plus(content(f"{session.name}/{number}", turn.input_tokens)) if turn.input_tokens else before
        asked = Asked(f"{session.name}/{number}", session, number, self.now_s, text, turn.output_tokens)
        self.asked.append(asked)
        self._send(asked)

    def _send(self, asked: Asked) -> None:
        usable = [replica.number for replica in self.replicas if replica.up]
        asked.replica = self.policy.place(asked, usable, self.now_s)
        asked.sent += 1
        replica = self.replicas[asked.replica]
        assert replica.up
        api = replica.profile.api
        speed = replica.profile.speed * 1000.0
        work_s = (api.serial_ms + api.per_prompt_kt_ms * asked.text.tokens / 1000.0) / speed
        replica.api_free_s = max(replica.api_free_s, self.now_s) + work_s
        replica.at_work[asked.id] = asked
        asked.first_s = -1.0
        self._at(replica.api_free_s + api.fixed_ms / speed, self._submit, asked, replica, replica.generation)

    def _submit(self, asked: Asked, replica: Replica, generation: int) -> None:
        if replica.generation != generation:
            return
        answer = ids(content(f"{asked.id}/answer", asked.output_tokens))
        job = Job(
            id=asked.id, prompt=asked.text.prompt(), output_tokens=asked.output_tokens, token_at=answer.__getitem__
        )
        replica.core.submit(job, self.now_s)
        self._step(replica)

    def _step(self, replica: Replica) -> None:
        if replica.steps:
            return
        step = replica.core.start(self.now_s)
        if step is not None:
            if self.workload.beside is not None and any(other.steps for other in self.replicas):
                step.duration_s = _duration_s(step, self.workload.beside)
            replica.steps = True
            self._at(step.end_s, self._end, replica, replica.generation, step)

    def _end(self, replica: Replica, generation: int, step: Step) -> None:
        if replica.generation != generation:
            return
        result = replica.core.finish(step)
        replica.steps = False
        for request in result.firsts:
            asked = replica.at_work[request.id]
            if asked.first_s < 0:
                asked.first_s = self.now_s
                self.policy.first_token(asked, self.now_s)
        for request in result.finished:
            self._answered(replica.at_work.pop(request.id), request)
        self._step(replica)

    def _answered(self, asked: Asked, request: Request) -> None:
        asked.ended_s = self.now_s
        asked.cached_tokens = request.cached_tokens
        self.policy.ended(asked, self.now_s)
        self._open -= 1
        session, number = asked.session, asked.turn + 1
        if number < len(session.turns):
            history = asked.text.plus(content(f"{asked.id}/answer", asked.output_tokens))
            when_s = max(self.now_s, self._began_s + session.turns[number].planned_s)
            self._at(when_s, self._ask, session, number, history)

    def _crash(self, number: int, down_s: float) -> None:
        replica = self.replicas[number]
        lost = list(replica.at_work.values())
        replica.restart()
        replica.up = False
        self._at(self.now_s + down_s, self._back, number)
        for asked in lost:
            asked.cached_tokens = -1
            self.policy.ended(asked, self.now_s)
        for asked in lost:
            self._send(asked)

    def _back(self, number: int) -> None:
        self.replicas[number].up = True
        self.policy.restarted(number, self.now_s)

    def _seen(self) -> Seen:
        asked = self.asked
        ttfts = sorted(one.ttft_s for one in asked)
        prompt = sum(one.text.tokens for one in asked)
        cached = sum(one.cached_tokens for one in asked)
        good = sum(one.is_good for one in asked)
        wall_s = max(one.ended_s for one in asked)
        loads = [0] * len(self.replicas)
        for one in asked:
            loads[one.replica] += 1
        return Seen(
            cached_share=cached / prompt,
            computed_tokens=prompt - cached,
            ttft_p50_s=percentile(ttfts, 0.5),
            ttft_p90_s=percentile(ttfts, 0.9),
            ttft_p99_s=percentile(ttfts, 0.99),
            ttft_mean_s=fmean(ttfts),
            good_share=good / len(asked),
            output_per_s=sum(one.output_tokens for one in asked) / wall_s,
            imbalance=max(loads) / fmean(loads),
            asked=asked,
        )


def _duration_s(step: Step, times: StepTimes) -> float:
    return (
        times.step_ms(
            decoding=len(step.decodes),
            context_tokens=step.context_tokens,
            prefill_tokens=step.prefill_tokens,
            attention_kt2=step.attention_kt2,
            admitted_tokens=step.admitted_tokens,
            hit_tokens=step.hit_tokens,
        )
        / 1000.0
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
