"""The request by which another replica goes on with an answer that its first one could not finish.

By token ids where they are known: the prompt's and the answer's, as a text completion, which is exactly what the first
engine would have computed next. By text otherwise: the client's own request, with what has been said as the beginning
of the answer. Sampling goes on with the client's parameters, though not with the first engine's random numbers, and
penalties of frequency and presence count from here.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from ._delivered import Delivered
from ._requests import COMPLETION_TOKENS, Endpoint, RequestView
from ._splice import set_fields

By = Literal["token_ids", "text", "anew"]

_members = msgspec.json.Decoder(dict[str, Raw])
_raw_list = msgspec.json.Decoder(list[Raw])
_encode = msgspec.json.encode

_SAMPLING = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "length_penalty",
        "logit_bias",
        "min_p",
        "model",
        "presence_penalty",
        "priority",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop_token_ids",
        "stream",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
        "user",
        "vllm_xargs",
    }
)
"""They mean the same in chat and in text completions."""
_OF_PROMPT = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "messages",
        "mm_processor_kwargs",
        "prompt",
        "reasoning_effort",
        "tools",
    }
)
"""They shape the prompt, which is known by its ids."""
_WORKED_OUT = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_tokens",
        "prompt_cache_key",
        "return_token_ids",
        "safety_identifier",
        "service_tier",
        "stop",
        "store",
    }
)
_KNOWN = _SAMPLING | _OF_PROMPT | _WORKED_OUT
_NOT_SET = frozenset({b"null", b"false", b"[]", b"{}", b"0", b'""'})
_HARMLESS = {
    "n": (b"1",),
    "best_of": (b"1",),
    "include_reasoning": (b"true",),
    "parallel_tool_calls": (b"true",),
    "response_format": (b'{"type":"text"}',),
    "tool_choice": (b'"none"',),
}
"""Values of other fields that ask for nothing special."""


class Continuation(Struct, frozen=True, kw_only=True):
    """What to send, and where. `tokens` of the answer are the client's already. `dropped` is white space that the
    client has and the prompt does not, since chat templates trim it: it may come once more."""

    by: By
    endpoint: Endpoint
    body: bytes
    tokens: int = 0
    dropped: str = ""


def continuation(
    view: RequestView, body: bytes, delivered: Delivered, *, prompt_ids: bytes, told_tokens: int | None
) -> Continuation | None:
    """How to go on after what was `delivered` of an answer to `body`, an engine's request; None where it cannot be
    right: tools, a structured or counted answer (`n`, `logprobs`), thoughts that are not at their end.

    `prompt_ids` is the prompt as JSON ids with commas, if the engine has told them; `told_tokens` is how much of the
    answer it said it had generated.
    """
    if delivered.nothing:
        return Continuation(by="anew", endpoint=view.endpoint, body=body)
    if not delivered.is_plain or delivered.ended:
        return None
    members = _members.decode(body)
    if not all(name in _KNOWN or _asks_nothing(name, bytes(value)) for name, value in members.items()):
        return None
    if _given(members, "tools") and bytes(members.get("tool_choice", Raw(b"null"))) != b'"none"':
        return None
    if prompt_ids and delivered.ids:
        return _by_ids(view, members, delivered, prompt_ids)
    return None if told_tokens is None else _by_text(view, body, members, delivered.text, told_tokens)


def _by_ids(view: RequestView, members: dict[str, Raw], delivered: Delivered, prompt_ids: bytes) -> Continuation | None:
    left = _left(view, members, delivered.id_count)
    if left == 0:
        return None
    fields: dict[str, object] = {name: value for name, value in members.items() if name in _SAMPLING}
    fields |= {
        "prompt": Raw(b"[%b,%b]" % (prompt_ids, delivered.ids)),
        "max_tokens": left,
        "return_token_ids": True,
        **_least(members, delivered.id_count),
    }
    return Continuation(by="token_ids", endpoint=Endpoint.COMPLETIONS, body=_encode(fields), tokens=delivered.id_count)


def _by_text(view: RequestView, body: bytes, members: dict[str, Raw], text: str, tokens: int) -> Continuation | None:
    left = _left(view, members, tokens)
    if left == 0 or not text:
        return None
    fields: dict[str, object] = {view.output_field: left, **_least(members, tokens)}
    if left is None and view.endpoint is Endpoint.CHAT:
        del fields[view.output_field]
    dropped = ""
    if view.endpoint is Endpoint.COMPLETIONS:
        prompt = bytes(members["prompt"])
        if prompt[:1] != b'"':
            return None
        fields["prompt"] = msgspec.json.decode(prompt, type=str) + text
    else:
        if _given(members, "continue_final_message") or bytes(members.get("add_generation_prompt", b"")) == b"false":
            return None
        said = text.rstrip()
        if not said:
            return None
        dropped = text[len(said) :]
        messages = [*_raw_list.decode(members["messages"]), {"role": "assistant", "content": said}]
        fields |= {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    return Continuation(
        by="text", endpoint=view.endpoint, body=set_fields(body, fields), tokens=tokens, dropped=dropped
    )


def _left(view: RequestView, members: dict[str, Raw], tokens: int) -> int | None:
    """How many tokens the client still wants at most; None: as many as there are."""
    absent = Raw(b"null")
    if view.endpoint is Endpoint.COMPLETIONS:
        bound = bytes(members.get("max_tokens", Raw(b"%d" % COMPLETION_TOKENS)))
    else:
        bound = bytes(members.get("max_completion_tokens", absent))
        if bound == b"null":
            bound = bytes(members.get("max_tokens", absent))
    return None if bound == b"null" else max(0, int(float(bound)) - tokens)


def _least(members: dict[str, Raw], tokens: int) -> dict[str, object]:
    if not _given(members, "min_tokens"):
        return {}
    return {"min_tokens": max(0, msgspec.json.decode(members["min_tokens"], type=int, strict=False) - tokens)}


def _given(members: dict[str, Raw], name: str) -> bool:
    return name in members and bytes(members[name]) not in _NOT_SET


def _asks_nothing(name: str, value: bytes) -> bool:
    return value in _NOT_SET or value.replace(b" ", b"") in _HARMLESS.get(name, ())
