"""Where each endpoint keeps its usage, read into one rule: OpenAI's `input_tokens` with the cached ones in it.

Absent is not zero: every reader returns None when the engine said nothing. Sources: OpenAI's `CompletionUsage` and
`ResponseUsage`; Anthropic's `usage`, whose `input_tokens` leaves the cached ones out (vLLM 0.32 subtracts them in
`entrypoints/anthropic/serving.py`), so that here they are added up.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ._requests import Endpoint
from ._usage import Usage


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class CompletionUsage(Struct):
    """`usage` of chat completions, completions and embeddings."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    def usage(self) -> Usage:
        details = self.prompt_tokens_details
        return Usage(
            input_tokens=self.prompt_tokens or 0,
            input_cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            output_tokens=self.completion_tokens or 0,
        )


class ResponseUsage(Struct):
    """`usage` of the Responses API."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _PromptDetails | None = None

    def usage(self) -> Usage:
        details = self.input_tokens_details
        return Usage(
            input_tokens=self.input_tokens or 0,
            input_cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            output_tokens=self.output_tokens or 0,
        )


class MessageUsage(Struct):
    """`usage` of Anthropic's Messages API; in a stream a later one may carry `output_tokens` alone."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def usage(self, before: Usage | None = None) -> Usage:
        before = before or Usage()
        cached, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        known = self.input_tokens is not None
        return Usage(
            input_tokens=(self.input_tokens or 0) + cached + written if known else before.input_tokens,
            input_cached_tokens=cached if known else before.input_cached_tokens,
            output_tokens=before.output_tokens if self.output_tokens is None else self.output_tokens,
        )


class _Answer(Struct):
    usage: CompletionUsage | None = None


class _ResponseAnswer(Struct):
    usage: ResponseUsage | None = None


class _MessageAnswer(Struct):
    usage: MessageUsage | None = None


_readers: dict[Endpoint, msgspec.json.Decoder[_Answer | _ResponseAnswer | _MessageAnswer]] = {
    Endpoint.CHAT: msgspec.json.Decoder(_Answer),
    Endpoint.COMPLETIONS: msgspec.json.Decoder(_Answer),
    Endpoint.EMBEDDINGS: msgspec.json.Decoder(_Answer),
    Endpoint.RESPONSES: msgspec.json.Decoder(_ResponseAnswer),
    Endpoint.MESSAGES: msgspec.json.Decoder(_MessageAnswer),
}

completion_usage = msgspec.json.Decoder(CompletionUsage)


def read_answer(endpoint: Endpoint, body: bytes) -> Usage | None:
    """Usage of a whole JSON answer; None when it holds none or is not what this endpoint answers."""
    reader = _readers.get(endpoint)
    if reader is None:
        return None
    try:
        answer = reader.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return None if answer.usage is None else answer.usage.usage()
