"""The step-exact engine where a replay has its coarse one: the same calls, every step of `EngineCore`."""

from __future__ import annotations

from collections import deque
from math import inf

from gateway.replay import Run
from gateway.simulator import EngineCore, Job, Profile, Prompt, Step


class ExactReplica:
    """What `replay.Replica` is, one step at a time; cached tokens are not told apart."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name = name
        self.in_flight = 0
        self.next_ms = inf
        self._core = EngineCore(profile)
        self._api = profile.api
        self._api_free_ms = 0.0
        self._coming: deque[tuple[float, Run]] = deque()
        self._runs: dict[str, Run] = {}
        self._tokens: dict[Run, int] = {}
        self._step: Step | None = None
        self._count = 0

    def submit(self, run: Run, now_ms: float) -> None:
        self.in_flight += 1
        self._api_free_ms = max(self._api_free_ms, now_ms) + self._api.serial_ms
        self._api_free_ms += self._api.per_prompt_kt_ms * run.input_tokens / 1000
        self._coming.append((self._api_free_ms + self._api.fixed_ms, run))
        self._look()

    def tokens(self, run: Run, now_ms: float) -> int:
        return self._tokens.get(run, 0)

    def advance(self) -> tuple[list[Run], list[Run]]:
        now_ms = self.next_ms
        firsts, ended = [], []
        if self._step is not None and self._step.end_s * 1000 <= now_ms:
            result, self._step = self._core.finish(self._step), None
            for request in result.firsts + result.decoded:
                run = self._runs[request.id]
                self._tokens[run] += 1
                if run.first_ms < 0:
                    run.first_ms = now_ms
                    firsts.append(run)
            for request in result.finished:
                ended.append(self._runs.pop(request.id))
                self.in_flight -= 1
        while self._coming and self._coming[0][0] <= now_ms:
            run = self._coming.popleft()[1]
            name = str(self._count)
            self._count += 1
            self._runs[name], self._tokens[run] = run, 0
            self._core.submit(
                Job(id=name, prompt=Prompt(run.input_tokens), output_tokens=run.output_tokens), now_ms / 1000
            )
        if self._step is None:
            self._step = self._core.start(now_ms / 1000)
        self._look()
        return firsts, ended

    def _look(self) -> None:
        ends_ms = inf if self._step is None else self._step.end_s * 1000
        self.next_ms = min(ends_ms, self._coming[0][0] if self._coming else inf)
