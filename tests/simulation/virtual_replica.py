"""Clients in virtual time in front of one simulated engine: what the measuring client on the H200 did, without
waiting."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from gateway.simulator import EngineCore, Job, Profile, Prompt, Step


@dataclass(eq=False)
class Stream:
    """One request as its client sees it: seconds of virtual time."""

    id: str
    prompt: Prompt
    output_tokens: int
    sent_s: float
    token_s: list[float] = field(default_factory=list)
    cached_tokens: int = -1
    gone: bool = False
    on_end: Callable[[Stream, float], None] | None = None

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.sent_s

    @property
    def mean_itl_s(self) -> float:
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)

    @property
    def done(self) -> bool:
        return len(self.token_s) == self.output_tokens

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Times between tokens, of those that came in [since, until)."""
        pairs = zip(self.token_s, self.token_s[1:], strict=False)
        return [after - before for before, after in pairs if since <= after < until]


class VirtualReplica:
    """An engine behind its API server's delays, and a list of things that happen at given times."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.core = EngineCore(profile)
        self.now = 0.0
        self.streams: list[Stream] = []
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._api_free_s = 0.0
        self._by_id: dict[str, Stream] = {}

    def at(self, when: float, act: Callable[[float], None]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._agenda, (when, self._count, act))

    def send(
        self,
        when: float,
        prompt: Prompt | int,
        output_tokens: int,
        on_end: Callable[[Stream, float], None] | None = None,
    ) -> Stream:
        """A client sends a request; its prompt reaches the engine when the API server is through with it."""
        source = Prompt(prompt) if isinstance(prompt, int) else prompt
        stream = Stream(str(len(self.streams)), source, output_tokens, when, on_end=on_end)
        self.streams.append(stream)
        self.at(when, lambda now: self._arrive(stream, now))
        return stream

    def hang_up(self, when: float, stream: Stream) -> None:
        """Its client goes."""

        def act(_: float) -> None:
            stream.gone = True
            self.core.abort(stream.id)

        self.at(when, act)

    def _arrive(self, stream: Stream, now: float) -> None:
        api, speed = self.profile.api, self.profile.speed
        work = (api.serial_ms + api.per_prompt_kt_ms * stream.prompt.tokens / 1000) / 1000 / speed
        self._api_free_s = max(self._api_free_s, now) + work
        self.at(self._api_free_s + api.fixed_ms / 1000 / speed, lambda ready: self._submit(stream, ready))

    def _submit(self, stream: Stream, now: float) -> None:
        if not stream.gone:
            self._by_id[stream.id] = stream
            self.core.submit(Job(id=stream.id, prompt=stream.prompt, output_tokens=stream.output_tokens), now)

    def _act_until(self, when: float) -> None:
        while self._agenda and self._agenda[0][0] <= when:
            self.now, _, act = heapq.heappop(self._agenda)
            act(self.now)
        self.now = when

    def run(self, until: float = float("inf")) -> None:
        """Let time pass until then, or until nothing is left to happen."""
        while self.now < until:
            step = self.core.start(self.now)
            if step is None:
                if not self._agenda:
                    return
                self._act_until(min(self._agenda[0][0], until))
                self._settled()
                continue
            self._act_until(step.end_s)
            self._finish(step)

    def _finish(self, step: Step) -> None:
        result = self.core.finish(step)
        for request in result.firsts + result.decoded:
            stream = self._by_id[request.id]
            stream.token_s.append(self.now)
            stream.cached_tokens = request.cached_tokens
            if len(stream.token_s) == 1:
                self._first(stream)
            if stream.done and stream.on_end:
                stream.on_end(stream, self.now)
        self._settled()

    def _first(self, stream: Stream) -> None:
        """Its first token has come."""

    def _settled(self) -> None:
        """A step has ended, or time has passed without one."""

    def closed_loop(self, streams: int, prompt: int, output: int, until: float) -> None:
        """That many clients, each sending its next request when the last one has been answered."""

        def again(_: Stream, now: float) -> None:
            if now < until:
                self.send(now, prompt, output, again)

        for _ in range(streams):
            self.send(0.0, prompt, output, again)

    def tokens_between(self, since: float, until: float) -> int:
        """Tokens that came out in [since, until)."""
        return sum(since <= when < until for stream in self.streams for when in stream.token_s)


SIGMA = 0.8326
"""Of lengths with a coefficient of variation of 1."""


def lengths(source: random.Random, prompt: float, answer: float) -> tuple[int, int]:
    """Of a prompt and its answer: lognormal with these means."""
    drawn = [max(1, int(mean * source.lognormvariate(-(SIGMA**2) / 2, SIGMA))) for mean in (prompt, answer)]
    return drawn[0], drawn[1]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def mean(values: Sequence[float]) -> float:
    """Their mean, 0 of none."""
    return fmean(values) if values else 0.0
