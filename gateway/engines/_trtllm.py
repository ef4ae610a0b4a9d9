"""TensorRT-LLM's server, `trtllm-serve`. Written after its source (`tensorrt_llm/serve`, 2026).

It refuses every field it does not know, so that nothing of vLLM's own may be put into a body. Its Prometheus page is
not at `/metrics`, whose JSON is drained by reading; older versions spell the prefix with a colon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.wire import Endpoint, RequestView

from ._dialect import Dialect, Question
from ._metrics import Meaning, page
from ._vllm_tokenizer import prompt_questions, text_questions

_SERIES: Final[dict[str, Meaning]] = {
    "prompt_tokens_total": "prompt",
    "prompt_cached_tokens_total": "cached",
    "generation_tokens_total": "generation",
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "kv_cache_utilization": "kv_usage",
    "kv_cache_max_blocks": "kv_blocks",
    "kv_cache_tokens_per_block": "kv_block_tokens",
}
_TOKENIZE: Final = "/_internal/tokenize"


class TensorRTLLM(Dialect):
    name = "tensorrt-llm"
    paths = frozenset(
        endpoint.path for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RESPONSES)
    )
    tells_running_usage = True
    metrics = page(
        {prefix + name: meaning for prefix in ("trtllm_", "trtllm:") for name, meaning in _SERIES.items()},
        path="/prometheus/metrics",
    )

    def questions(self, view: RequestView, body: bytes, model: str) -> Sequence[Question]:
        return prompt_questions(view, body, model, path=_TOKENIZE, only_prompt=True)

    def text_questions(self, texts: Sequence[str], model: str) -> Sequence[Question]:
        return text_questions(texts, model, path=_TOKENIZE, only_prompt=True)
