"""`POST /v1/responses`: the bytes of the recorded `responses*.http`. Nothing is stored; text in, text out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import cast

from ._chat import text_of
from ._driver import Flight
from ._errors import Invalid
from ._http import Exchange
from ._json import Json, dumps
from ._params import Body, Sampling, check_types, integer
from ._replica import Replica, settled
from ._streams import events_of, stream


class Responses:
    """The endpoint."""

    path = "/v1/responses"
    function = "create_responses"

    def __init__(self, replica: Replica) -> None:
        """Of one replica."""
        self.replica = replica

    async def __call__(self, exchange: Exchange, body: Body) -> None:
        """Answer an input."""
        check_types(body, {"input": ""})
        sampling = Sampling.read(
            {**body, "n": 1, "stream_options": None}, max_tokens=integer(body, "max_output_tokens"), logprobs=None
        )
        self.replica.check_model(body)
        ids = self.replica.tokenizer.chat(read_input(body))
        flight = await self.replica.generate([ids], sampling, secrets.token_hex(8))
        answer = _Response(self.replica, sampling, body)
        if sampling.stream:
            await stream(self.replica, exchange, flight, answer.events(flight))
        elif await settled(self.replica, exchange, flight):
            await exchange.answer_json(answer.ended(flight, flight.samples[0].take().text))


def read_input(body: Body) -> list[tuple[str, str]]:
    """Role and text of the instructions and of each input item."""
    value = body["input"]
    messages = []
    if instructions := body.get("instructions"):
        messages.append(("system", str(instructions)))
    if isinstance(value, str):
        return [*messages, ("user", value)]
    if not isinstance(value, list):
        raise Invalid("string_type", ("body", "input", "str"), "Input should be a valid string", value)
    for item in cast("Sequence[Body]", value):
        if isinstance(item, dict):
            text = text_of(item.get("content")) or str(item.get("output") or item.get("arguments") or "")
            messages.append((str(item.get("role") or "user"), text))
    return messages


class _Response:
    """One response's JSON, whole or as events with a running number."""

    def __init__(self, replica: Replica, sampling: Sampling, body: Body) -> None:
        self.replica = replica
        self.sampling = sampling
        self.body = body
        self.identity = f"resp_{secrets.token_hex(8)}"
        self.created = int(time.time())
        self._number = 0

    def ended(self, flight: Flight, text: str) -> Json:
        """The whole response."""
        sample = flight.samples[0]
        cut = sample.finish_reason == "length"
        message = {
            "id": f"msg_{secrets.token_hex(8)}",
            "content": [_text_part(text)],
            "role": "assistant",
            "status": "completed",
            "type": "message",
            "phase": None,
        }
        prompt, output, cached = flight.usage()
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": cached,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": output,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + output,
        }
        return self._response(
            "incomplete" if cut else "completed",
            usage=usage,
            output=[message],
            incomplete={"reason": "max_output_tokens"} if cut else None,
            limit=self.sampling.max_tokens or self.replica.profile.max_model_len - sample.prompt_tokens,
        )

    def events(self, flight: Flight) -> Iterator[bytes | None]:
        """Events as they become ready; None where the next one must be waited for."""
        prompt_tokens = flight.samples[0].prompt_tokens
        limit = self.sampling.max_tokens or self.replica.profile.max_model_len - prompt_tokens
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, before={"response": self._response("in_progress", limit=limit)})
        item = secrets.token_hex(8)
        frame: dict[str, Json] = {"role": "assistant", "status": "in_progress", "type": "message", "phase": None}
        started = {"item": {"id": item, "content": [], **frame}, "output_index": 0}
        yield self._event("response.output_item.added", before=started)
        place: dict[str, Json] = {"item_id": item, "output_index": 0}
        empty = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        yield self._event("response.content_part.added", before={"content_index": 0, **place, "part": empty})
        text = ""
        quiet: dict[str, Json] = {"item_id": item, "logprobs": [], "output_index": 0}
        for sample, delta in events_of(flight):
            if sample is None or delta is None:
                yield None
                continue
            text += delta.text
            if delta.text:
                gained = {"content_index": 0, "delta": delta.text, **quiet}
                yield self._event("response.output_text.delta", before=gained)
        yield self._event("response.output_text.done", before={"content_index": 0, **quiet}, after={"text": text})
        part = _text_part(text)
        yield self._event("response.content_part.done", before={"content_index": 0, **place, "part": part})
        done = {"id": item, "content": [part], **frame, "status": "completed", "summary": []}
        yield self._event("response.output_item.done", before={"item": done, "output_index": 0})
        yield self._event("response.completed", before={"response": self.ended(flight, text)})

    def _event(self, kind: str, *, before: dict[str, Json], after: dict[str, Json] | None = None) -> bytes:
        number = self._number
        self._number += 1
        data = {**before, "sequence_number": number, **(after or {}), "type": kind}
        return f"event: {kind}\ndata: ".encode() + dumps(data) + b"\n\n"

    def _response(
        self, status: str, *, limit: int, usage: Json = None, output: Sequence[Json] = (), incomplete: Json = None
    ) -> Json:
        asked = self.body
        return {
            "id": self.identity,
            "created_at": self.created,
            "incomplete_details": incomplete,
            "instructions": asked.get("instructions"),
            "metadata": asked.get("metadata"),
            "model": self.replica.profile.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "temperature": _number(asked.get("temperature")),
            "tool_choice": asked.get("tool_choice", "none"),
            "tools": asked.get("tools") or [],
            "top_p": _number(asked.get("top_p")),
            "background": False,
            "max_output_tokens": limit,
            "max_tool_calls": asked.get("max_tool_calls"),
            "previous_response_id": asked.get("previous_response_id"),
            "prompt": None,
            "reasoning": asked.get("reasoning"),
            "service_tier": asked.get("service_tier", "auto"),
            "status": status,
            "text": asked.get("text"),
            "top_logprobs": None,
            "truncation": asked.get("truncation", "disabled"),
            "usage": usage,
            "user": asked.get("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _text_part(text: str) -> Json:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _number(value: Json) -> float:
    return 1.0 if value is None else float(cast("float", value))
