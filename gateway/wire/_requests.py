"""The few fields of a request that the gateway needs; everything else stays bytes.

One typed decode per endpoint. msgspec skips what a struct does not name, so a 3.7 kB chat body costs about 3 µs, and
the body that reaches the engine is the client's own.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from gateway.errors import Refusal, Refused

from ._attachments import ONLY_TEXTS, beside_texts, beside_texts_of_items
from ._templates import composing_bytes, only_switches, tools_bytes

Count = Annotated[int, Meta(ge=1)]

_NOTHING = Raw()

COMPLETION_TOKENS = 16
"""What /v1/completions generates for a client that does not say: OpenAI's default and vLLM's. `null` is no default."""


class Endpoint(Enum):
    """A relayed path and what it means to the meter.

    What is read per request is set once as plain attributes: an enum's own `value` and hash are Python calls.
    """

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    EMBEDDINGS = "/v1/embeddings"
    TOKENIZE = "/tokenize"
    COUNT_TOKENS = "/v1/messages/count_tokens"

    def __init__(self, path: str) -> None:
        self.path = path
        self.has_stream_options = path in ("/v1/chat/completions", "/v1/completions")
        """Whether usage in a stream has to be asked for, with OpenAI's `stream_options`."""
        self.generates = self.has_stream_options or path in ("/v1/responses", "/v1/messages")
        """Whether an answer holds output tokens."""
        self.has_priority = self.has_stream_options or path == "/v1/responses"
        """Whether vLLM's requests have a `priority` here."""
        self.computes = self.generates or path == "/v1/embeddings"
        """Whether it takes GPU time, so that its tokens are limited and billed."""


class RequestView(Struct, frozen=True, kw_only=True, gc=False):
    """What one request asks for.

    `prompt` holds the raw JSON the prompt is made of, most stable part first: input of the prefix chain and an upper
    bound of its length (a token is at least one byte). `prompt_tokens` (all prompts) and `longest_tokens` (the longest
    of them) are known only when the client sent token ids.
    `attachments` counts its parts that are no text (`attachment_bytes` of it), `open_ended` is whether the client
    says itself how messages become text, or has the engine add some: of neither do bytes bound the tokens.
    `added_bytes` is what a template may write of tools and calls beyond their JSON in `prompt`, and what a tokenizer
    may make of the letters.
    `answers` is how many sequences the engine will generate (samples × prompts), `prompts` how many it must read.
    `output_tokens` is the client's own bound per answer, `output_field` the field it stands in or would stand in.
    `stops`: the client sent stop strings, whose beginnings an engine holds back. `wants_token_ids` is what it said of
    vLLM's `return_token_ids`; None: nothing.
    `user` and `metadata` are raw JSON, unchecked and empty when not sent: nothing but the split of usage needs them.
    So is `cache_salt`, empty for null too. The first `tools_bytes` of `prompt` are the tools, the next `system_bytes`
    what stands beside the messages as their system prompt. `moves_cache` is whether it tells the engine to send or
    fetch cached blocks.
    """

    endpoint: Endpoint
    model: str
    prompt: bytes
    prompt_tokens: int | None = None
    longest_tokens: int | None = None
    attachments: int = 0
    attachment_bytes: int = 0
    open_ended: bool = False
    added_bytes: int = 0
    stream: bool = False
    prompts: int = 1
    samples: int = 1
    output_tokens: int | None = None
    output_field: str = "max_tokens"
    wants_usage: bool = False
    wants_running_usage: bool = False
    sent_stream_options: bool = False
    stops: bool = False
    wants_token_ids: bool | None = None
    user: bytes = b""
    metadata: bytes = b""
    cache_salt: bytes = b""
    tools_bytes: int = 0
    system_bytes: int = 0
    moves_cache: bool = False

    @property
    def answers(self) -> int:
        return self.prompts * self.samples


