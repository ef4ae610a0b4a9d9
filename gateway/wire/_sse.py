"""Server-sent events on their way to the client: finds their ends, cuts what the client did not ask for, reads usage.

A scanner gets the engine's bytes as they were read and returns what may go to the client now: whole events only, so
that a stream can be ended with an error event at any time. What it returns, put together, is what the engine sent
minus the usage the gateway asked for and the client did not: the last event, the one with empty `choices`, and the
`usage` member of the others.

An event ends at an empty line; lines end with LF, CRLF or CR (WHATWG HTML, "Server-sent events").
"""

from __future__ import annotations

import re
from abc import abstractmethod

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ._members import member_span
from ._readers import CompletionUsage, MessageUsage, ResponseUsage, completion_usage
from ._requests import Endpoint, RequestView
from ._texts import StreamTexts
from ._usage import Usage, sum_usage

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""A longer event is passed on in pieces, uncut: no engine's usage event is that long, and memory is bounded."""

_BOUNDARY = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"(?>\r\n|\n|\r)")


class StreamScanner:
    """The part all dialects share: events in, whole events out."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self.failed = False
        """Whether the engine reported an error inside the stream."""
        self.ended = False
        """Whether the event that ends the stream has been seen."""
        self.first_event = b""
        """Of a stream that more than one replica wrote, the event whose id and time all others have."""
        self.texts = StreamTexts()
        """What was generated, kept only while the engine does not say how much that is."""

    def feed(self, data: bytes) -> bytes:
        """Takes what was read from the engine; returns what may be sent on, often all of it, sometimes nothing."""
        if not self._tail and data.endswith(b"\n\n") and b"\r" not in data:
            if data.find(b"\n\n") == len(data) - 2:
                return self._event(data)
            return self._whole_events(data)
        # Two bytes before the new ones may belong to a boundary; three for CRLF CRLF.
        start = max(0, len(self._tail) - 3)
        self._tail += data
        end = 0
        for match in _BOUNDARY.finditer(self._tail, start):
            # A CR at the very end may be half of a CRLF.
            if match.end() < len(self._tail) or self._tail[-1:] != b"\r":
                end = match.end()
        if not end and len(self._tail) > MAX_EVENT_BYTES:
            end = len(self._tail)
        ready = bytes(self._tail[:end])
        del self._tail[:end]
        return self._events(ready) if ready else b""

    def finish(self) -> bytes:
        """The engine ended the stream: what was held back as unfinished."""
        rest = bytes(self._tail)
        self._tail.clear()
        return self._events(rest) if rest else b""

    def _whole_events(self, data: bytes) -> bytes:
        """Several events whose lines end with LF, the last one whole too."""
        # Splitting is ten times as fast as looking for every kind of line end.
        return b"".join([self._event(part + b"\n\n") for part in data.split(b"\n\n")[:-1]])

    def _events(self, data: bytes) -> bytes:
        out, start = [], 0
        for match in _BOUNDARY.finditer(data):
            out.append(self._event(data[start : match.end()]))
            start = match.end()
        if start < len(data):
            out.append(self._event(data[start:]))
        return b"".join(out)

    @abstractmethod
    def _event(self, block: bytes) -> bytes:
        """What remains of one event, its empty line included."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """What the engine has reported so far, the last report counting; None when it has reported nothing."""

    @property
    def usage_is_final(self) -> bool:
        """Whether `usage` is the engine's last word on the whole answer."""
        return False

    @property
    def prompts_told(self) -> int:
        """Of how many prompts `usage` tells the input."""
        return int(self.usage() is not None)

    @property
    def samples_begun(self) -> int:
        """How many samples of each of these prompts have at least begun."""
        return 1

    @property
    def output_events(self) -> int:
        """Events that carried an output token each: a lower bound where the engine reports only at the end."""
        return 0


class _Choice(Struct):
    index: int = 0


class _GroqPart(Struct):
    usage: Raw | UnsetType = UNSET


