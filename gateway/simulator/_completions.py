"""`POST /v1/completions`: the bytes of the recorded `completions*.http`; one prompt or several, text or token ids."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ._driver import Flight
from ._errors import ApiError, Invalid
from ._http import Exchange
from ._json import Json, dumps
from ._logprobs import completion_logprobs, prompt_logprobs
from ._params import Body, Sampling, check_types, integer
from ._replica import Replica, request_id, settled, usage_json
from ._samples import Delta, Sample
from ._streams import events_of, stream

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, and vLLM's, when a completion does not say."""


def read_prompts(replica: Replica, body: Body) -> list[list[int]]:
    """The token ids of each prompt."""
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return [replica.tokenizer.encode(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(one, str) for one in prompt):
            return [replica.tokenizer.encode(one) for one in prompt]
        if all(_is_id(one) for one in prompt):
            return [_checked(replica, prompt)]
        if all(isinstance(one, list) and all(map(_is_id, one)) for one in prompt):
            return [_checked(replica, one) for one in prompt]
    raise Invalid("string_type", ("body", "prompt", "str"), "Input should be a valid string", prompt)


def _is_id(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked(replica: Replica, ids: list[int]) -> list[int]:
    wrong = next((one for one in ids if not 0 <= one < replica.profile.vocabulary), None)
    if wrong is not None:
        raise ApiError(400, f"Token id {wrong} is out of vocabulary", late=True)
    return ids


class Completions:
    """The endpoint."""

    path = "/v1/completions"
    function = "create_completion"

    def __init__(self, replica: Replica) -> None:
        """Of one replica."""
        self.replica = replica

    async def __call__(self, exchange: Exchange, body: Body) -> None:
        """Continue each prompt."""
        check_types(body, {"prompt": ""}, {"logprobs": "int"})
        asked = integer(body, "max_tokens")
        sampling = Sampling.read(
            body,
            max_tokens=asked if "max_tokens" in body else DEFAULT_MAX_TOKENS,
            logprobs=integer(body, "logprobs"),
        )
        self.replica.check_model(body)
        prompts = read_prompts(self.replica, body)
        identity = request_id(exchange)
        flight = await self.replica.generate(prompts, sampling, identity)
        answer = _CompletionAnswer(self.replica, sampling, identity, prompts, echo=bool(body.get("echo")))
        if sampling.stream:
            await stream(self.replica, exchange, flight, answer.events(flight))
        elif await settled(self.replica, exchange, flight):
            await exchange.answer_json(answer.plain(flight), headers=self.replica.load_header(exchange))


class _CompletionAnswer:
    """One answer's JSON, whole or in chunks."""

    def __init__(
        self, replica: Replica, sampling: Sampling, identity: str, prompts: list[list[int]], *, echo: bool
    ) -> None:
        self.replica = replica
        self.sampling = sampling
        self.prompts = prompts
        self.echo = echo
        self.identity = f"cmpl-{identity}"
        self.created = int(time.time())
        self._offsets: dict[int, int] = {}

    def _prompt(self, sample: Sample) -> list[int]:
        return self.prompts[sample.index // self.sampling.n]

    def plain(self, flight: Flight) -> Json:
        prompt, output, cached = flight.usage()
        return {
            **self._head(),
            "choices": [self._choice(sample) for sample in flight.samples],
            "service_tier": None,
            "system_fingerprint": self.replica.profile.fingerprint,
            "usage": usage_json(prompt, output, {"cached_tokens": cached, "multimodal_tokens": None}),
            "kv_transfer_params": None,
        }

    def _choice(self, sample: Sample) -> Json:
        delta = sample.take()
        prompt = self._prompt(sample)
        top = self.sampling.logprobs
        echoed = prompt if self.echo else []
        text = self.replica.tokenizer.decode(echoed) + delta.text
        with_ids = self.sampling.return_token_ids
        return {
            "index": sample.index,
            "text": text,
            "logprobs": completion_logprobs([*echoed, *delta.ids], top, first_unknown=self.echo),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "token_ids": delta.ids if with_ids else None,
            "prompt_logprobs": prompt_logprobs(prompt, top or 1) if self.sampling.prompt_logprobs else None,
            "prompt_token_ids": prompt if with_ids else None,
            "routed_experts": None,
        }

    def events(self, flight: Flight) -> Iterator[bytes | None]:
        """Events as they become ready; None where the next one must be waited for."""
        for sample, delta in events_of(flight):
            yield None if sample is None or delta is None else self._chunk(sample, delta)
        if self.sampling.include_usage:
            prompt, output, cached = flight.usage()
            usage = usage_json(prompt, output, {"cached_tokens": cached})
            body = {
                **self._head(),
                "choices": [],
                "usage": usage,
                "system_fingerprint": self.replica.profile.fingerprint,
            }
            yield b"data: " + dumps(body) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _chunk(self, sample: Sample, delta: Delta) -> bytes:
        offset = self._offsets.get(sample.index)
        ids, text = delta.ids, delta.text
        with_ids = self.sampling.return_token_ids
        if offset is None and self.echo:
            ids = [*self._prompt(sample), *ids]
            text = self.replica.tokenizer.decode(self._prompt(sample)) + text
        choice = {
            "index": sample.index,
            "text": text,
            "logprobs": completion_logprobs(ids, self.sampling.logprobs, offset=offset or 0),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "prompt_token_ids": self._prompt(sample) if with_ids and offset is None else None,
            "token_ids": delta.ids if with_ids else None,
        }
        self._offsets[sample.index] = (offset or 0) + len(text)
        body: dict[str, Json] = {**self._head(), "choices": [choice]}
        if self.sampling.continuous_usage:
            body["usage"] = usage_json(sample.prompt_tokens, sample.taken)
        return b"data: " + dumps(body) + b"\n\n"

    def _head(self) -> dict[str, Json]:
        return {
            "id": self.identity,
            "object": "text_completion",
            "created": self.created,
            "model": self.replica.profile.model,
        }
