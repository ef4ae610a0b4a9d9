"""The face all engines have here: how each says what the gateway has to know. Pure: bytes and values in and out.

The base class is what an engine that speaks OpenAI's API and nothing else does; each engine's module says where it
differs. What stands behind the differences: `docs/engines.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.errors import Refusal
from gateway.wire import Endpoint, RequestView, StreamScanner, Usage, ask_usage, read_answer, scanner_for

from ._metrics import MetricsPage
from ._refusals import engine_refusal

EngineName = Literal["vllm", "sglang", "tgi", "tensorrt-llm", "llamacpp", "triton", "openai"]


class Question(Struct, frozen=True):
    """What to ask an engine's tokenizer: POST `body` to `path`. `read` makes of the answer the count, or another
    question with whose answer it goes on, or None where it says nothing."""

    path: str
    body: bytes
    read: Callable[[bytes], int | Question | None]


class Load(Struct, frozen=True, kw_only=True):
    """What an answer's headers say of the engine's load: sequences waiting there, and the used part of its KV cache."""

    waiting: int
    kv_usage: float


class About(Struct, frozen=True):
    """The context that an engine serves, in tokens, of several models the smallest; and the names it serves models by,
    none where it takes any."""

    context_tokens: int | None
    models: tuple[str, ...] = ()


class _Card(Struct):
    id: str = ""
    max_model_len: int | None = None


class _Cards(Struct):
    data: list[_Card] = []


REFUSES_KEY = Refusal(
    status=502,
    code="engine_error",
    message="The engine of this model does not accept this gateway's own key. Tell your platform team.",
)
_NOT_OUR_KEY = frozenset({401, 402, 403})

_cards = msgspec.json.Decoder(_Cards)

_CHATS = frozenset({Endpoint.CHAT.path, Endpoint.COMPLETIONS.path})


class Dialect:
    """One engine's ways. There is one value of each class; `dialect_of` finds it by the policy's name for it."""

    name: EngineName
    paths: frozenset[str] = _CHATS | {Endpoint.EMBEDDINGS.path}
    """What it serves of the gateway's endpoints, by `Endpoint.path`."""
    tells_running_usage: bool = False
    """Whether `continuous_usage_stats` brings usage beside every token, of each choice for itself."""
    counts_each_sample: bool = True
    """Whether its counter of prompt tokens counts a prompt once for each of its samples, as vLLM's does."""
    full: frozenset[int] = frozenset({429, 503})
    """Statuses that say: not now. They speak neither for nor against the engine's health."""
    failed: frozenset[int] = frozenset()
    """Statuses below 500 by which the engine says that it failed."""
    health_path: str | None = "/health"
    """What a probe asks; 200 is healthy. None: only whether it can be connected to."""
    about_path: str | None = "/v1/models"
    """What tells which models it serves, and their context: see `about`."""
    metrics: MetricsPage | None = None
    load_header: bytes = b""
    """A request's header line, ended with CRLF, that makes plain answers carry the load: see `load`."""
    priority_sign: Literal[-1, 0, 1] = 0
    """What its `priority` is per priority of a class: vLLM serves the lowest first. 0: it has none."""
    takes_cache_salt: bool = False
    """Whether `cache_salt` keeps a prompt's blocks apart from those of another salt."""
    returns_token_ids: bool = False
    """Whether `return_token_ids` brings the ids of prompt and answer as vLLM tells them, by which an answer can be
    continued exactly."""
    always_tells_usage: bool = False
    """Whether every whole answer that it computed has its usage: one without is garbage."""
    continues_messages: bool = False
    """Whether a chat goes on with its last message: `continue_final_message`, with `add_generation_prompt: false`."""
    has_base_path: bool = False
    """Whether its address may have a path, which stands for `/v1` then: hosted providers."""
    kept_headers: frozenset[bytes] | None = None
    """Headers of its answers that are the client's business; None: all that are not the connection's."""
    idle_ttl_s: float | None = None
    """How long a connection is kept without use; None: as long as engines' own servers keep theirs."""

    def serves(self, endpoint: Endpoint) -> bool:
        """Whether it has the endpoint."""
        return endpoint.path in self.paths

    def path(self, base: str, path: str) -> str:
        """Where an endpoint is, for an engine whose address has this path."""
        return path

    def ask_usage(self, view: RequestView, body: bytes, *, token_ids: bool = False) -> bytes:
        """The body of a stream with what makes the engine tell its usage, and `token_ids`, where it can."""
        if not view.endpoint.has_stream_options:
            return body
        return ask_usage(
            body,
            client_set=view.sent_stream_options,
            running=self.tells_running_usage,
            token_ids=token_ids and self.returns_token_ids,
        )

    def scanner(self, view: RequestView) -> StreamScanner:
        """Reads the request's stream."""
        return scanner_for(view, per_choice=self.tells_running_usage)

    def usage(self, view: RequestView, body: bytes) -> Usage | None:
        """Usage of a whole answer; None when it tells none."""
        return read_answer(view.endpoint, body)

    def refusal(self, status: int, body: bytes) -> Refusal:
        """What a client reads for an answer of `status` >= 400. Its own key has been accepted before: an engine that
        refuses one, or an account, means the platform's."""
        if status in _NOT_OUR_KEY:
            return REFUSES_KEY
        return engine_refusal(502 if status in self.failed else status, body)

    def about(self, answer: bytes) -> About:
        """What stands at `about_path`. Raises `msgspec.DecodeError`."""
        cards = _cards.decode(answer).data
        contexts = [card.max_model_len for card in cards if card.max_model_len is not None]
        return About(min(contexts, default=None), tuple(card.id for card in cards))

    def questions(self, view: RequestView, body: bytes, model: str) -> Sequence[Question]:
        """One for each of a request's prompts; empty where its tokenizer cannot be asked about it."""
        return ()

    def text_questions(self, texts: Sequence[str], model: str) -> Sequence[Question]:
        """The same for generated texts, which have no tokens of a template around them; empty where it has none."""
        return ()

    def load(self, header: bytes) -> Load | None:
        """The load, of the answer's header that `load_header` asked for."""
        return None
