"""The text an engine generated, for one that does not say how many tokens it has: to be counted and forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ._requests import Endpoint

TEXT_MAX_CHARS = 256 * 1024
"""Of a longer stream only so much is kept to be counted; each event after that counts as one token."""


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    function: _Function | None = None


class _Said(Struct):
    """A chat's message, or its delta in a stream."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None

    def parts(self) -> Iterator[str | None]:
        # vLLM has both names of the reasoning for some versions, with the same text.
        yield from (self.reasoning or self.reasoning_content, self.content, self.refusal)
        for call in self.tool_calls or ():
            if call.function is not None:
                yield from (call.function.name, call.function.arguments)


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    message: _Said | None = None
    delta: _Said | None = None

    def said(self) -> str:
        said = self.message or self.delta
        return _joined(said.parts()) if said is not None else self.text or ""


class _Choices(Struct):
    choices: list[_Choice] | None = None


class _Part(Struct):
    """An item of a Responses answer, of a Messages answer, or of what one of them contains."""

    text: str | None = None
    thinking: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: Raw | UnsetType = UNSET
    content: list[_Part] | None = None

    def parts(self) -> Iterator[str | None]:
        yield from (self.text, self.thinking, self.name, self.arguments)
        if self.input is not UNSET:
            yield bytes(self.input).decode()
        for part in self.content or ():
            yield from part.parts()


class _Parts(Struct):
    output: list[_Part] | None = None
    content: list[_Part] | None = None


class _Response(Struct):
    response: _Parts | None = None


class _MessageDelta(Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _MessageEvent(Struct):
    delta: _MessageDelta | None = None


_choices = msgspec.json.Decoder(_Choices)
_parts = msgspec.json.Decoder(_Parts)
_response = msgspec.json.Decoder(_Response)
_message_event = msgspec.json.Decoder(_MessageEvent)
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def answer_texts(endpoint: Endpoint, body: bytes) -> list[str]:
    """What was generated in a whole JSON answer, one text for each sequence; empty when there is none to be read."""
    try:
        match endpoint:
            case Endpoint.CHAT | Endpoint.COMPLETIONS:
                return [said for choice in _choices.decode(body).choices or () if (said := choice.said())]
            case Endpoint.RESPONSES | Endpoint.MESSAGES:
                return _of_parts(_parts.decode(body))
    except _UNREADABLE:
        pass
    return []


class StreamTexts:
    """What was generated in a stream so far, bounded in memory. `events` carried some of it, `uncounted` of them more
    than is kept."""

    __slots__ = ("_answers", "_chars", "events", "uncounted")

    def __init__(self) -> None:
        self._answers: dict[int, list[str]] = {}
        self._chars = 0
        self.events = 0
        self.uncounted = 0

    def texts(self) -> list[str]:
        """One for each sequence."""
        return ["".join(parts) for parts in self._answers.values()]

    def add_choices(self, payload: bytes) -> None:
        """A chunk of chat completions or completions."""
        try:
            choices = _choices.decode(payload).choices
        except _UNREADABLE:
            return
        for choice in choices or ():
            self._add(choice.index, choice.said())

    def add_message_delta(self, payload: bytes) -> None:
        """An event of Messages."""
        try:
            delta = _message_event.decode(payload).delta
        except _UNREADABLE:
            return
        if delta is not None:
            self._add(0, _joined((delta.text, delta.thinking, delta.partial_json)))

    def set_response(self, payload: bytes) -> None:
        """The event that ends a response and repeats all of it."""
        try:
            response = _response.decode(payload).response
        except _UNREADABLE:
            return
        self._answers = {0: _of_parts(response)} if response is not None else {}

    def _add(self, index: int, text: str) -> None:
        if not text:
            return
        self.events += 1
        if self._chars + len(text) > TEXT_MAX_CHARS:
            self.uncounted += 1
            return
        self._chars += len(text)
        self._answers.setdefault(index, []).append(text)


def _of_parts(parts: _Parts) -> list[str]:
    said = _joined(text for part in (*(parts.output or ()), *(parts.content or ())) for text in part.parts())
    return [said] if said else []


def _joined(parts: Iterator[str | None] | tuple[str | None, ...]) -> str:
    return "".join(part for part in parts if part)
