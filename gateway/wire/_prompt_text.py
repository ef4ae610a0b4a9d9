"""A prompt as its engine will see it, near enough: what two prompts have in common here they have in common there.

The same conversation is the same text through chat, responses and messages, however its JSON is spelled: tools, then
each message's role and texts. What is no text stands for itself by its hash. A longer conversation's text goes on where
the shorter one's ends.
"""

from __future__ import annotations

import msgspec
import xxhash
from msgspec import Raw, Struct

from ._requests import Endpoint, RequestView

ATTACHMENT_REPEATS = 64
"""A picture's hash stands so often in the text, 1 KiB: it is read for longer than a word is."""

_NOTHING = Raw()
_ROLE, _CALL, _TOOL, _ATTACHED, _END = "\x01", "\x02", "\x03", "\x04", "\x00"
"""Between what is one thing in JSON; no text that clients send has them."""


class _Function(Struct):
    name: str = ""
    description: str | None = None
    parameters: Raw = _NOTHING
    arguments: str | None = None


class _Tool(Struct):
    """OpenAI's, in chat and in responses, and Anthropic's."""

    function: _Function | None = None
    name: str = ""
    description: str | None = None
    parameters: Raw = _NOTHING
    input_schema: Raw = _NOTHING


class _Call(Struct):
    function: _Function | None = None


class _Part(Struct):
    """A part of a message, of any dialect."""

    type: str = ""
    text: str | None = None
    name: str = ""
    input: Raw = _NOTHING
    content: Raw = _NOTHING


class _Message(Struct):
    """Of chat and messages, and an item of responses. `output` and `arguments` are of items that are no messages."""

    role: str = ""
    content: str | list[Raw] | None = None
    tool_calls: list[_Call] | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Raw] | None = None


_messages = msgspec.json.Decoder(list[_Message]).decode
_tools = msgspec.json.Decoder(list[_Tool]).decode
_part = msgspec.json.Decoder(_Part).decode
_content = msgspec.json.Decoder(str | list[Raw] | None).decode
_texts = msgspec.json.Decoder(str | list[str]).decode


def prompt_text(view: RequestView) -> bytes:
    """The text; of a prompt in no known shape its JSON."""
    prompt = view.prompt
    try:
        match view.endpoint:
            case Endpoint.CHAT | Endpoint.RESPONSES | Endpoint.MESSAGES | Endpoint.COUNT_TOKENS:
                text = _conversation(view)
            case Endpoint.COMPLETIONS | Endpoint.EMBEDDINGS if prompt[:1] == b'"' or prompt[:2] == b'["':
                texts = _texts(prompt)
                text = texts if isinstance(texts, str) else _END.join(texts)
            case _:
                return prompt.replace(b" ", b"").removesuffix(b"]")
    except (msgspec.DecodeError, RecursionError):
        return prompt.removesuffix(b"]")
    return text.encode()


def _conversation(view: RequestView) -> str:
    prompt, begins = view.prompt, view.tools_bytes + view.system_bytes
    parts: list[str] = []
    if view.tools_bytes:
        _add_tools(parts, prompt[: view.tools_bytes])
    if view.system_bytes and (system := _flat(_content(prompt[view.tools_bytes : begins]))):
        parts += ("system", _ROLE, system, _END)
    messages = prompt[begins:] if begins else prompt
    if messages[:1] == b'"':
        parts += ("user", _ROLE, str(_content(messages)), _END)
        return "".join(parts)
    for message in _messages(messages):
        content = message.content
        if isinstance(content, str) and message.tool_calls is None:
            parts += (message.role or "user", _ROLE, content, _END)
        else:
            _add_message(parts, message)
    return "".join(parts)


def _add_message(parts: list[str], message: _Message) -> None:
    """One that is more than a text, or something else than a message."""
    if message.arguments is not None:
        parts += ("assistant", _CALL, message.name or "", _ROLE, message.arguments, _END)
        return
    if message.output is not None:
        parts += ("tool", _ROLE, _flat(message.output), _END)
        return
    texts: list[str] = []
    after: list[str] = []
    content = message.content
    for raw in content if isinstance(content, list) else ():
        part = _part(raw)
        if part.type == "tool_use":
            after += ("assistant", _CALL, part.name, _ROLE, bytes(part.input).decode(), _END)
        elif part.type == "tool_result":
            parts += ("tool", _ROLE, _flat(_content(bytes(part.content) or b"null")), _END)
        else:
            texts.append(_text_of(part, raw))
    if isinstance(content, str):
        texts.append(content)
    if texts:
        parts += (message.role or "user", _ROLE, "\n".join(texts), _END)
    for call in message.tool_calls or ():
        if call.function is not None:
            after += ("assistant", _CALL, call.function.name, _ROLE, call.function.arguments or "", _END)
    parts += after


def _add_tools(parts: list[str], raw: bytes) -> None:
    if raw in (b"null", b"[]"):
        return
    for tool in _tools(raw):
        about = tool.function or tool
        schema = bytes(about.parameters) or bytes(tool.input_schema)
        parts += (_TOOL, about.name, _ROLE, about.description or "", _ROLE, schema.decode(), _END)


def _flat(content: str | list[Raw] | None) -> str:
    if isinstance(content, list):
        return "\n".join([_text_of(_part(raw), raw) for raw in content])
    return content or ""


def _text_of(part: _Part, raw: Raw) -> str:
    if part.text is not None:
        return part.text
    return _ATTACHED + xxhash.xxh3_64_hexdigest(bytes(raw)) * ATTACHMENT_REPEATS
