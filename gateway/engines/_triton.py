"""Triton's OpenAI frontend, in front of vLLM or TensorRT-LLM. Written after its README and source (25.x).

It tells load at Triton's own metrics port and no token counters that a ledger could be held against; it has neither a
tokenizer nor a context to ask for.
"""

from __future__ import annotations

from ._dialect import Dialect
from ._metrics import page

METRICS_PORT = 8002
"""Triton's default."""


class Triton(Dialect):
    name = "triton"
    health_path = "/health/ready"
    metrics = page(
        {
            'nv_trt_llm_request_metrics{request_type="scheduled"}': "running",
            'nv_trt_llm_request_metrics{request_type="waiting"}': "waiting",
            'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}': "kv_usage",
            'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max"}': "kv_blocks",
            'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per"}': "kv_block_tokens",
            "nv_inference_pending_request_count": "waiting",
        },
        port=METRICS_PORT,
    )
