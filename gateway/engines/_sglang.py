"""SGLang. Written after its source (`srt/entrypoints`, `srt/metrics/collector.py`, 2026-08 to 2026-11).

`/health` and `/health_generate` are one handler there, which generates a token and may take 20 s: liveness is asked of
`/model_info`. A full queue refuses a stream in its first event, after status 200.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.wire import Endpoint, RequestView

from ._dialect import Dialect, Question
from ._metrics import page
from ._vllm_tokenizer import prompt_questions, text_questions


class SGLang(Dialect):
    name = "sglang"
    paths = frozenset(endpoint.path for endpoint in Endpoint)
    tells_running_usage = True
    health_path = "/model_info"
    metrics = page(
        {
            "sglang:prompt_tokens_total": "prompt",
            "sglang:cached_tokens_total": "cached",
            "sglang:generation_tokens_total": "generation",
            "sglang:num_running_reqs": "running",
            "sglang:num_queue_reqs": "waiting",
            "sglang:num_grammar_queue_reqs": "waiting",
            "sglang:token_usage": "kv_usage",
            "sglang:max_total_num_tokens": "kv_tokens",
            "sglang:num_retracted_requests_total": "preemptions",
        }
    )
    priority_sign = 1
    takes_cache_salt = True
    continues_messages = True

    def questions(self, view: RequestView, body: bytes, model: str) -> Sequence[Question]:
        """Its tokenizer takes prompts, and no messages."""
        return prompt_questions(view, body, model)

    def text_questions(self, texts: Sequence[str], model: str) -> Sequence[Question]:
        return text_questions(texts, model)
