"""The questions to vLLM's tokenizer whose answers add up to a request's prompt tokens. SGLang takes the plain ones."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from gateway.wire import Endpoint, RequestView

from ._dialect import Question

_members = msgspec.json.Decoder(dict[str, Raw])
_prompts = msgspec.json.Decoder(list[Raw])
_encode = msgspec.json.Encoder().encode
_NOTHING = Raw()

TOKENIZE = "/tokenize"
_CHAT_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
)

_MESSAGES_FIELDS = ("messages", "system", "tools", "tool_choice", "thinking", "output_config", "chat_template_kwargs")
_MORE_THAN_INPUT = ("tools", "reasoning", "chat_template_kwargs")
"""Members of a Responses request that may be in its prompt, and no chat made of its items has."""


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Item(msgspec.Struct):
    role: str
    content: str | list[_Part]


class _TokenCount(msgspec.Struct):
    count: int | None = None
    input_tokens: int | None = None


_items = msgspec.json.Decoder(list[_Item])
_told = msgspec.json.Decoder(_TokenCount)


def count_told(answer: bytes) -> int | None:
    """The count in the answer. Raises `msgspec.DecodeError` for what is none."""
    told = _told.decode(answer)
    return told.input_tokens if told.count is None else told.count


def _ask(path: str, body: dict[str, object]) -> Question:
    return Question(path, _encode(body), count_told)


def questions(view: RequestView, body: bytes, model: str) -> list[Question]:
    """One per prompt; empty when the tokenizer cannot be asked about this request.

    vLLM's `/tokenize` takes what its chat and completions endpoints take; `/v1/messages/count_tokens` what Messages
    takes. A Responses request is asked as the chat its items make.
    """
    members = _members.decode(body)
    match view.endpoint:
        case Endpoint.COMPLETIONS | Endpoint.EMBEDDINGS:
            return prompt_questions(view, body, model)
        case Endpoint.CHAT:
            chat: dict[str, object] = {name: members[name] for name in _CHAT_FIELDS if name in members}
            if effort := _effort(members):
                chat["chat_template_kwargs"] = effort
            return [_ask("/tokenize", {"model": model, **chat})]
        case Endpoint.MESSAGES:
            wanted = {name: members[name] for name in _MESSAGES_FIELDS if name in members}
            return [_ask("/v1/messages/count_tokens", {"model": model, **wanted})]
        case Endpoint.RESPONSES:
            messages = [] if view.open_ended or _has_more_than_input(members) else _response_messages(members)
            return [_ask("/tokenize", {"model": model, "messages": messages})] if messages else []
        case _:
            return []


def prompt_questions(
    view: RequestView, body: bytes, model: str, *, path: str = TOKENIZE, only_prompt: bool = False
) -> list[Question]:
    """Those of a request whose prompts are plain texts. `only_prompt`: the tokenizer takes nothing else."""
    if view.endpoint not in (Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS):
        return []
    members = _members.decode(body)
    raw = members.get("prompt" if view.endpoint is Endpoint.COMPLETIONS else "input")
    if raw is None or view.prompt_tokens is not None or view.open_ended or "prompt_embeds" in members:
        return []
    prompts = [raw] if _is_string(raw) else _prompts.decode(raw)
    extra = {} if only_prompt else {name: members[name] for name in ("add_special_tokens",) if name in members}
    return [_ask(path, {"model": model, "prompt": prompt, **extra}) for prompt in prompts]


def text_questions(
    texts: Sequence[str], model: str, *, path: str = TOKENIZE, only_prompt: bool = False
) -> list[Question]:
    """The same for generated texts, which have no tokens of a template around them."""
    extra = {} if only_prompt else {"add_special_tokens": False}
    return [_ask(path, {"model": model, "prompt": text, **extra}) for text in texts]


def _response_messages(members: dict[str, Raw]) -> list[dict[str, str]]:
    raw = members["input"]
    messages: list[dict[str, str]] = []
    instructions = members.get("instructions")
    if instructions is not None and _is_string(instructions):
        messages.append({"role": "system", "content": msgspec.json.decode(instructions, type=str)})
    if _is_string(raw):
        return [*messages, {"role": "user", "content": msgspec.json.decode(raw, type=str)}]
    try:
        items = _items.decode(raw)
    except msgspec.ValidationError:
        return []
    for item in items:
        content = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
        messages.append({"role": item.role, "content": content})
    return messages


def _effort(members: dict[str, Raw]) -> dict[str, Raw] | None:
    """The template's arguments of a chat that names its reasoning effort: vLLM's chats give it to the template, its
    `/tokenize` does not know the member."""
    effort = members.get("reasoning_effort")
    if effort is None or not _is_string(effort):
        return None
    given = members.get("chat_template_kwargs", _NOTHING)
    thinks = Raw(b"false" if bytes(effort) == b'"none"' else b"true")
    return {
        "enable_thinking": thinks,
        **(_members.decode(given) if bytes(given)[:1] == b"{" else {}),
        "reasoning_effort": effort,
    }


def _has_more_than_input(members: dict[str, Raw]) -> bool:
    return any(bytes(members[name]) not in (b"null", b"[]") for name in _MORE_THAN_INPUT if name in members)


def _is_string(raw: Raw) -> bool:
    return bytes(raw).startswith(b'"')
