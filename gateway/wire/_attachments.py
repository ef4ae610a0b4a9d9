"""Parts of a prompt that are no text: images, audio, video, files. Their bytes say nothing about their tokens."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

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
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "tool_use"})
_LIST = re.compile(rb"\[\s*[\[{\"]")
"""Parts stand in lists, which most prompts have none of, below the one of their messages."""


class _Part(Struct):
    type: str


class _Message(Struct):
    type: str = "message"
    content: str | list[_Part] | None = None
    output: str | None = None


_plain = msgspec.json.Decoder(list[_Message])


def attachments(prompt: bytes) -> tuple[int, int]:
    """How many such parts the JSON of messages or items holds, and their bytes together."""
    if prompt.find(b"[", 1) < 0 or _LIST.search(prompt, 1) is None or _is_text(prompt):
        return 0, 0
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


def _is_text(prompt: bytes) -> bool:
    """Whether all of it is messages of well-known texts: told without making their texts."""
    try:
        messages = _plain.decode(prompt)
    except msgspec.ValidationError:
        return False
    return all(
        message.type not in _TYPES
        and (isinstance(message.content, str | None) or all(part.type in _TEXTS for part in message.content))
        for message in messages
    )


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
