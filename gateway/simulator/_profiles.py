"""Engines to imitate: their limits and their times, each with the place where it was measured.

One model of time for everything, so that no curve is fitted on its own. A step is either pure decode,

    decode_base + per_sequence * B + per_context * C

with B decoding streams and C thousand tokens of context over all of them, or it also computes T thousand prompt tokens,
chunk by chunk, each with p thousand tokens before it, having admitted prompts of A thousand tokens, of which it found H
thousand in the cache:

    max(prefill_floor, prefill_base + per_prefill * T + per_attention * sum(T_i * (p_i + T_i / 2)))
        + per_sequence * B + per_context_beside * C + per_admitted * A + per_hit * H

and no step is shorter than its B tokens take in the API server (`events_per_s`). Around the steps a request waits
for the API server: a fixed time, and a part that one process does for one request after the other (parsing, hashing).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Milliseconds of one engine step; `_kt` is per 1,000 tokens.

    Source of the defaults: `vllm-0.24.0-h200/README.md`, "Formulas for a simulator" and "Engine flags against a noisy
    neighbour". `prefill_base_ms` is that page's 3.1 less the 16 decoding streams that were beside it (0.5), and the
    attention term counts from the middle of a chunk, where the page, which fitted short chunks, counts from its start.
    """

    decode_base_ms: float = 4.89
    per_sequence_ms: float = 0.0127
    per_context_kt_ms: float = 0.0302
    per_context_beside_kt_ms: float = 0.057
    """The same context beside a prompt: read off the Poisson runs from 30 to 40 req/s, where all else is known."""
    prefill_base_ms: float = 2.6
    per_prefill_kt_ms: float = 20.7
    per_attention_kt2_ms: float = 0.92
    per_admitted_kt_ms: float = 0.4
    """Hashing a new prompt holds the engine: 100,000 tokens stop the others for 0.03 s before the first chunk."""
    per_hit_kt_ms: float = 1.1
    """Finding and referencing cached blocks holds it too: a hit of 100,000 tokens takes 0.2 s."""
    prefill_floor_ms: float = 10.5
    """A step with any prompt in it leaves the full CUDA graph: beside a short newcomer gaps are 10 to 11 ms."""
    wake_ms: float = 5.0
    """An idle engine's first step; a newcomer beside others, whose TTFT is hardly longer, does not have it."""
    events_per_s: float = 15_000.0
    """What one API server process streams; 256 streams run at 17 ms a step where the GPU needs 12.7."""

    def step_ms(
        self,
        *,
        decoding: int,
        context_tokens: int,
        prefill_tokens: int,
        attention_kt2: float,
        admitted_tokens: int,
        hit_tokens: int,
    ) -> float:
        """Duration of one step; `attention_kt2` is the sum of T * (p + T / 2) over its chunks, in (1,000 tokens)^2."""
        context_kt = context_tokens / 1000.0
        if prefill_tokens:
            compute = (
                self.prefill_base_ms
                + self.per_prefill_kt_ms * prefill_tokens / 1000.0
                + self.per_attention_kt2_ms * attention_kt2
            )
            gpu = max(self.prefill_floor_ms, compute) + self.per_context_beside_kt_ms * context_kt
            gpu += (self.per_admitted_kt_ms * admitted_tokens + self.per_hit_kt_ms * hit_tokens) / 1000.0
        else:
            gpu = self.decode_base_ms + self.per_context_kt_ms * context_kt
        gpu += self.per_sequence_ms * decoding
        return max(gpu, decoding * 1000.0 / self.events_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTimes:
    """Milliseconds in the API server before a prompt reaches the engine.

    Source: the same page, "TTFT with the whole prompt cached" = 18.8 + 1.9 n, of which the short step is 10.5, the
    wake-up 5 and what the engine does with a new prompt and its hits 1.5 n; the traces beside it, where the other
    streams make 6 tokens between the sending of a prompt of 100,000 and its first chunk. The serial part is one
    process's work, so a burst of requests queues for it.
    """

    fixed_ms: float = 1.5
    serial_ms: float = 0.7
    per_prompt_kt_ms: float = 0.4
    metrics_ms: float = 11.0
    """One read of `/metrics` (measured 11 to 15, more under load), during which the process does nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One engine to imitate: its configuration, its times, and how its answers look.

    `speed` divides every time: 10 makes a replica ten times as fast. `kv_blocks` counts vLLM's null block, as
    `num_gpu_blocks` does.
    """

    name: str
    model: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_size: int = 16
    long_prefill_token_threshold: int = 0
    steps: StepTimes = field(default_factory=StepTimes)
    api: ApiTimes = field(default_factory=ApiTimes)
    speed: float = 1.0
    vocabulary: int = 128_256
    answer_tokens: int = 140
    """Median length of an answer that nothing but its own end limits."""
    embeddings: bool = False
    """Whether `/v1/embeddings` answers; vLLM serving a generating model says 404."""
    version: str = "0.24.0"
    fingerprint: str = "vllm-0.24.0-e4c7a98d"

    def __post_init__(self) -> None:
        """Refuse what vLLM itself refuses at start: ValueError, with what to change."""
        capacity = (self.kv_blocks - 1) * self.block_size
        if min(self.block_size, self.speed, self.max_num_seqs, self.max_model_len - 1, capacity) <= 0:
            raise ValueError("block size, speed, max_num_seqs, context and KV blocks must be positive")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} must be at least "
                f"max_num_seqs {self.max_num_seqs}"
            )
        if self.max_model_len > capacity:
            raise ValueError(
                f"a context of {self.max_model_len} tokens does not fit {self.kv_blocks} KV blocks of "
                f"{self.block_size}, one of which is reserved: more blocks, or a context of at most {capacity}"
            )

    def override(
        self,
        *,
        model: str | None = None,
        context: int | None = None,
        max_num_seqs: int | None = None,
        kv_blocks: int | None = None,
        speed: float | None = None,
        long_prefill_token_threshold: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> Profile:
        """The same engine with other limits; what is None stays. A smaller cache shortens the context to what fits."""
        blocks = kv_blocks or self.kv_blocks
        length = context or min(self.max_model_len, (blocks - 1) * self.block_size)
        return replace(
            self,
            model=model or self.model,
            max_model_len=length,
            max_num_seqs=max_num_seqs or self.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens or max(self.max_num_batched_tokens, max_num_seqs or 0),
            long_prefill_token_threshold=(
                self.long_prefill_token_threshold
                if long_prefill_token_threshold is None
                else long_prefill_token_threshold
            ),
            kv_blocks=blocks,
            speed=speed or self.speed,
        )


H200_LLAMA_8B: Final = Profile(
    name="h200-llama-8b",
    model="llama-8b",
    max_model_len=131_072,
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
    kv_blocks=23_847,
)
"""vLLM 0.24.0, Llama-3.1-8B shape in bf16 on one H200, all defaults: replica A of `vllm-0.24.0-h200/README.md`."""

TINY: Final = Profile(
    name="tiny",
    model="tiny",
    max_model_len=4096,
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    kv_blocks=256,
    block_size=32,
    steps=StepTimes(
        decode_base_ms=1.0,
        per_sequence_ms=0.01,
        per_context_kt_ms=0.01,
        per_context_beside_kt_ms=0.01,
        per_admitted_kt_ms=0.05,
        per_hit_kt_ms=0.1,
        prefill_base_ms=1.0,
        per_prefill_kt_ms=4.0,
        per_attention_kt2_ms=0.1,
        prefill_floor_ms=1.5,
        wake_ms=0.2,
    ),
    api=ApiTimes(fixed_ms=0.3, serial_ms=0.1, per_prompt_kt_ms=0.2, metrics_ms=0.5),
    answer_tokens=60,
)
"""The limits of the small real replica that tests use (256 blocks of 32, 4,096 tokens of context, 32 sequences); the
times are chosen, not measured: about 1 ms a step, for demos and tests that wait for real time."""

INSTANT: Final = Profile(
    name="instant",
    model="tiny",
    max_model_len=131_072,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    kv_blocks=23_847,
    steps=StepTimes(
        decode_base_ms=0.01,
        per_sequence_ms=0.0,
        per_context_kt_ms=0.0,
        per_context_beside_kt_ms=0.0,
        per_admitted_kt_ms=0.0,
        per_hit_kt_ms=0.0,
        prefill_base_ms=0.01,
        per_prefill_kt_ms=0.0,
        per_attention_kt2_ms=0.0,
        prefill_floor_ms=0.01,
        wake_ms=0.0,
        events_per_s=1e9,
    ),
    api=ApiTimes(fixed_ms=0.0, serial_ms=0.0, per_prompt_kt_ms=0.0, metrics_ms=0.0),
)
"""No time at all: for tests of bytes, where only order matters."""

PROFILES: Final[dict[str, Profile]] = {profile.name: profile for profile in (H200_LLAMA_8B, TINY, INSTANT)}
