"""A stream that a second replica may finish: the client sees one stream, whose events have one id and one count.

Until its first replica is lost it is a `CompletionScanner` that keeps what the client has had. From then on each event
of the next replica is read and written anew, as the first one would have said it: a text completion's as a chat's if
need be, with the first stream's id, time and model, and usage counted from the prompt that the client sent.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ._continuation import Continuation, continuation
from ._delivered import Delivered, IdKeeper, Keeper, Piece, TextKeeper
from ._ending import DONE, common_members
from ._readers import CompletionUsage, InputDetails
from ._requests import Endpoint, RequestView
from ._sse import MAX_EVENT_BYTES, CompletionScanner, is_done, payload_of
from ._usage import Usage

_PROMPT_IDS = b'"prompt_token_ids":['
_PROMPT_IDS_MEMBER = re.compile(rb'"prompt_token_ids":\[[\d,]*\]')

_members = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.encode
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Chunk(Struct):
    choices: list[Piece] | None = None
    usage: CompletionUsage | None = None
    error: Raw | UnsetType = UNSET
    system_fingerprint: Raw | UnsetType = UNSET


_chunk = msgspec.json.Decoder(_Chunk)


class ContinuableScanner(CompletionScanner):
    """Of a stream with one answer. `failed` streams hold back the engine's error in `error_event`: it is the client's
    only if nobody goes on. `continued` counts the replicas that went on with what others had begun."""

    def __init__(self, view: RequestView, *, by_ids: bool) -> None:
        """`by_ids`: its engine was asked for token ids."""
        super().__init__(cut_usage_event=not view.wants_usage, cut_running_usage=not view.wants_running_usage)
        self._view = view
        self._by_ids = by_ids
        self._keeper = self._new_keeper()
        self._opening: bytes | None = b""
        self._prompt_ids = b""
        self._head: dict[str, object] = {}
        self._now: Continuation | None = None
        self._prompt_tokens = self._before_tokens = self._cached_tokens = 0
        self._dropped = ""
        self.error_event = b""
        self.continued = 0

    def _new_keeper(self) -> Keeper:
        return IdKeeper(cut=not self._view.wants_token_ids) if self._by_ids else TextKeeper()

    def feed(self, data: bytes) -> bytes:
        if self._opening is not None:
            data = self._open(data)
        events = super().feed(data) if data else b""
        return self._keeper.take(events) if events and self._now is None else events

    def finish(self) -> bytes:
        opening, self._opening = self._opening, None
        events = (super().feed(opening) if opening else b"") + super().finish()
        return self._keeper.take(events) if events and self._now is None else events

    def _open(self, data: bytes) -> bytes:
        """Holds back the first event until it is whole: it may tell the prompt, which is long and nobody's business."""
        assert self._opening is not None
        data = self._opening + data
        start = data.find(b'"choices"')
        end = max(data.find(b"\n\n", start), data.find(b"\r\n\r\n", start)) if start >= 0 else -1
        if end < 0 and len(data) < MAX_EVENT_BYTES:
            self._opening = data
            return b""
        self._opening = None
        at = data.find(_PROMPT_IDS, 0, end) if self._by_ids else -1
        if at >= 0:
            closing = data.index(b"]", at)
            self._prompt_ids = data[at + len(_PROMPT_IDS) : closing]
            if not self._view.wants_token_ids:
                self.first_event = data[:at] + b'"prompt_token_ids":null' + data[closing + 1 : end]
                return self.first_event + data[end:]
        self.first_event = data[:end]
        return data

    def _read_carefully(self, block: bytes) -> bytes:
        if self.failed:
            return b""
        event = super()._read_carefully(block)
        if not self.failed:
            return event
        self.error_event = event
        return b""

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt that the client sent, as its first replica counted it."""
        if self.continued:
            return self._prompt_tokens
        told = self.usage()
        return told.input_tokens if told is not None else self._prompt_ids.count(b",") + bool(self._prompt_ids)

    def delivered(self) -> Delivered:
        """What the client has had so far."""
        return self._keeper.delivered()

    def continuation(self, body: bytes) -> Continuation | None:
        """How another replica can go on; None: it cannot, or nothing is missing but the end, which `close` writes.
        `body` is what the first one was sent."""
        told = self.usage()
        return continuation(
            self._view,
            body,
            self.delivered(),
            prompt_ids=self._prompt_ids,
            told_tokens=None if told is None else told.output_tokens,
        )

    def close(self, *, cached_tokens: int) -> bytes:
        """What is missing of a stream whose answer has reached its end: its usage, where asked for, and the last
        event."""
        self.ended, self.failed = True, False
        if self._final is not None:
            return DONE
        told = self.usage() or Usage()
        self._final = CompletionUsage(prompt_tokens=told.input_tokens, completion_tokens=told.output_tokens)
        self._final.prompt_tokens_details = InputDetails(cached_tokens=cached_tokens)
        if not self._view.wants_usage:
            return DONE
        return self._write([], self._final) + DONE

    def continue_by(self, chosen: Continuation, *, cached_tokens: int) -> Usage:
        """What is fed from now on is another replica's answer to that request. `cached_tokens` is what the first one
        is taken to have had of the prompt in its cache, which it tells only at its end. Returns what of the answer is
        the client's, and so is billed, whatever follows."""
        if not self.continued:
            self._prompt_tokens = self.prompt_tokens
            self._cached_tokens = min(cached_tokens, self._prompt_tokens)
        self._tail.clear()
        self.failed = self.ended = False
        self.error_event = b""
        self._now = chosen
        self._single = False
        self._dropped = chosen.dropped
        self._running.clear()
        self._final = None
        if chosen.by == "anew":
            self._keeper = self._new_keeper()
            if not self.first_event:  # nothing at all has reached the client, so that there is nothing to look like
                self._opening, self._now, self._single = b"", None, True
            return Usage()
        self._keeper.resume()
        self.continued += 1
        self._before_tokens = chosen.tokens
        self._running[0] = self._counted(0)
        return Usage(input_tokens=self._prompt_tokens, output_tokens=chosen.tokens)

    def _event(self, block: bytes) -> bytes:
        return super()._event(block) if self._now is None else self._rewritten(block)

    def _rewritten(self, block: bytes) -> bytes:
        if is_done(block):
            self.ended = True
            return block
        payload = payload_of(block)
        try:
            chunk = _chunk.decode(payload)
        except _UNREADABLE:
            return block
        if chunk.error is not UNSET and bytes(chunk.error) != b"null":
            self.failed, self.error_event = True, block
            return b""
        assert self._now is not None
        if self._now.by == "anew":
            return self._passed_on(payload, chunk)
        if chunk.usage is not None:
            self._count(chunk.usage, is_final=not chunk.choices)
        if not chunk.choices:
            wanted = chunk.usage is not None and not self._cut_usage_event and self._final is not None
            return self._write([], self._final, chunk.system_fingerprint) if wanted else b""
        return self._piece(chunk.choices[0], chunk.system_fingerprint)

    def _passed_on(self, payload: bytes, chunk: _Chunk) -> bytes:
        """Of an answer that began anew everything but its head and its usage is as its engine says it."""
        members: dict[str, object] = dict(_members.decode(payload))
        if chunk.usage is not None:
            if not chunk.choices:
                self._final = chunk.usage
                if self._cut_usage_event:
                    return b""
            else:
                self._running[0] = chunk.usage
                if self._cut_running_usage:
                    members.pop("usage")
        piece = chunk.choices[0] if chunk.choices else None
        if piece is not None and piece.delta is not None and piece.delta.role and not piece.content:
            return b""  # the client has been told the role
        event = b"data: %b\n\n" % _encode(members | self._common())
        if piece is None:
            return event
        if not self._view.wants_token_ids:
            event = _PROMPT_IDS_MEMBER.sub(b'"prompt_token_ids":null', event)
        return self._keeper.take(event)

    def _piece(self, piece: Piece, fingerprint: Raw | UnsetType) -> bytes:
        if not piece.is_plain:  # thoughts or calls where the first replica was past them: not the same answer
            self.failed = True
            return b""
        text = self._without_dropped(piece.content)
        asked_ids = self._view.wants_token_ids and bool(piece.token_ids)
        choice: dict[str, object] = {"index": 0}
        if self._view.endpoint is Endpoint.CHAT:
            choice |= {"delta": {"content": text}, "logprobs": None, "finish_reason": piece.finish_reason}
        else:
            choice |= {"text": text, "logprobs": None, "finish_reason": piece.finish_reason}
        if piece.finish_reason is not None and piece.stop_reason:
            choice["stop_reason"] = piece.stop_reason
        if self._by_ids:
            choice["token_ids"] = piece.token_ids if asked_ids else None
        usage = None if self._cut_running_usage else self._running.get(0)
        event = self._write([choice], usage, fingerprint)
        self._keeper.add(piece, event)
        return event if text or asked_ids or piece.finish_reason is not None else b""

    def _without_dropped(self, text: str) -> str:
        """White space that the client has already comes once more at most."""
        while self._dropped and text:
            if text[0] != self._dropped[0]:
                self._dropped = ""
                break
            text, self._dropped = text[1:], self._dropped[1:]
        return text

    def _count(self, told: CompletionUsage, *, is_final: bool) -> None:
        assert self._now is not None
        if self._now.by == "text" and told.prompt_tokens:
            # The engine's own count of the text so far, which is never more than was generated.
            so_far = told.prompt_tokens - self._prompt_tokens
            self._before_tokens = min(self._now.tokens, max(0, so_far))
        if is_final:
            self._final = self._counted(told.completion_tokens or 0)
            self._final.prompt_tokens_details = InputDetails(cached_tokens=self._cached_tokens)
        else:
            self._running[0] = self._counted(told.completion_tokens or 0)

    def _counted(self, tokens: int) -> CompletionUsage:
        return CompletionUsage(prompt_tokens=self._prompt_tokens, completion_tokens=self._before_tokens + tokens)

    def _write(
        self,
        choices: list[dict[str, object]],
        usage: CompletionUsage | None,
        fingerprint: Raw | UnsetType = UNSET,
    ) -> bytes:
        event: dict[str, object] = {**self._common(), "choices": choices}
        if usage is not None:
            event["usage"] = _usage_json(usage)
        if fingerprint is not UNSET:
            event["system_fingerprint"] = fingerprint
        return b"data: %b\n\n" % _encode(event)

    def _common(self) -> dict[str, object]:
        if not self._head:
            self._head = common_members(self.first_event)
        return self._head


def _usage_json(usage: CompletionUsage) -> dict[str, object]:
    prompt_tokens, completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0
    told: dict[str, object] = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    if usage.prompt_tokens_details is not None:
        told["prompt_tokens_details"] = {"cached_tokens": usage.prompt_tokens_details.cached_tokens or 0}
    return told
