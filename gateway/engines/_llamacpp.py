"""llama.cpp's own server (`llama-server`). Recorded; and run for real by tests/real."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from gateway.wire import Endpoint, RequestView, StreamScanner, Usage, add_fields, timings_scanner_for

from ._dialect import About, Dialect, Question
from ._metrics import page


class _Meta(Struct):
    n_ctx: int | None = None


class _Card(Struct):
    meta: _Meta | None = None


class _Cards(Struct):
    data: list[_Card] = []


class _Templated(Struct):
    prompt: str


class _Tokens(Struct):
    tokens: list[int]


class _Counted(Struct):
    input_tokens: int


_cards = msgspec.json.Decoder(_Cards)
_templated = msgspec.json.Decoder(_Templated)
_tokens = msgspec.json.Decoder(_Tokens)
_counted = msgspec.json.Decoder(_Counted)
_members = msgspec.json.Decoder(dict[str, Raw])
_prompts = msgspec.json.Decoder(list[str])
_encode = msgspec.json.Encoder().encode

_TEMPLATE_FIELDS = ("messages", "tools", "tool_choice", "add_generation_prompt", "chat_template_kwargs")
_TIMINGS = b'"timings_per_token":true'


class LlamaCpp(Dialect):
    """Its `timings` beside each token tell what running usage tells of vLLM, and the cached tokens too. Its counter of
    prompt tokens leaves the cached ones out, so that here both add up to the prompt."""

    name = "llamacpp"
    paths = frozenset(endpoint.path for endpoint in Endpoint if endpoint is not Endpoint.TOKENIZE)
    counts_each_sample = False
    metrics = page(
        {
            "llamacpp:prompt_tokens_total": "prompt",
            "llamacpp:prompt_tokens_cached_total": ("prompt", "cached"),
            "llamacpp:tokens_predicted_total": "generation",
            "llamacpp:requests_processing": "running",
            "llamacpp:requests_deferred": "waiting",
        }
    )

    def ask_usage(self, view: RequestView, body: bytes, *, token_ids: bool = False) -> bytes:
        body = super().ask_usage(view, body)
        return add_fields(body, _TIMINGS) if view.endpoint.has_stream_options else body

    def scanner(self, view: RequestView) -> StreamScanner:
        return timings_scanner_for(view) if view.endpoint.has_stream_options else super().scanner(view)

    def usage(self, view: RequestView, body: bytes) -> Usage | None:
        """Of several answers it tells one's usage, which is not the request's."""
        return super().usage(view, body) if view.answers == 1 else None

    def about(self, answer: bytes) -> About:
        """The context of one slot: the server divides it among them. It serves one model, by any name."""
        metas = (card.meta for card in _cards.decode(answer).data)
        contexts = [meta.n_ctx for meta in metas if meta is not None and meta.n_ctx is not None]
        return About(min(contexts, default=None))

    def questions(self, view: RequestView, body: bytes, model: str) -> Sequence[Question]:
        """A chat is first put into the template, then counted."""
        members = _members.decode(body)
        match view.endpoint:
            case Endpoint.CHAT:
                chat = {name: members[name] for name in _TEMPLATE_FIELDS if name in members}
                return [Question("/apply-template", _encode(chat), _count_templated)]
            case Endpoint.COMPLETIONS | Endpoint.EMBEDDINGS:
                raw = members.get("prompt" if view.endpoint is Endpoint.COMPLETIONS else "input")
                if raw is None or view.prompt_tokens is not None or view.open_ended:
                    return []
                prompts = [msgspec.json.decode(raw, type=str)] if bytes(raw)[:1] == b'"' else _prompts.decode(raw)
                return [_question(prompt, add_special=True) for prompt in prompts]
            case Endpoint.MESSAGES:
                return [Question("/v1/messages/count_tokens", body, _count_messages)]
            case _:
                return []

    def text_questions(self, texts: Sequence[str], model: str) -> Sequence[Question]:
        return [_question(text, add_special=False) for text in texts]


def _question(text: str, *, add_special: bool) -> Question:
    body = {"content": text, "add_special": add_special, "parse_special": True}
    return Question("/tokenize", _encode(body), _count)


def _count(answer: bytes) -> int:
    return len(_tokens.decode(answer).tokens)


def _count_messages(answer: bytes) -> int:
    return _counted.decode(answer).input_tokens


def _count_templated(answer: bytes) -> Question:
    return _question(_templated.decode(answer).prompt, add_special=True)
