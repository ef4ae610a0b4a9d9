"""vLLM: the engine the gateway is made for. Recorded: 0.24.0 on an H200, 0.32.0 on a CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gateway.wire import Endpoint, RequestView

from ._dialect import Dialect, Load, Question
from ._metrics import page
from ._vllm_tokenizer import questions, text_questions

_WAITING: Final = re.compile(rb"num_requests_waiting=([0-9.]+)")
_KV_USAGE: Final = re.compile(rb"kv_cache_usage_perc=([0-9.]+)")


class VLLM(Dialect):
    name = "vllm"
    paths = frozenset(endpoint.path for endpoint in Endpoint)
    tells_running_usage = True
    metrics = page(
        {
            "vllm:prompt_tokens_total": "prompt",
            "vllm:prompt_tokens_cached_total": "cached",
            "vllm:generation_tokens_total": "generation",
            "vllm:num_requests_running": "running",
            "vllm:num_requests_waiting": "waiting",
            "vllm:kv_cache_usage_perc": "kv_usage",
            "vllm:num_preemptions_total": "preemptions",
            "vllm:cache_config_info": "kv_info",
            "vllm:request_success_total": "finished",
            "vllm:request_prefill_time_seconds_sum": "prefill_s",
            "vllm:request_decode_time_seconds_sum": "decode_s",
            "http_requests_total": "requests",
            "process_start_time_seconds": "started_s",
        }
    )
    load_header = b"endpoint-load-metrics-format: TEXT\r\n"
    priority_sign = -1
    takes_cache_salt = True
    returns_token_ids = True
    always_tells_usage = True
    continues_messages = True

    def questions(self, view: RequestView, body: bytes, model: str) -> Sequence[Question]:
        return questions(view, body, model)

    def text_questions(self, texts: Sequence[str], model: str) -> Sequence[Question]:
        return text_questions(texts, model)

    def load(self, header: bytes) -> Load | None:
        waiting, kv_usage = _WAITING.search(header), _KV_USAGE.search(header)
        if waiting is None or kv_usage is None:
            return None
        return Load(waiting=int(float(waiting[1])), kv_usage=float(kv_usage[1]))
