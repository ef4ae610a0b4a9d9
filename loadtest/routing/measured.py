"""The workload that was measured on a GPU, on simulated replicas of the same engine, beside what was measured.

`vllm-0.24.0-h200/README.md`, "Routing": 40 sessions of 6 turns on 20 system prompts of 2,000 to 3,000 tokens, 96 tokens
out each, two replicas of 57,600 tokens of cache on one GPU. What that page does not say was read off its figures: the
questions' length and the number of sessions of a kind from the tokens computed, starts over two gaps and gaps of half
to one and a half times their mean from the last planned turn and from how late turns began.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.simulator import StepTimes

from .texts import dice
from .workloads import H200, Session, Turn, Workload, opening

REPLICAS, SESSIONS, TURNS, KINDS, ANSWER = 2, 40, 6, 20, 96
PROFILE = H200.override(context=32_768, max_num_seqs=64, kv_blocks=3_600)
SHARED = 2.25
"""The GPU's part of a step takes so much longer beside the other replica's, which has its turns on the same GPU: half
the time, less what changing over costs (median gaps of 12.6 ms, where one replica alone has 5.3)."""


def _beside(steps: StepTimes) -> StepTimes:
    """What the GPU computes is stretched; launching kernels (`prefill_floor_ms`) and the API server are not."""
    return replace(
        steps,
        decode_base_ms=steps.decode_base_ms * SHARED,
        per_sequence_ms=steps.per_sequence_ms * SHARED,
        per_context_kt_ms=steps.per_context_kt_ms * SHARED,
        per_context_beside_kt_ms=steps.per_context_beside_kt_ms * SHARED,
        prefill_base_ms=steps.prefill_base_ms * SHARED,
        per_prefill_kt_ms=steps.per_prefill_kt_ms * SHARED,
        per_attention_kt2_ms=steps.per_attention_kt2_ms * SHARED,
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """Cached share; times in milliseconds."""

    cached_share: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    answer_p50_ms: float


MEASURED: dict[tuple[float, str], Measured] = {
    (5.0, "round robin"): Measured(0.6475, 71.6, 346.9, 1435.7),
    (5.0, "least loaded"): Measured(0.6632, 69.2, 309.8, 1428.9),
    (5.0, "sticky by session"): Measured(0.8764, 44.6, 207.9, 1227.6),
    (5.0, "sticky by prefix"): Measured(0.8934, 44.4, 186.7, 1227.0),
    (2.0, "round robin"): Measured(0.6081, 90.8, 1670.1, 2319.1),
    (2.0, "least loaded"): Measured(0.7471, 69.7, 312.1, 2039.0),
    (2.0, "sticky by prefix"): Measured(0.8934, 54.5, 244.4, 1537.4),
}


def measured(seed: int, gap_s: float) -> Workload:
    """With the next turn `gap_s` after the one before, on average."""
    source = dice(f"measured {seed}")
    lengths = [source.randint(2130, 3000) for _ in range(KINDS)]
    kinds = [*range(KINDS), *(source.randrange(KINDS) for _ in range(SESSIONS - KINDS))]
    source.shuffle(kinds)
    sessions = []
    for number, kind in enumerate(kinds):
        planned_s = source.uniform(0.0, 2.0)
        turns: list[Turn] = []
        for _ in range(TURNS):
            turns.append(Turn(planned_s * gap_s, source.randint(78, 158), ANSWER))
            planned_s += source.uniform(0.5, 1.5)
        start = opening(f"measured {seed} kind {kind}", lengths[kind])
        sessions.append(Session(f"measured {seed} {number}", start, turns, kind))
    return Workload(
        f"measured, gap {gap_s:g} s", [sessions], profile=PROFILE, replicas=REPLICAS, beside=_beside(PROFILE.steps)
    )