class _StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Caches(Struct):
    """What vLLM takes about its prefix cache. Raw, so that what is odd is the engine's to refuse."""

    cache_salt: Raw = _NOTHING
    kv_transfer_params: Raw = _NOTHING


class _SaysOfItself(_Caches):
    """What OpenAI's requests say for splitting usage. Raw, so that no odd value is refused here."""

    user: Raw = _NOTHING
    safety_identifier: Raw = _NOTHING
    metadata: Raw = _NOTHING


class _Chat(_SaysOfItself, kw_only=True):
    model: str
    messages: Raw
    tools: Raw | UnsetType = UNSET
    documents: Raw = _NOTHING
    chat_template: Raw = _NOTHING
    chat_template_kwargs: Raw = _NOTHING
    response_format: Raw = _NOTHING
    stream: bool | None = None
    stream_options: _StreamOptions | UnsetType | None = UNSET
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Count | None = None
    stop: Raw = _NOTHING
    return_token_ids: Raw = _NOTHING


class _Completions(_SaysOfItself, kw_only=True):
    model: str
    prompt: Raw | UnsetType = UNSET
    prompt_embeds: Raw = _NOTHING
    stream: bool | None = None
    stream_options: _StreamOptions | UnsetType | None = UNSET
    max_tokens: Count | None = COMPLETION_TOKENS
    n: Count | None = None
    best_of: Count | None = None
    stop: Raw = _NOTHING
    return_token_ids: Raw = _NOTHING


class _Responses(_SaysOfItself, kw_only=True):
    model: str
    input: Raw
    instructions: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    chat_template_kwargs: Raw = _NOTHING
    previous_response_id: Raw = _NOTHING
    previous_input_messages: Raw = _NOTHING
    prompt: Raw = _NOTHING
    stream: bool | None = None
    max_output_tokens: Count | None = None


class _Messages(_Caches, kw_only=True):
    model: str
    messages: Raw
    system: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    stream: bool | None = None
    max_tokens: Count | None = None
    metadata: Raw = _NOTHING
    chat_template_kwargs: Raw = _NOTHING
    output_config: Raw = _NOTHING


class _MessagesMetadata(Struct):
    user_id: Raw = _NOTHING


class _Embeddings(_SaysOfItself, kw_only=True):
    model: str
    input: Raw
    messages: Raw = _NOTHING
    padding: Raw = _NOTHING


class _Tokenize(Struct):
    model: str
    prompt: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET


_chat = msgspec.json.Decoder(_Chat)
_completions = msgspec.json.Decoder(_Completions)
_responses = msgspec.json.Decoder(_Responses)
_messages = msgspec.json.Decoder(_Messages)
_embeddings = msgspec.json.Decoder(_Embeddings)
_tokenize = msgspec.json.Decoder(_Tokenize)
_messages_metadata = msgspec.json.Decoder(_MessagesMetadata)
_raw_list = msgspec.json.Decoder(list[Raw])
_token_ids = msgspec.json.Decoder(list[int])


def parse(endpoint: Endpoint, body: bytes) -> RequestView:
    """Reads a request body.

    Raises `Refused` (400 with `param`) for what is not JSON or UTF-8, nested too deep, of a wrong type or out of range.
    """
    try:
        if not body.isascii():
            body.decode()
        return _PARSERS[endpoint.path](body)
    except UnicodeDecodeError as error:
        raise _bad(None, f"The body is not valid UTF-8 (byte {error.start}). Send JSON encoded as UTF-8.") from error
    except RecursionError as error:
        raise _bad(None, "The body is nested too deep. Send fewer levels of arrays and objects.") from error
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise _bad(None, f"The body is not valid JSON ({reason}). Send one JSON object.") from error


