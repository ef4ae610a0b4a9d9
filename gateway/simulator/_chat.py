"""`POST /v1/chat/completions`: the bytes of the recorded `chat*.http` and `stream*.http`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import cast

from ._driver import Flight
from ._errors import ApiError
from ._http import Exchange
from ._json import Json, dumps
from ._logprobs import chat_logprobs
from ._params import Body, Sampling, check_types, integer
from ._replica import Replica, request_id, settled, usage_json
from ._samples import Delta, Sample
from ._streams import events_of, stream


def read_messages(body: Body) -> list[tuple[str, str]]:
    """Role and text of each message, and the tools as one more; what is not text has none."""
    messages = []
    for message in cast("Sequence[Body]", body["messages"]):
        if not isinstance(message, dict):
            raise ApiError(400, "messages must be objects", param="messages")
        text = text_of(message.get("content"))
        if calls := message.get("tool_calls"):
            text += dumps(calls).decode()
        messages.append((str(message.get("role", "user")), text))
    if tools := body.get("tools"):
        messages.insert(0, ("system", dumps(tools).decode()))
    return messages


def text_of(content: Json) -> str:
    """The text of a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def forced_tool(body: Body) -> str | None:
    """The function that the answer must call, or None; `auto` needs a flag that this server does not have."""
    choice = body.get("tool_choice") or ("auto" if body.get("tools") else "none")
    if choice == "auto":
        raise ApiError(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    if choice == "none":
        return None
    names = [
        str(cast("Body", tool["function"]).get("name"))
        for tool in cast("Sequence[Body]", body.get("tools") or [])
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    function = choice.get("function") if isinstance(choice, dict) else None
    if choice == "required" and names:
        return names[0]
    wanted = str(function.get("name")) if isinstance(function, dict) else str(choice)
    if wanted not in names or not isinstance(function, dict):
        raise ApiError(400, f"Tool '{wanted}' has not been passed in `tools`.", param="tool_choice")
    return wanted


def _opens_answer(body: Body) -> bool:
    """Whether the template begins an answer; one that goes on where the last message stops does not."""
    opens = body.get("add_generation_prompt", True) is not False
    if body.get("continue_final_message") and opens:
        raise ApiError(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    return opens


class Chat:
    """The endpoint."""

    path = "/v1/chat/completions"
    function = "create_chat_completion"

    def __init__(self, replica: Replica) -> None:
        """Of one replica."""
        self.replica = replica

    async def __call__(self, exchange: Exchange, body: Body) -> None:
        """Answer a conversation."""
        check_types(body, {"messages": "list"})
        limit = integer(body, "max_completion_tokens")
        asked = integer(body, "max_tokens") if limit is None else limit
        logprobs = (integer(body, "top_logprobs") or 0) if body.get("logprobs") else None
        sampling = Sampling.read(body, max_tokens=asked, logprobs=logprobs)
        self.replica.check_model(body)
        tool = forced_tool(body)
        ids = self.replica.tokenizer.chat(read_messages(body), answer=_opens_answer(body))
        identity = request_id(exchange)
        flight = await self.replica.generate([ids], sampling, identity)
        answer = _ChatAnswer(self.replica, sampling, identity, ids, tool)
        answer.required = body.get("tool_choice") == "required"
        if sampling.stream:
            await stream(self.replica, exchange, flight, answer.events(flight))
        elif await settled(self.replica, exchange, flight):
            await exchange.answer_json(answer.plain(flight), headers=self.replica.load_header(exchange))


class _ChatAnswer:
    """One answer's JSON, whole or in chunks."""

    def __init__(self, replica: Replica, sampling: Sampling, identity: str, ids: list[int], tool: str | None) -> None:
        self.sampling = sampling
        self.profile = replica.profile
        self.ids = ids
        self.tool = tool
        self.required = False
        self.identity = f"chatcmpl-{identity}"
        self.created = int(time.time())
        self._calls: dict[int, str] = {}

    def plain(self, flight: Flight) -> Json:
        prompt, output, cached = flight.usage()
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(sample) for sample in flight.samples],
            "service_tier": None,
            "system_fingerprint": self.profile.fingerprint,
            "usage": usage_json(prompt, output, {"cached_tokens": cached, "multimodal_tokens": None}),
            "prompt_logprobs": None,
            "prompt_token_ids": self.ids if self.sampling.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
        }

    def _choice(self, sample: Sample) -> Json:
        delta = sample.take()
        message: dict[str, Json] = {
            "role": "assistant",
            "content": "" if self.tool else delta.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if self.tool:
            message["tool_calls"] = [self._call(sample.index, {"arguments": _arguments(delta.text)})]
        message["reasoning"] = None
        return {
            "index": sample.index,
            "message": message,
            "logprobs": chat_logprobs(delta.ids, self.sampling.logprobs),
            "finish_reason": self._finish(delta),
            "stop_reason": delta.stop_reason,
            "token_ids": delta.ids if self.sampling.return_token_ids else None,
            "routed_experts": None,
        }

    def events(self, flight: Flight) -> Iterator[bytes | None]:
        """Events as they become ready; None where the next one must be waited for."""
        begun = False
        for sample, delta in events_of(flight):
            if sample is None or delta is None:
                yield None
                continue
            if not begun:
                begun = True
                for one in flight.samples:
                    yield self._first(one)
            yield self._chunk(sample, delta, last=flight.done and not any(one.pending for one in flight.samples))
        if self.sampling.include_usage:
            prompt, output, cached = flight.usage()
            yield self._event(
                [],
                usage_json(prompt, output, {"cached_tokens": cached}),
                {"system_fingerprint": self.profile.fingerprint},
            )
        yield b"data: [DONE]\n\n"

    def _first(self, sample: Sample) -> bytes:
        choice = {
            "index": sample.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        ids = self.ids if self.sampling.return_token_ids else None
        usage = usage_json(sample.prompt_tokens, 0) if self.sampling.continuous_usage else None
        return self._event([choice], usage, {"prompt_token_ids": ids, "prompt_text": None})

    def _chunk(self, sample: Sample, delta: Delta, *, last: bool) -> bytes:
        ended = self._finish(delta)
        choice: dict[str, Json] = {
            "index": sample.index,
            "delta": self._delta(sample, delta),
            "logprobs": chat_logprobs(delta.ids, self.sampling.logprobs),
            "finish_reason": ended,
        }
        if ended:
            choice["stop_reason"] = delta.stop_reason
        choice["token_ids"] = delta.ids if self.sampling.return_token_ids else None
        usage = usage_json(sample.prompt_tokens, sample.taken) if self.sampling.continuous_usage else None
        alone = last and not self.sampling.include_usage
        return self._event([choice], usage, {"system_fingerprint": self.profile.fingerprint} if alone else {})

    def _finish(self, delta: Delta) -> str | None:
        """As vLLM: a required call that ended by itself says so, a named one just stops."""
        return "tool_calls" if self.required and delta.finish_reason == "stop" else delta.finish_reason

    def _delta(self, sample: Sample, delta: Delta) -> Json:
        if not self.tool:
            return {"content": delta.text}
        end = '"}' if delta.finish_reason else ""
        if sample.index in self._calls:
            return {"tool_calls": [{"index": 0, "function": {"arguments": delta.text + end}}]}
        return {"tool_calls": [self._call(sample.index, {"arguments": '{"text": "' + delta.text + end}, index=0)]}

    def _call(self, sample: int, function: dict[str, Json], index: int | None = None) -> Json:
        identity = self._calls.setdefault(sample, f"chatcmpl-tool-{secrets.token_hex(8)}")
        call: dict[str, Json] = {"id": identity, "type": "function"}
        if index is not None:
            call["index"] = index
        return {**call, "function": {"name": self.tool, **function}}

    def _head(self, kind: str) -> dict[str, Json]:
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.profile.model}

    def _event(self, choices: list[Json], usage: Json, rest: dict[str, Json]) -> bytes:
        body = {**self._head("chat.completion.chunk"), "choices": choices}
        if usage is not None:
            body["usage"] = usage
        return b"data: " + dumps({**body, **rest}) + b"\n\n"


def _arguments(text: str) -> str:
    return '{"text": "' + text + '"}'
