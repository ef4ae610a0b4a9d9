"""What the engine hands out: one step, what came out of it, and what it has done in all."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._requests import Request


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started, as vLLM's `_total` metrics count it.

    Prompts count when their first token comes, cached tokens included; an aborted stream's no longer do.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    preemptions: int = 0
    steps: int = 0


@dataclass(slots=True, eq=False)
class Step:
    """One planned or running step of the engine."""

    index: int
    decodes: list[Request]
    firsts: list[Request] = field(default_factory=list)
    """Prompts it completes: each gives one token."""
    prefill_tokens: int = 0
    admitted_tokens: int = 0
    """Tokens of the prompts admitted in it, wherever computed."""
    hit_tokens: int = 0
    """Prompt tokens it found in the cache."""
    attention_kt2: float = 0.0
    context_tokens: int = 0
    start_s: float = 0.0
    duration_s: float = 0.0
    has_aborted: bool = False

    @property
    def end_s(self) -> float:
        """When its tokens come out."""
        return self.start_s + self.duration_s


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came out of a step; a sequence is in `decoded` or in `firsts` once for each token it got, that is once."""

    start_s: float
    duration_s: float
    decoded: list[Request]
    firsts: list[Request]
    """Those whose prefill ended: a first token, or the next one after a preemption."""
    finished: list[Request]
    computed_prompt_tokens: int
    """Of the prompts that had their first token: tokens not found in the cache."""

    @property
    def end_s(self) -> float:
        """When its tokens came out."""
        return self.start_s + self.duration_s
