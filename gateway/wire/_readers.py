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


class InputDetails(Struct, gc=False):
    """Parts of the input: OpenAI's names, and what vLLM 0.32 adds: `created_cache_tokens` and, in the Responses API,
    `cache_write_tokens`; and tokens by modality (`image`, `audio`, `video`)."""

    cached_tokens: int | None = None
    created_cache_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    multimodal_tokens: dict[str, int] | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class CompletionUsage(Struct, gc=False):
    """`usage` of chat completions, completions and embeddings."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None

    def usage(self) -> Usage:
        return _usage(
            self.prompt_tokens, self.completion_tokens, self.prompt_tokens_details, self.completion_tokens_details
        )


class ResponseUsage(Struct, gc=False):
    """`usage` of the Responses API."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None

    def usage(self) -> Usage:
        return _usage(self.input_tokens, self.output_tokens, self.input_tokens_details, self.output_tokens_details)


def _usage(
    input_tokens: int | None, output_tokens: int | None, inputs: InputDetails | None, outputs: _OutputDetails | None
) -> Usage:
    if inputs is None and outputs is None:
        return Usage(input_tokens=input_tokens or 0, output_tokens=output_tokens or 0)
    inputs = inputs or InputDetails()
    outputs = outputs or _OutputDetails()
    by_modality = inputs.multimodal_tokens or {}
    return Usage(
        input_tokens=input_tokens or 0,
        input_cached_tokens=inputs.cached_tokens or 0,
        input_cache_write_tokens=inputs.created_cache_tokens or inputs.cache_write_tokens or 0,
        input_audio_tokens=inputs.audio_tokens or by_modality.get("audio", 0),
        input_image_tokens=inputs.image_tokens or by_modality.get("image", 0),
        output_tokens=output_tokens or 0,
        output_reasoning_tokens=outputs.reasoning_tokens or 0,
        output_audio_tokens=outputs.audio_tokens or 0,
    )


class MessageUsage(Struct, gc=False):
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
            input_cache_write_tokens=written if known else before.input_cache_write_tokens,
            output_tokens=before.output_tokens if self.output_tokens is None else self.output_tokens,
        )


class _Answer(Struct):
    usage: CompletionUsage | None = None


class _ResponseAnswer(Struct):
    usage: ResponseUsage | None = None


class _MessageAnswer(Struct):
    usage: MessageUsage | None = None


_readers: dict[str, msgspec.json.Decoder[_Answer | _ResponseAnswer | _MessageAnswer]] = {
    Endpoint.CHAT.path: msgspec.json.Decoder(_Answer),
    Endpoint.COMPLETIONS.path: msgspec.json.Decoder(_Answer),
    Endpoint.EMBEDDINGS.path: msgspec.json.Decoder(_Answer),
    Endpoint.RESPONSES.path: msgspec.json.Decoder(_ResponseAnswer),
    Endpoint.MESSAGES.path: msgspec.json.Decoder(_MessageAnswer),
}

completion_usage = msgspec.json.Decoder(CompletionUsage)


def read_answer(endpoint: Endpoint, body: bytes) -> Usage | None:
    """Usage of a whole JSON answer; None when it holds none or is not what this endpoint answers."""
    reader = _readers.get(endpoint.path)
    if reader is None:
        return None
    try:
        answer = reader.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return None if answer.usage is None else answer.usage.usage()