def _parse_chat(body: bytes) -> RequestView:
    view = _chat.decode(body)
    _require_items(view.messages, "messages")
    messages = bytes(view.messages)
    prompt = messages if view.tools is UNSET else bytes(view.tools) + messages
    beside = beside_texts(messages)
    added = beside.calls_bytes if prompt.isascii() else beside.calls_bytes + composing_bytes(prompt)
    open_ended = False
    if view.tools is not UNSET or view.chat_template or view.chat_template_kwargs or view.response_format:
        room = _template_room(view.tools, view.response_format, view.chat_template_kwargs)
        open_ended = room is None or _is_given(view.chat_template)
        added += room or 0
    output_field = "max_tokens" if view.max_completion_tokens is None else "max_completion_tokens"
    return RequestView(
        endpoint=Endpoint.CHAT,
        model=view.model,
        prompt=prompt,
        tools_bytes=len(prompt) - len(messages),
        attachments=beside.attachments + 1 if _is_given(view.documents) else beside.attachments,
        attachment_bytes=beside.attachment_bytes,
        open_ended=open_ended,
        added_bytes=added,
        stream=bool(view.stream),
        samples=view.n or 1,
        output_tokens=view.max_completion_tokens or view.max_tokens,
        output_field=output_field,
        stops=bool(view.stop) and bytes(view.stop) not in (b"null", b"[]"),
        wants_token_ids=bytes(view.return_token_ids) == b"true" if view.return_token_ids else None,
        user=_user(view),
        metadata=bytes(view.metadata) if view.metadata else b"",
        cache_salt=_given(view.cache_salt),
        moves_cache=_is_given(view.kv_transfer_params),
        **_usage_wishes(view.stream_options),
    )


def _parse_completions(body: bytes) -> RequestView:
    view = _completions.decode(body)
    prompt, prompts, lengths = b"", 0, None
    if view.prompt is not UNSET and bytes(view.prompt) != b"null":
        prompt = bytes(view.prompt)
        prompts, lengths = _count_prompts(prompt, "prompt")
    if _is_given(view.prompt_embeds):
        embeds = bytes(view.prompt_embeds)
        prompt, lengths = prompt + embeds, None
        prompts += len(_raw_list.decode(embeds)) if embeds[:1] == b"[" else 1
    if not prompts:
        raise _bad("prompt", "'prompt' is missing. Send a string, an array of strings, or token ids.")
    return RequestView(
        endpoint=Endpoint.COMPLETIONS,
        model=view.model,
        prompt=prompt,
        prompt_tokens=None if lengths is None else sum(lengths),
        longest_tokens=None if lengths is None else max(lengths),
        added_bytes=composing_bytes(prompt),
        stream=bool(view.stream),
        prompts=prompts,
        samples=max(view.n or 1, view.best_of or 1),
        output_tokens=view.max_tokens,
        stops=bool(view.stop) and bytes(view.stop) not in (b"null", b"[]"),
        wants_token_ids=bytes(view.return_token_ids) == b"true" if view.return_token_ids else None,
        user=_user(view),
        metadata=bytes(view.metadata) if view.metadata else b"",
        cache_salt=_given(view.cache_salt),
        moves_cache=_is_given(view.kv_transfer_params),
        **_usage_wishes(view.stream_options),
    )


def _parse_responses(body: bytes) -> RequestView:
    view = _responses.decode(body)
    prompt = bytes(view.input)
    _require_prompt(prompt, "input")
    beside = beside_texts_of_items(prompt) if prompt[:1] == b"[" else ONLY_TEXTS
    for part in (view.instructions, view.tools):
        if part is not UNSET:
            prompt = bytes(part) + prompt
    room = _template_room(view.tools, _NOTHING, view.chat_template_kwargs)
    continues = (view.previous_response_id, view.previous_input_messages, view.prompt)
    return RequestView(
        endpoint=Endpoint.RESPONSES,
        model=view.model,
        prompt=prompt,
        attachments=beside.attachments,
        attachment_bytes=beside.attachment_bytes,
        open_ended=room is None or any(map(_is_given, continues)),
        added_bytes=(room or 0) + beside.calls_bytes + composing_bytes(prompt),
        stream=bool(view.stream),
        output_tokens=view.max_output_tokens,
        output_field="max_output_tokens",
        user=_user(view),
        metadata=bytes(view.metadata) if view.metadata else b"",
        cache_salt=_given(view.cache_salt),
        moves_cache=_is_given(view.kv_transfer_params),
        tools_bytes=_length(view.tools),
        system_bytes=_length(view.instructions),
    )