class _Chunk(Struct):
    """`x_groq` is where Groq reported usage before it knew `stream_options`, and still does."""

    choices: list[_Choice] | UnsetType | None = UNSET
    usage: Raw | UnsetType = UNSET
    x_groq: _GroqPart | UnsetType | None = UNSET
    error: Raw | UnsetType = UNSET


_chunk = msgspec.json.Decoder(_Chunk)

_raw_list = msgspec.json.Decoder(list[Raw])

_USAGE_MEMBER = b',"usage":'
_DONE = (b"data: [DONE]", b"data:[DONE]")


class CompletionScanner(StreamScanner):
    """Chat completions and completions: usage in `usage`, asked for with `stream_options`.

    With `continuous_usage_stats` vLLM counts each choice for itself (0.24 and 0.32: `previous_num_tokens[i]`), and
    each prompt of a completions call for itself; only the last event has the sums. So a stream of several answers that
    is cut is the sum over its choices of what each had reported last. Engines that do not know it and report beside a
    choice all the same (Fireworks, Together, TGI before 2.4) mean the whole request: `per_choice` is False for them.
    """

    def __init__(
        self,
        *,
        cut_usage_event: bool,
        cut_running_usage: bool,
        samples: int = 1,
        prompts: int = 1,
        per_choice: bool = True,
    ) -> None:
        super().__init__()
        self._cut_usage_event = cut_usage_event
        self._cut_running_usage = cut_running_usage
        self._per_choice = per_choice
        self._prompts = prompts
        self._samples = samples
        self._single = samples * prompts == 1
        self._final: CompletionUsage | None = None
        self._running: dict[int, CompletionUsage] = {}

    def _whole_events(self, data: bytes) -> bytes:
        # A stream of one answer ends with its sums and [DONE], which are no tokens.
        end = len(data)
        if data.endswith(b"data: [DONE]\n\n"):
            end = data.rfind(b"\n\n", 0, data.rfind(b"\n\n", 0, -2)) + 2
        rest = data[end:]
        plain = self._plain_events(data[:end]) if self._single else None
        if plain is None:
            return super()._whole_events(data)
        return plain + super()._whole_events(rest) if rest else plain

    def _plain_events(self, data: bytes) -> bytes | None:
        """What `_event` makes of each of several tokens, put together; None when one of them is not plain.

        A read holds 30 events when the gateway is busy, and only the last one's usage counts. Together they cost
        1.4 µs each, one by one 4.4 µs. The conditions are `_read_plain`'s.
        """
        event, *parts = data.split(b',"usage":{')
        count = len(parts)
        if not count or data.count(b"\n\n") != count or data.count(b'"usage"') != count or b'"error"' in data:
            return None
        events, usages = [], []
        for part in parts:
            if b'"choices":[{' not in event:
                return None
            events.append(event)
            usage, _, event = part.partition(b"}\n\n")
            usages.append(usage)
        events.append(event)
        try:
            objects = _raw_list.decode(b"[{%b]" % b",{".join(usages))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        usage_now = _usage_object(bytes(objects[-1]))
        if len(objects) != count or usage_now is None:
            return None
        self._running[0] = usage_now
        return b"}\n\n".join(events) if self._cut_running_usage else data

    def _event(self, block: bytes) -> bytes:
        start = block.rfind(_USAGE_MEMBER)
        if start > 0 and self._single and self._read_plain(block, start):
            return block[:start] + b"}\n\n" if self._cut_running_usage else block
        if is_done(block):
            self.ended = True
        elif b'"usage"' in block or b'"error"' in block:
            return self._read_carefully(block)
        elif not self._running and self._final is None:
            self.texts.add_choices(payload_of(block))
        return block

    def _read_plain(self, block: bytes, start: int) -> bool:
        """Takes the usage of an event as vLLM writes a token: one choice, usage last. False: not of that shape.

        Quotes inside JSON strings are escaped, so text cannot look like the member; and since the event's own brace
        follows a usage object that is whole, the member is the root's. Reading it costs 0.13 µs, half of what a regular
        expression takes to see that it is one.
        """
        if not (
            block.endswith(b"}\n\n")
            and b'"choices":[{' in block
            and block.find(b'"usage"') == start + 1
            and b'"error"' not in block
        ):
            return False
        usage = _usage_object(block[start + len(_USAGE_MEMBER) : -3])
        if usage is None:
            return False
        self._running[0] = usage
        return True

    def _read_carefully(self, block: bytes) -> bytes:
        payload = payload_of(block)
        try:
            chunk = _chunk.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return block
        if chunk.error is not UNSET and bytes(chunk.error) != b"null":
            self.failed = True
        if chunk.usage is UNSET or bytes(chunk.usage) == b"null":
            if chunk.x_groq and chunk.x_groq.usage:
                self._note(chunk, _usage_object(bytes(chunk.x_groq.usage)))
            elif not self._running and self._final is None:
                self.texts.add_choices(payload)
            return block
        usage = _usage_object(bytes(chunk.usage))
        if chunk.choices == []:
            self._final = usage
            return b"" if self._cut_usage_event else block
        self._note(chunk, usage)
        return without_member(block, payload, b"usage") if self._cut_running_usage else block

    def _note(self, chunk: _Chunk, usage: CompletionUsage | None) -> None:
        if usage is not None:
            self._running[chunk.choices[0].index if chunk.choices and self._per_choice else 0] = usage

    def usage(self) -> Usage | None:
        return self._running_usage() if self._final is None else self._final.usage()

    def _running_usage(self) -> Usage | None:
        """The sum of what was told beside choices."""
        if not self._running:
            return None
        if not self._per_choice:
            return self._running[0].usage()
        reports = {index: report.usage() for index, report in self._running.items()}
        by_prompt = {index // self._samples: report for index, report in reports.items()}
        return sum_usage(by_prompt.values(), reports.values())

    @property
    def usage_is_final(self) -> bool:
        return self._final is not None

    @property
    def output_events(self) -> int:
        return self.texts.events

    @property
    def prompts_told(self) -> int:
        if not self._per_choice:
            return self._prompts if self._running else 0
        return len({index // self._samples for index in self._running})

    @property
    def samples_begun(self) -> int:
        """vLLM opens all choices of a chat with the first token of one: only those with tokens have surely begun."""
        if not self._per_choice:
            return 1
        begun = dict.fromkeys((index // self._samples for index in self._running), 0)
        for index, report in self._running.items():
            begun[index // self._samples] += bool(report.completion_tokens)
        return max(1, min(begun.values(), default=1))


class _ResponseBody(Struct):
    usage: ResponseUsage | None = None


class _ResponseEvent(Struct):
    type: str = ""
    response: _ResponseBody | None = None


_response_event = msgspec.json.Decoder(_ResponseEvent)
# Quotes inside JSON strings are escaped, so that no text an engine generates looks like a member.
_response_delta = re.compile(rb'"type": ?"response\.[a-z_.]+\.delta"').search
_response_end = re.compile(rb'"type": ?"response\.(?:completed|incomplete|failed)"').search


class ResponseScanner(StreamScanner):
    """The Responses API: usage comes once, in the event that ends the response; nothing is cut."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: Usage | None = None
        self._deltas = 0

    def _event(self, block: bytes) -> bytes:
        if _response_delta(block):
            self._deltas += 1
        elif b'"usage"' in block or b'"error"' in block or _response_end(block):
            self._read(block)
        return block

    def _read(self, block: bytes) -> None:
        payload = payload_of(block)
        try:
            event = _response_event.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return
        if event.type in {"response.failed", "error"}:
            self.failed = True
        self.ended = event.type in {"response.completed", "response.incomplete", "response.failed"}
        if event.response is not None and event.response.usage is not None:
            self._usage = event.response.usage.usage()
        elif self.ended:
            self.texts.set_response(payload)

    def usage(self) -> Usage | None:
        return self._usage

    @property
    def usage_is_final(self) -> bool:
        return self._usage is not None

    @property
    def output_events(self) -> int:
        return self._deltas


class _MessageBody(Struct):
    usage: MessageUsage | None = None


class _MessageEvent(Struct):
    type: str = ""
    message: _MessageBody | None = None
    usage: MessageUsage | None = None


_message_event = msgspec.json.Decoder(_MessageEvent)
_message_delta = re.compile(rb'"type": ?"content_block_delta"').search
_message_stop = re.compile(rb'"type": ?"message_stop"').search


class MessageScanner(StreamScanner):
    """Anthropic's Messages: input in `message_start`, output so far in `message_delta`; nothing is cut."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: Usage | None = None
        self._usage_is_final = False
        self._deltas = 0

    def _event(self, block: bytes) -> bytes:
        if _message_delta(block):
            self._deltas += 1
            if self._usage is None:
                self.texts.add_message_delta(payload_of(block))
        elif _message_stop(block):
            self.ended = True
        elif b'"usage"' in block or b'"error"' in block:
            self._read(block)
        return block

    def _read(self, block: bytes) -> None:
        try:
            event = _message_event.decode(payload_of(block))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return
        if event.type == "error":
            self.failed = True
        report = event.usage or (event.message.usage if event.message is not None else None)
        # llama.cpp leaves `message_start` out where its first token is half a letter: then it has not told the input.
        if report is not None and (self._usage is not None or report.input_tokens is not None):
            self._usage = report.usage(self._usage)
            self._usage_is_final = event.type == "message_delta"

    def usage(self) -> Usage | None:
        return self._usage

    @property
    def usage_is_final(self) -> bool:
        return self._usage_is_final

    @property
    def output_events(self) -> int:
        return self._deltas


def scanner_for(view: RequestView, *, per_choice: bool = True) -> StreamScanner:
    """The scanner that fits a request: which dialect, and what its client did not ask for. `per_choice`: what the
    engine says beside a choice is of that choice alone."""
    match view.endpoint:
        case Endpoint.RESPONSES:
            return ResponseScanner()
        case Endpoint.MESSAGES:
            return MessageScanner()
        case _:
            return CompletionScanner(
                cut_usage_event=not view.wants_usage,
                cut_running_usage=not view.wants_running_usage,
                samples=view.samples,
                prompts=view.prompts,
                per_choice=per_choice,
            )


def _usage_object(raw: bytes) -> CompletionUsage | None:
    try:
        usage: CompletionUsage = completion_usage.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return usage


def is_done(block: bytes) -> bool:
    """Whether this event ends a stream of chat or text completions."""
    return block.startswith(_DONE)


def payload_of(block: bytes) -> bytes:
    """The event's data: its `data:` lines, one leading space dropped, joined with LF."""
    return b"\n".join(line[5:].removeprefix(b" ") for line in _LINE_END.split(block) if line.startswith(b"data:"))


def without_member(block: bytes, payload: bytes, name: bytes) -> bytes:
    """`block` without one member of its JSON object, every other byte kept."""
    span = member_span(payload, name)
    if span is None:
        return block
    start, end = span
    position = block.find(payload)
    if position >= 0:
        return block[: position + start] + block[position + end :]
    # Data over several lines: the payload is put back as lines of its own, where the first one stood.
    kept = payload[:start] + payload[end:]
    lines = _LINE_END.split(block)
    ends = _LINE_END.findall(block)
    out: list[bytes] = []
    replaced = False
    for line, line_end in zip(lines, [*ends, b""], strict=True):
        if not line.startswith(b"data:"):
            out.append(line + line_end)
        elif not replaced:
            out.extend(b"data: " + part + line_end for part in kept.split(b"\n"))
            replaced = True
    return b"".join(out)
