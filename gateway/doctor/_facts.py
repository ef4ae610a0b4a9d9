"""What was asked and what came back, as bytes and numbers; nothing is judged here."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer, its header names in lower case. Status 0: there was none, and `error` says why."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    error: str = ""


class LongPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A stream beside which a long prompt was read: the times between its tokens before and meanwhile, in milliseconds.
    `prompt_tokens` is the prompt's length as the engine counted it."""

    prompt_tokens: int
    alone_ms: tuple[float, ...]
    beside_ms: tuple[float, ...]


class ReplicaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A replica's answers: None where it was not asked, since it did not answer before. `whole` is a completion with
    the header that asks for its load, `stream` one with running usage. `long_prompt` is what was measured, or why it
    could not be."""

    health: Answer
    models: Answer | None = None
    metrics: Answer | None = None
    version: Answer | None = None
    server_info: Answer | None = None
    tokenize: Answer | None = None
    whole: Answer | None = None
    stream: Answer | None = None
    long_prompt: LongPrompt | str | None = None


class TokenizerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model's `tokenizer.json`: why it cannot be used, or for some texts what it counts and what the engine does
    (None: it did not say)."""

    path: str
    error: str = ""
    counts: tuple[tuple[str, int, int | None], ...] = ()


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis says of itself, or `error`. `synced` is whether WAITAOF answered that writes are on its disk, None
    where it cannot tell. `ahead_ms` is how far its clock is ahead of the one here, known to within `within_ms`."""

    error: str = ""
    info: dict[str, str] = {}
    synced: bool | None = None
    ping_ms: float = 0
    ahead_ms: float = 0
    within_ms: float = 0


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The data directory: `error` where nothing can be written there. `sync_ms` is how long a small write took to be
    on disk, None where the directory is not there yet."""

    path: Path
    error: str = ""
    free_bytes: int = 0
    sync_ms: float | None = None
