"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's dialect as vLLM 0.24 speaks it.

Cached prompt tokens are told apart (`cache_read_input_tokens`) and not in `input_tokens`, which is Anthropic's rule;
only the first event of a stream, which comes before the split is known, says the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from ._chat import read_messages, text_of
from ._driver import Flight
from ._http import Exchange
from ._json import Json, dumps
from ._params import Body, Sampling, check_types, integer
from ._replica import Replica, request_id, settled
from ._streams import events_of, stream

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def _prompt(replica: Replica, body: Body) -> list[int]:
    messages = read_messages(body)
    if system := text_of(body.get("system")):
        messages.insert(0, ("system", system))
    return replica.tokenizer.chat(messages)


def _event(kind: str, **fields: Json) -> bytes:
    return f"event: {kind}\ndata: ".encode() + dumps({"type": kind, **fields}) + b"\n\n"


class CountTokens:
    """How many tokens a request would have as its prompt."""

    path = "/v1/messages/count_tokens"
    function = "count_tokens"

    def __init__(self, replica: Replica) -> None:
        """Of one replica."""
        self.replica = replica

    async def __call__(self, exchange: Exchange, body: Body) -> None:
        """Answer the count."""
        check_types(body, {"model": "str", "messages": "list"})
        self.replica.check_model(body)
        count = len(_prompt(self.replica, body))
        await exchange.answer_json({"input_tokens": count, "context_management": {"original_input_tokens": count}})


class Messages:
    """The endpoint."""

    path = "/v1/messages"
    function = "create_messages"

    def __init__(self, replica: Replica) -> None:
        """Of one replica."""
        self.replica = replica

    async def __call__(self, exchange: Exchange, body: Body) -> None:
        """Answer a conversation."""
        check_types(body, {"model": "str", "messages": "list", "max_tokens": "int"})
        plain = {**body, "stop": body.get("stop_sequences"), "n": 1, "stream_options": None}
        sampling = Sampling.read(plain, max_tokens=integer(body, "max_tokens"), logprobs=None)
        self.replica.check_model(body)
        ids = _prompt(self.replica, body)
        identity = request_id(exchange)
        flight = await self.replica.generate([ids], sampling, identity)
        if sampling.stream:
            await stream(self.replica, exchange, flight, self._events(flight, f"chatcmpl-{identity}"))
        elif await settled(self.replica, exchange, flight):
            delta = flight.samples[0].take()
            await exchange.answer_json(
                {
                    "id": f"chatcmpl-{identity}",
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "text", "text": delta.text}],
                    "model": self.replica.profile.model,
                    "stop_reason": _STOP_REASONS[str(delta.finish_reason)],
                    "usage": _usage(flight),
                }
            )

    def _events(self, flight: Flight, identity: str) -> Iterator[bytes | None]:
        sample = flight.samples[0]
        begun = False
        for ready, delta in events_of(flight):
            if ready is None or delta is None:
                yield None
                continue
            if not begun:
                begun = True
                yield self._start(identity, sample.prompt_tokens)
                yield _event("content_block_start", content_block={"type": "text", "text": ""}, index=0)
            if delta.text:
                yield _event("content_block_delta", delta={"type": "text_delta", "text": delta.text}, index=0)
        yield _event("content_block_stop", index=0)
        reason = _STOP_REASONS[str(sample.finish_reason)]
        yield _event("message_delta", delta={"stop_reason": reason}, usage=_usage(flight))
        yield _event("message_stop")

    def _start(self, identity: str, prompt_tokens: int) -> bytes:
        content: Sequence[Json] = []
        message = {
            "id": identity,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.replica.profile.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        }
        return _event("message_start", message=message)


def _usage(flight: Flight) -> Json:
    prompt, output, cached = flight.usage()
    return {
        "input_tokens": prompt - cached,
        "output_tokens": output,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


def error_of(body: Json) -> Json:
    """vLLM's error in Anthropic's shape."""
    error = cast("Body", cast("Body", body)["error"])
    return {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