def _parse_messages(body: bytes) -> RequestView:
    return _messages_view(Endpoint.MESSAGES, _messages.decode(body))


def _parse_count_tokens(body: bytes) -> RequestView:
    return _messages_view(Endpoint.COUNT_TOKENS, _messages.decode(body))


def _messages_view(endpoint: Endpoint, view: _Messages) -> RequestView:
    _require_items(view.messages, "messages")
    prompt = bytes(view.messages)
    beside = beside_texts(prompt)
    for part in (view.system, view.tools):
        if part is not UNSET:
            prompt = bytes(part) + prompt
    room = _template_room(view.tools, view.output_config, view.chat_template_kwargs)
    return RequestView(
        endpoint=endpoint,
        model=view.model,
        prompt=prompt,
        attachments=beside.attachments,
        attachment_bytes=beside.attachment_bytes,
        open_ended=room is None,
        added_bytes=(room or 0) + beside.calls_bytes + composing_bytes(prompt),
        stream=bool(view.stream),
        output_tokens=view.max_tokens,
        user=_messages_user(bytes(view.metadata)) if view.metadata else b"",
        metadata=bytes(view.metadata) if view.metadata else b"",
        cache_salt=_given(view.cache_salt),
        moves_cache=_is_given(view.kv_transfer_params),
        tools_bytes=_length(view.tools),
        system_bytes=_length(view.system),
    )


def _parse_embeddings(body: bytes) -> RequestView:
    view = _embeddings.decode(body)
    prompt = bytes(view.input)
    prompts, lengths = _count_prompts(prompt, "input")
    open_ended = _is_given(view.messages) or _is_given(view.padding)
    return RequestView(
        endpoint=Endpoint.EMBEDDINGS,
        model=view.model,
        prompt=prompt,
        prompts=prompts,
        prompt_tokens=None if lengths is None or open_ended else sum(lengths),
        longest_tokens=None if lengths is None or open_ended else max(lengths),
        open_ended=open_ended,
        added_bytes=composing_bytes(prompt),
        user=_user(view),
        metadata=bytes(view.metadata) if view.metadata else b"",
        cache_salt=_given(view.cache_salt),
        moves_cache=_is_given(view.kv_transfer_params),
    )


def _parse_tokenize(body: bytes) -> RequestView:
    view = _tokenize.decode(body)
    part = view.prompt if view.prompt is not UNSET else view.messages
    if part is UNSET:
        raise _bad("prompt", "Send 'prompt' (a string) or 'messages' (an array).")
    return RequestView(endpoint=Endpoint.TOKENIZE, model=view.model, prompt=bytes(part))


_PARSERS = {
    Endpoint.CHAT.path: _parse_chat,
    Endpoint.COMPLETIONS.path: _parse_completions,
    Endpoint.RESPONSES.path: _parse_responses,
    Endpoint.MESSAGES.path: _parse_messages,
    Endpoint.COUNT_TOKENS.path: _parse_count_tokens,
    Endpoint.EMBEDDINGS.path: _parse_embeddings,
    Endpoint.TOKENIZE.path: _parse_tokenize,
}


def _template_room(tools: Raw | UnsetType, schema: Raw, template_kwargs: Raw) -> int | None:
    """The bytes that a template may write of tools, of an answer's schema and of what is chosen for it, beyond those of
    `prompt`; None where nothing bounds them."""
    added = 0
    if tools is not UNSET and bytes(tools) not in (b"null", b"[]"):
        of_tools = tools_bytes(bytes(tools))
        if of_tools is None:
            return None
        added += of_tools
    if _is_given(schema):
        of_schema = tools_bytes(bytes(schema))
        if of_schema is None:
            return None
        added += of_schema + len(bytes(schema))
    if _is_given(template_kwargs):
        if not only_switches(bytes(template_kwargs)):
            return None
        added += len(bytes(template_kwargs))
    return added


