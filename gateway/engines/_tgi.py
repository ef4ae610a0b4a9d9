"""Text Generation Inference, in maintenance since 2025. Written after its documentation and its router's source."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from gateway.wire import Endpoint, RequestView

from ._dialect import About, Dialect, Question
from ._metrics import page


class _Info(Struct):
    max_total_tokens: int | None = None


class _Tokenized(Struct):
    tokenize_response: list[Raw]


_info = msgspec.json.Decoder(_Info)
_tokens = msgspec.json.Decoder(list[Raw])
_tokenized = msgspec.json.Decoder(_Tokenized)
_members = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode


class TGI(Dialect):
    """Its usage has no cached tokens; its counters are histograms, whose sums count what was answered."""

    name = "tgi"
    paths = frozenset({Endpoint.CHAT.path, Endpoint.COMPLETIONS.path})
    failed = frozenset({424})
    """Its word for a generation that went wrong."""
    about_path = "/info"
    metrics = page(
        {
            "tgi_request_input_length_sum": "prompt",
            "tgi_request_generated_tokens_sum": "generation",
            "tgi_batch_current_size": "running",
            "tgi_queue_size": "waiting",
            "tgi_request_count": "requests",
        }
    )

    def about(self, answer: bytes) -> About:
        return About(_info.decode(answer).max_total_tokens)

    def questions(self, view: RequestView, body: bytes, model: str) -> Sequence[Question]:
        members = _members.decode(body)
        if view.endpoint is Endpoint.CHAT:
            chat = {name: members[name] for name in ("messages", "tools") if name in members}
            return [Question("/chat_tokenize", _encode({"model": model, **chat}), _count_chat)]
        prompt = members.get("prompt", Raw())
        if view.endpoint is not Endpoint.COMPLETIONS or not bytes(prompt).startswith(b'"'):
            return []
        return [Question("/tokenize", _encode({"inputs": prompt}), _count)]

    def text_questions(self, texts: Sequence[str], model: str) -> Sequence[Question]:
        body = [_encode({"inputs": text, "add_special_tokens": False}) for text in texts]
        return [Question("/tokenize", one, _count) for one in body]


def _count(answer: bytes) -> int:
    return len(_tokens.decode(answer))


def _count_chat(answer: bytes) -> int:
    return len(_tokenized.decode(answer).tokenize_response)
