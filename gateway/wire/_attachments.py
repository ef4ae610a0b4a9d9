"""What messages hold beside plain texts: parts that are no text, whose bytes say nothing about their tokens, and calls
of tools, which a template writes in its own way."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

CALL_SEPARATOR_BYTES = 16
"""What a template may write for each `,` and `:` of a call's arguments beyond their JSON: Qwen3-Coder's tags around a
parameter, and the digits of `1e15`."""

_TYPES = frozenset(
    {
        *("image", "image_url", "input_image", "image_pil", "image_embeds"),
        *("audio", "audio_url", "input_audio", "audio_embeds"),
        *("video", "video_url", "input_video", "video_embeds"),
        *("file", "input_file", "document", "file_url"),
    }
)
"""What parts are called by OpenAI, Anthropic and vLLM."""
_UNTYPED = _TYPES - {"image", "audio", "video", "file", "document"}
"""vLLM also takes parts without a `type`, known by these names of a member."""
OBJECTS_MAX = 10_000
"""Odd prompts of more arrays and objects are not looked through."""
_NOTHING = Raw()


class Beside(Struct, frozen=True, gc=False):
    """How many parts are no text, their bytes together, and what a template may add to the bytes of calls."""

    attachments: int = 0
    attachment_bytes: int = 0
    calls_bytes: int = 0


ONLY_TEXTS = Beside()


_TextType = Literal["text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "reasoning_text"]


class _Text(Struct):
    type: _TextType


class _Message(Struct):
    type: Literal["message"] = "message"
    content: str | list[_Text] | None = None
    output: str | None = None
    tool_calls: None = None


class _Block(Struct):
    type: _TextType | Literal["tool_use", "tool_result"]
    content: str | list[_Text] | None = None
    input: Raw = _NOTHING


class _Item(Struct):
    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    content: str | list[_Block] | None = None
    output: str | list[_Text] | None = None
    tool_calls: Raw = _NOTHING
    arguments: Raw = _NOTHING


_texts = msgspec.json.Decoder(list[_Message])
_items = msgspec.json.Decoder(list[_Item])


def beside_texts(messages: bytes) -> Beside:
    """What the JSON of a chat's messages holds beside texts. Told by their types alone where those are well known, so
    that no texts have to be made of most prompts."""
    if messages.find(b"[", 1) < 0:  # parts and calls stand in lists, below the one of the messages
        return ONLY_TEXTS
    return beside_texts_of_items(messages)


def beside_texts_of_items(prompt: bytes) -> Beside:
    """The same where calls may be items of their own, outside of any list, as in Responses."""
    try:
        _texts.decode(prompt)
    except msgspec.ValidationError:
        pass
    else:
        return ONLY_TEXTS
    try:
        items = _items.decode(prompt)
    except msgspec.ValidationError:
        count, size = _attachments(prompt)
        return Beside(count, size, call_bytes(prompt))
    calls = 0
    for item in items:
        calls += call_bytes(item.tool_calls) + call_bytes(item.arguments)
        if isinstance(item.content, list):
            for block in item.content:
                calls += call_bytes(block.input)
    return Beside(calls_bytes=calls)


def call_bytes(arguments: Raw | bytes) -> int:
    """What a template may write of them beyond their JSON."""
    if not arguments:
        return 0
    raw = bytes(arguments)
    escapes = 0 if raw.isascii() else 2 * len(raw)
    return escapes + CALL_SEPARATOR_BYTES * (raw.count(b",") + raw.count(b":"))


def _attachments(prompt: bytes) -> tuple[int, int]:
    """Parts that are no text and their bytes; one for a prompt that may hold any."""
    if prompt.count(b"[") + prompt.count(b"{") > OBJECTS_MAX:
        return 1, 0
    count = size = 0
    todo = [msgspec.json.decode(prompt)]
    while todo:
        value: Any = todo.pop()
        if isinstance(value, list):
            todo.extend(item for item in value if isinstance(item, dict | list))
        elif _is_attachment(value):
            count += 1
            size += _size(value)
        elif "tool_use" not in (value.get("type"), value.get("role")):  # its `input` is the model's own
            todo.extend(item for item in value.values() if isinstance(item, dict | list))
    return count, min(size, len(prompt))


def _is_attachment(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    if isinstance(kind, str):
        return kind in _TYPES
    return not _UNTYPED.isdisjoint(value)


def _size(value: object) -> int:
    """Bytes of its texts: a picture in base64 is one text, and needs no escapes."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(item) for item in value.values())
    return sum(_size(item) for item in value) if isinstance(value, list) else 0