def _length(raw: Raw | UnsetType) -> int:
    return 0 if raw is UNSET else len(bytes(raw))


def _is_given(raw: Raw) -> bool:
    return bool(raw) and bytes(raw) != b"null"


def _given(raw: Raw) -> bytes:
    return bytes(raw) if _is_given(raw) else b""


def _user(view: _SaysOfItself) -> bytes:
    if view.user and bytes(view.user) != b"null":
        return bytes(view.user)
    return bytes(view.safety_identifier) if view.safety_identifier else b""


def _messages_user(metadata: bytes) -> bytes:
    """Anthropic's name for it. Odd metadata is the engine's to refuse."""
    try:
        return bytes(_messages_metadata.decode(metadata).user_id)
    except msgspec.ValidationError:
        return b""


def _usage_wishes(options: _StreamOptions | UnsetType | None) -> dict[str, Any]:
    """vLLM gives running usage only to those who ask for `include_usage` too."""
    if options is UNSET:
        return {}
    if options is None:
        return {"sent_stream_options": True}
    wants_usage = bool(options.include_usage)
    return {
        "sent_stream_options": True,
        "wants_usage": wants_usage,
        "wants_running_usage": wants_usage and bool(options.continuous_usage_stats),
    }


def _require_items(raw: Raw, param: str) -> None:
    value = bytes(raw)
    if value[:2] == b"[{":
        return
    if value[:1] != b"[":
        raise _bad(param, f"'{param}' must be an array of messages.")
    if not value[1:-1].strip():
        raise _bad(param, f"'{param}' is empty. Send at least one message.")


def _require_prompt(value: bytes, param: str) -> None:
    if value[:1] not in (b'"', b"["):
        raise _bad(param, f"'{param}' must be a string or an array.")
    if value[:1] == b"[" and not value[1:-1].strip():
        raise _bad(param, f"'{param}' is empty. Send at least one item.")


def _count_prompts(value: bytes, param: str) -> tuple[int, list[int] | None]:
    """How many prompts one `prompt` or `input` holds, and their lengths in tokens when they are token ids."""
    _require_prompt(value, param)
    if value[:1] == b'"':
        return 1, None
    first = value[1:].lstrip()[:1]
    if first in (b'"', b"{"):
        return len(_raw_list.decode(value)), None
    try:
        if first == b"[":
            lengths = [len(_token_ids.decode(item)) for item in _raw_list.decode(value)]
            return len(lengths), lengths
        return 1, [len(_token_ids.decode(value))]
    except msgspec.ValidationError as error:
        raise _bad(param, f"'{param}' must be a string, an array of strings, or arrays of token ids.") from error


_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")
_EXPECTED = re.compile(r"^Expected (?P<expected>.*?)(?:, got (?P<got>.*))?$")


def _invalid(message: str) -> Refused:
    """msgspec's message as one that names the parameter and says what to send."""
    match = _PATH.match(message)
    assert match is not None
    what, path = match["what"], (match["path"] or "$").removeprefix("$").lstrip(".")
    if missing := _MISSING.match(what):
        name = f"{path}.{missing['name']}".lstrip(".")
        return _bad(name, f"'{name}' is missing. It is required.")
    if not path:
        return _bad(None, "The body must be one JSON object.")
    if expected := _EXPECTED.match(what):
        got = f", not {expected['got']}" if expected["got"] else ""
        return _bad(path, f"'{path}' must be {expected['expected']}{got}.".replace("`", ""))
    return _bad(path, f"'{path}': {what}")


def _bad(param: str | None, message: str) -> Refused:
    return Refused(Refusal(status=400, code="invalid_request", message=message, param=param))
