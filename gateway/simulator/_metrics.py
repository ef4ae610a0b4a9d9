"""`/metrics` of vLLM 0.24: every family, label and bucket of the recorded `metrics_*.http`, with the same meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from ._engine import EngineCore
from ._exposition import Histogram, counter, family, plain
from ._profiles import Profile
from ._requests import Request
from ._samples import Sample
from ._steps import StepResult

_TOKENS: Final = [base * 10**power for power in range(5) for base in (1, 2, 5)] + [100_000]
_SECONDS: Final = [
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
]
_GAPS: Final = [
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
]
_FIRST: Final = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
]
_STEP: Final = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]

_HISTOGRAMS: Final[dict[str, tuple[str, Sequence[float]]]] = {
    "request_prompt_tokens": ("Number of prefill tokens processed.", _TOKENS),
    "request_generation_tokens": ("Number of generation tokens processed.", _TOKENS),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _STEP),
    "request_max_num_generation_tokens": ("Histogram of maximum number of requested generation tokens.", _TOKENS),
    "request_params_n": ("Histogram of the n request parameter.", [1, 2, 5, 10, 20]),
    "request_params_max_tokens": ("Histogram of the max_tokens request parameter.", _TOKENS),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _FIRST),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _GAPS),
    "request_time_per_output_token_seconds": ("Histogram of time_per_output_token_seconds per request.", _GAPS),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _SECONDS),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _SECONDS),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _SECONDS),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _SECONDS),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _SECONDS),
    "request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        _TOKENS,
    ),
}
_REASONS: Final = ("stop", "length", "abort", "error", "repetition")
_CACHE: Final = "prefix cache {}, in terms of number of {} tokens."
_FLOPS: Final = {
    "estimated_flops_per_gpu": "Estimated number of floating point operations per GPU",
    "estimated_read_bytes_per_gpu": "Estimated number of bytes read from memory per GPU",
    "estimated_write_bytes_per_gpu": "Estimated number of bytes written to memory per GPU",
}
_EXTERNAL: Final = (
    "External prefix cache {} from KV connector cross-instance cache sharing, in terms of number of {} tokens."
)


class EngineMetrics:
    """The `vllm:` families: what was observed, and how it is printed beside the core's own counters."""

    def __init__(self, profile: Profile, created_s: float) -> None:
        """`created_s` is the Unix time at which the engine came up."""
        self.profile = profile
        self.created_s = created_s
        self.labels = {"engine": "0", "model_name": profile.model}
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self._ended: Counter[str] = Counter()

    def first_token(self, request: Request) -> None:
        """A prompt is through."""
        self._histograms["time_to_first_token_seconds"].observe(request.first_token_s - request.arrival_s)

    def step(self, result: StepResult, gaps: Mapping[float, int]) -> None:
        """A step is over; `gaps` counts the streams by the time since their token before, in seconds."""
        tokens = result.computed_prompt_tokens + len(result.decoded) + len(result.firsts)
        self._histograms["iteration_tokens_total"].observe(tokens)
        for gap, times in gaps.items():
            self._histograms["inter_token_latency_seconds"].observe(gap, times)

    def ended(self, request: Request, sample: Sample, end_s: float) -> None:
        """A sample has ended, by itself or by its limits (hanging up ends nothing here, as in vLLM)."""
        assert sample.finish_reason is not None
        self._ended[sample.finish_reason] += 1
        decode_s = end_s - request.first_token_s
        limit = sample.sampling.max_tokens or self.profile.max_model_len - sample.prompt_tokens
        for name, value in (
            ("request_prompt_tokens", sample.prompt_tokens),
            ("request_generation_tokens", sample.tokens),
            ("request_params_max_tokens", limit),
            ("request_prefill_kv_computed_tokens", sample.prompt_tokens - sample.cached_tokens),
            ("e2e_request_latency_seconds", end_s - request.arrival_s),
            ("request_queue_time_seconds", request.scheduled_s - request.arrival_s),
            ("request_inference_time_seconds", end_s - request.scheduled_s),
            ("request_prefill_time_seconds", request.first_token_s - request.scheduled_s),
            ("request_decode_time_seconds", decode_s),
            ("request_time_per_output_token_seconds", decode_s / (sample.tokens - 1) if sample.tokens > 1 else 0.0),
        ):
            self._histograms[name].observe(value)

    def flight_ended(self, samples: Sequence[Sample]) -> None:
        """All samples of an HTTP request have ended; vLLM counts each prompt's samples together."""
        n = samples[0].sampling.n
        for first in range(0, len(samples), n):
            longest = max(one.tokens for one in samples[first : first + n])
            self._histograms["request_max_num_generation_tokens"].observe(longest)
            self._histograms["request_params_n"].observe(n)

    def text(self, core: EngineCore) -> list[str]:
        """All `vllm:` lines, in vLLM's order."""
        return [*self._state(core), *self._tokens(core), *self._requests(), *self._info()]

    def _count(self, name: str, text: str, value: float = 0.0) -> list[str]:
        return counter(f"vllm:{name}_total", text, [(self.labels, value)], self.created_s)

    def _state(self, core: EngineCore) -> list[str]:
        labels = self.labels
        lines = []
        for name, text in _FLOPS.items():
            lines += self._count(name, f"{text} (for Model Flops Utilization calculations).")
        lines += plain(
            "vllm:num_requests_running",
            "gauge",
            "Number of requests in model execution batches.",
            [(labels, core.running)],
        )
        lines += plain(
            "vllm:num_requests_waiting",
            "gauge",
            "Number of requests waiting to be processed.",
            [(labels, core.waiting)],
        )
        lines += plain(
            "vllm:num_requests_waiting_by_reason",
            "gauge",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
            "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
            "Sum of all reasons equals vllm:num_requests_waiting.",
            [({**labels, "reason": "capacity"}, core.waiting), ({**labels, "reason": "deferred"}, 0)],
        )
        lines += plain(
            "vllm:engine_sleep_state",
            "gauge",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
            "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            [
                ({**labels, "sleep_state": state}, state == "awake")
                for state in ("awake", "weights_offloaded", "discard_all")
            ],
        )
        return lines + plain(
            "vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", [(labels, core.kv_usage)]
        )

    def _tokens(self, core: EngineCore) -> list[str]:
        done = core.counters
        prefix = "Prefix" + _CACHE[len("prefix") :]
        sources = {
            "local_compute": done.prompt_tokens - done.cached_tokens,
            "local_cache_hit": done.cached_tokens,
            "external_kv_transfer": 0,
        }
        return [
            *self._count("prefix_cache_queries", prefix.format("queries", "queried"), done.cache_queries),
            *self._count("prefix_cache_hits", prefix.format("hits", "cached"), done.cache_hits),
            *self._count("external_prefix_cache_queries", _EXTERNAL.format("queries", "queried")),
            *self._count("external_prefix_cache_hits", _EXTERNAL.format("hits", "cached")),
            *self._count("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
            *self._count("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
            *self._count("num_preemptions", "Cumulative number of preemption from the engine.", done.preemptions),
            *self._count("prompt_tokens", "Number of prefill tokens processed.", done.prompt_tokens),
            *counter(
                "vllm:prompt_tokens_by_source_total",
                "Number of prompt tokens by source.",
                [({**self.labels, "source": name}, value) for name, value in sources.items()],
                self.created_s,
            ),
            *self._count(
                "prompt_tokens_cached", "Number of cached prompt tokens (local + external).", done.cached_tokens
            ),
            *self._count("generation_tokens", "Number of generation tokens processed.", done.generation_tokens),
        ]

    def _requests(self) -> list[str]:
        lines = counter(
            "vllm:request_success_total",
            "Count of successfully processed requests.",
            [({**self.labels, "finished_reason": reason}, self._ended[reason]) for reason in _REASONS],
            self.created_s,
        )
        for name, (text, _) in _HISTOGRAMS.items():
            full = f"vllm:{name}"
            lines += family(full, "histogram", text, self._histograms[name].lines(full, self.labels))
            # Not `created`: this family's own name may end in `_total`, and keeps it.
            lines += plain(f"{full}_created", "gauge", text, [(self.labels, self.created_s)])
        return lines

    def _info(self) -> list[str]:
        profile = self.profile
        info = dict.fromkeys(_UNSET, "None") | _FIXED
        info |= {
            "block_size": str(profile.block_size),
            "engine": "0",
            "kv_cache_max_concurrency": str(profile.kv_blocks * profile.block_size / profile.max_model_len),
            "kv_cache_size_tokens": str(profile.kv_blocks * profile.block_size),
            "num_gpu_blocks": str(profile.kv_blocks),
        }
        text = "Information of the LLMEngine CacheConfig"
        return plain("vllm:cache_config_info", "gauge", text, [(info, 1.0)])


_UNSET: Final = (
    *("hash_block_size", "kv_cache_memory_bytes", "kv_offloading_size", "mamba_block_size", "mamba_page_size_padded"),
    *("num_cpu_blocks", "num_gpu_blocks_override", "sliding_window"),
)
_FIXED: Final = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "calculate_kv_scales": "False",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.45",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_offloading_backend": "native",
    "kv_sharing_fast_prefill": "False",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_ssm_cache_dtype": "auto",
    "prefix_caching_hash_algo": "sha256",
    "user_specified_block_size": "False",
    "user_specified_mamba_block_size": "False",
}
