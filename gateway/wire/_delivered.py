"""What the client has had of a stream's answer, kept so that another replica can go on from there. One answer, of chat
or text completions.

By token ids: the engine tells them in each event (vLLM's `return_token_ids`), which costs two bytes there, and they are
cut from the client's bytes. By text: the events themselves, read once there are many or when they are needed.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

RECENT_READS = 8
RECENT_BYTES = 2048
"""Of each of the last reads so much is kept: a character is spread over at most four tokens, so over four events."""
UNREAD_MAX_BYTES = 64 * 1024
"""So much of a stream waits to be read for its text, which most streams never are."""

_TOKEN_IDS = re.compile(rb'"token_ids":\[([\d,]*)\]')
_split_ids = _TOKEN_IDS.split
_NO_IDS = b'"token_ids":null'
_NOTHING_SAID = b'"delta":{},"logprobs":null,"finish_reason":null'
_drop_silent = re.compile(rb'data: [^\n]*"delta":\{\},"logprobs":null,"finish_reason":null[^\n]*\n\n').sub
"""Where a parser holds a token back, vLLM sends an event only for the ids' sake."""


class _Delta(Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Raw] | None = None
    refusal: str | None = None
    function_call: Raw = Raw()

    @property
    def is_plain(self) -> bool:
        """Whether it says nothing but content."""
        others = self.reasoning or self.reasoning_content or self.tool_calls or self.refusal
        return not others and bytes(self.function_call) in (b"", b"null")


class Piece(Struct):
    """One choice of an event of chat or text completions."""

    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    stop_reason: Raw = Raw()
    token_ids: list[int] | None = None

    @property
    def content(self) -> str:
        """What it adds to the answer's text."""
        return (self.delta.content if self.delta is not None else self.text) or ""

    @property
    def is_plain(self) -> bool:
        """Whether it says nothing but content: no thoughts, no tool calls."""
        return self.delta is None or self.delta.is_plain


class _Event(Struct):
    choices: list[Piece] | None = None


_event = msgspec.json.Decoder(_Event)
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class Delivered(Struct, frozen=True, kw_only=True):
    """What the client has had. `ids` are the answer's token ids as JSON, comma between them, when they are known;
    `id_count` is how many, of `held` more it has not seen the text. `nothing`: no text yet. `ended`: the answer's end.
    `is_plain`: what goes on from here is more of the content."""

    ids: bytes = b""
    id_count: int = 0
    held: int = 0
    text: str = ""
    nothing: bool = False
    ended: bool = False
    is_plain: bool = True


class Keeper:
    """Takes whole events on their way to the client."""

    @abstractmethod
    def take(self, events: bytes) -> bytes:
        """Keeps what will be needed of them; returns what the client gets."""

    @abstractmethod
    def add(self, piece: Piece, event: bytes) -> None:
        """One event of another replica, read already and made to look like the others."""

    def resume(self) -> None:
        """Another replica goes on after what was delivered."""

    @abstractmethod
    def delivered(self) -> Delivered:
        """All that has been taken."""


class IdKeeper(Keeper):
    """By token ids."""

    def __init__(self, *, cut: bool) -> None:
        """`cut`: the client has not asked for ids."""
        self._cut = cut
        self._ids: list[bytes] = []
        self._recent: deque[bytes] = deque(maxlen=RECENT_READS)
        self._before = 0
        """How many of `_ids` other replicas wrote, whose texts have all been delivered."""

    def take(self, events: bytes) -> bytes:
        parts = _split_ids(events)
        if len(parts) > 1:
            self._ids += parts[1::2]
            if self._cut:
                events = _NO_IDS.join(parts[::2])
        self._recent.append(events[-RECENT_BYTES:])
        if self._cut and _NOTHING_SAID in events:
            return _drop_silent(b"", events)
        return events

    def add(self, piece: Piece, event: bytes) -> None:
        if piece.token_ids is not None:
            self._ids.append(",".join(map(str, piece.token_ids)).encode())
        self._recent.append(event[-RECENT_BYTES:])

    def resume(self) -> None:
        self._ids = [self.delivered().ids]
        self._recent.clear()
        self._before = 1

    def delivered(self) -> Delivered:
        """An engine holds back the text of a token that ends within a character: such tokens are told, yet the client
        has had nothing of them."""
        held, ended, is_plain, found = 0, False, True, False
        for piece in _backwards(self._recent):
            if piece.finish_reason is not None or piece.content or not piece.is_plain:
                ended, is_plain, found = piece.finish_reason is not None, piece.is_plain, True
                break
            if piece.delta is not None and piece.delta.role is not None:
                break
            held += 1
        nothing = not found and held >= len(self._ids)
        if not found and held == len(self._ids) - self._before:
            found = self._before > 0
        ids = [one for one in self._ids[: len(self._ids) - held] if one]
        counts = [one.count(b",") + 1 for one in self._ids if one]
        return Delivered(
            ids=b",".join(ids),
            id_count=sum(counts[: len(ids)]),
            held=sum(counts[len(ids) :]),
            nothing=nothing,
            ended=ended,
            is_plain=is_plain and (found or nothing),
        )


class TextKeeper(Keeper):
    """By text."""

    def __init__(self) -> None:
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._texts: list[str] = []
        self._ended = False
        self._is_plain = True

    def take(self, events: bytes) -> bytes:
        self._unread.append(events)
        self._unread_bytes += len(events)
        if self._unread_bytes > UNREAD_MAX_BYTES:
            self._read()
        return events

    def add(self, piece: Piece, event: bytes) -> None:
        self._read()
        self._take(piece)

    def delivered(self) -> Delivered:
        self._read()
        text = "".join(self._texts)
        nothing = not text and self._is_plain and not self._ended
        return Delivered(text=text, nothing=nothing, ended=self._ended, is_plain=self._is_plain)

    def _read(self) -> None:
        events = b"".join(self._unread)
        said = _plain_text(events)
        if said is not None:
            self._texts.append(said)
        else:
            for piece in _pieces(events):
                self._take(piece)
        self._unread.clear()
        self._unread_bytes = 0

    def _take(self, piece: Piece) -> None:
        if piece.content:
            self._texts.append(piece.content)
        self._is_plain = self._is_plain and piece.is_plain
        self._ended = self._ended or piece.finish_reason is not None


class _PlainDelta(Struct, forbid_unknown_fields=True):
    content: str
    role: str | None = None


class _PlainPiece(Struct):
    delta: _PlainDelta
    finish_reason: None = None


class _PlainEvent(Struct):
    choices: list[_PlainPiece]


_plain_events = msgspec.json.Decoder(list[_PlainEvent])


def _plain_text(events: bytes) -> str | None:
    """The text of a chat's events that say nothing but content; None where one says more. Read at once: one by one
    costs four times as much. Line feeds in JSON strings are escaped, so that no text looks like an event's end."""
    try:
        read = _plain_events.decode(b"[%b]" % events[6:-2].replace(b"\n\ndata: ", b","))
    except _UNREADABLE:
        return None
    return "".join([piece.delta.content for event in read for piece in event.choices])


def _pieces(events: bytes) -> Iterator[Piece]:
    """The choices of whole events; what cannot be read is none."""
    for event in events.replace(b"\r\n", b"\n").split(b"\n\n"):
        if not event.startswith(b"data:"):
            continue
        try:
            yield from _event.decode(event[5:]).choices or ()
        except _UNREADABLE:
            continue


def _backwards(reads: deque[bytes]) -> Iterator[Piece]:
    for read in reversed(reads):
        yield from reversed(list(_pieces(read)))
