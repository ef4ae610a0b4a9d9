"""The texts that a prompt is made of, and what is around them: the tokens of a template are the same for all prompts of
one shape, so their number is learnt from what the engine has counted."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from msgspec import Raw, Struct

from gateway.wire import Endpoint, RequestView

_HARMLESS = frozenset(
    {
        *("model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of", "user", "metadata"),
        *("max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "seed"),
        *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("logprobs", "top_logprobs", "logit_bias", "priority", "cache_salt", "safety_identifier", "store"),
        *("service_tier", "request_id", "encoding_format", "dimensions"),
    }
)
"""Members that say nothing about the prompt. All others belong to its shape, the unknown ones too."""
_TOO_FAR = frozenset({"prompt_embeds", "documents", "chat_template", "truncate_prompt_tokens", "mm_processor_kwargs"})


class PromptTexts(Struct, frozen=True, gc=False):
    """A prompt as its texts. `shape` is the digest of all else that decides how many tokens are around them."""

    shape: bytes
    texts: tuple[str, ...]

    @property
    def length(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))


class _Part(Struct, forbid_unknown_fields=True):
    type: str
    text: str


class _Message(Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part]


_members = msgspec.json.Decoder(dict[str, Raw])
_messages = msgspec.json.Decoder(list[_Message])
_string = msgspec.json.Decoder(str)


def prompt_texts(view: RequestView, body: bytes) -> PromptTexts | None:
    """The texts of a chat, a completion or an embedding; None for a prompt whose tokens may not add up from its texts:
    tool calls, pictures, several prompts, texts that templates cut."""
    members = _members.decode(body)
    if not _TOO_FAR.isdisjoint(members):
        return None
    try:
        match view.endpoint:
            case Endpoint.CHAT:
                told = _chat_texts(_messages.decode(members["messages"]))
            case Endpoint.COMPLETIONS:
                told = ["prompt"], [_string.decode(members["prompt"])]
            case Endpoint.EMBEDDINGS:
                told = ["input"], [_string.decode(members["input"])]
            case _:
                return None
    except msgspec.ValidationError:
        return None
    if told is None:
        return None
    roles, texts = told
    around = sorted(name for name in members if name not in _HARMLESS)
    digest = blake2b(digest_size=16)
    for part in (view.endpoint.path, *roles, "", *around):
        digest.update(b"%d:%b" % (len(part), part.encode()))
    for name in around:
        digest.update(b"%d:%b" % (len(bytes(members[name])), bytes(members[name])))
    return PromptTexts(digest.digest(), tuple(texts))


def _chat_texts(messages: list[_Message]) -> tuple[list[str], list[str]] | None:
    roles: list[str] = []
    texts: list[str] = []
    for message in messages:
        text, role = message.content, message.role
        if not isinstance(text, str):
            if len(text) != 1 or text[0].type != "text":
                return None
            text, role = text[0].text, f"{role}[]"
        if not text or text != text.strip() or "</think>" in text:
            return None
        roles.append(role)
        texts.append(text)
    return roles, texts
