"""What the endpoints share: the engine, the tokenizer, and the way from a prompt to samples in flight."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

from ._answers import Answer, seed_of
from ._driver import Driver, Flight
from ._errors import ApiError, output_too_long, prompt_too_long, unknown_model
from ._http import Exchange
from ._json import Json
from ._metrics import EngineMetrics
from ._params import Body, Sampling
from ._profiles import Profile
from ._requests import Prompt
from ._samples import Sample
from ._tokenizer import Tokenizer, said_so_far


class Replica:
    """One served model."""

    def __init__(self, profile: Profile) -> None:
        """Nothing runs before the server starts the driver."""
        self.profile = profile
        self.started_s = time.time()
        self.tokenizer = Tokenizer(profile.vocabulary)
        self.metrics = EngineMetrics(profile, self.started_s)
        self.driver = Driver(profile, self.metrics)

    def check_model(self, body: Body) -> None:
        """Refuse a model that is not this one."""
        model = body.get("model")
        if model and model != self.profile.model:
            raise unknown_model(str(model))

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        """Refuse what the context cannot hold."""
        limit = self.profile.max_model_len
        if max_tokens is not None and max_tokens > limit:
            raise output_too_long(limit, max_tokens)
        if prompt_tokens + (max_tokens or 0) > limit or prompt_tokens == limit:
            raise prompt_too_long(limit, prompt_tokens, max_tokens or 0)
        if not prompt_tokens:
            raise ApiError(400, "The decoder prompt cannot be empty")

    async def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, request_id: str) -> Flight:
        """Check the lengths, spend the API server's time, and put every sample of every prompt into the engine."""
        for ids in prompts:
            self.check_length(len(ids), sampling.max_tokens)
        arrival_s = asyncio.get_running_loop().time()
        await self.driver.api_delay(sum(map(len, prompts)))
        samples: list[Sample] = []
        sources: list[Prompt] = []
        for ids in prompts:
            source = Prompt.of(ids, self.profile.block_size, sampling.cache_salt)
            for number in range(sampling.n):
                samples.append(
                    Sample(
                        job_id=request_id,
                        index=len(samples),
                        prompt_tokens=len(ids),
                        answer=self._answer(ids, sampling, number),
                        sampling=sampling,
                    )
                )
                sources.append(source)
        return self.driver.launch(samples, sources, arrival_s)

    def _answer(self, ids: Sequence[int], sampling: Sampling, number: int) -> Answer:
        """A prompt that ends with a part of its answer is continued as the whole answer would have gone on."""
        said = said_so_far(ids)
        return Answer.plan(
            seed=seed_of(ids[: len(ids) - said], sampling.seed, number),
            median=self.profile.answer_tokens,
            max_tokens=said + (sampling.max_tokens or self.profile.max_model_len - len(ids)),
            min_tokens=said + sampling.min_tokens if sampling.min_tokens else 0,
            ignore_eos=sampling.ignore_eos,
            vocabulary=self.profile.vocabulary,
        ).after(said)

    def load_header(self, exchange: Exchange) -> tuple[tuple[str, str], ...]:
        """The `endpoint-load-metrics` header, if the client asked for it; vLLM sends it on plain answers only."""
        wanted = (exchange.header(b"endpoint-load-metrics-format") or "").upper()
        waiting, usage = float(self.driver.core.waiting), float(self.driver.core.kv_usage)
        if wanted == "TEXT":
            value = f"TEXT named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={usage}"
        elif wanted == "JSON":
            value = f'JSON {{"named_metrics": {{"num_requests_waiting": {waiting}, "kv_cache_usage_perc": {usage}}}}}'
        else:
            return ()
        return (("endpoint-load-metrics", value),)


def request_id(exchange: Exchange) -> str:
    """The client's `X-Request-Id`, or sixteen random hex digits."""
    return exchange.header(b"x-request-id") or secrets.token_hex(8)


def usage_json(prompt: int, output: int, details: Json = None) -> dict[str, Json]:
    """The usage object of chat and completions; `details` is left out when None."""
    usage: dict[str, Json] = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
    if details is not None:
        usage["prompt_tokens_details"] = details
    return usage


async def settled(replica: Replica, exchange: Exchange, flight: Flight) -> bool:
    """Wait for all samples; False if the client hung up first, which aborts them."""
    watcher = exchange.on_gone(lambda: replica.driver.abort(flight))
    try:
        while not flight.done and not flight.gone:
            flight.moved.clear()
            await flight.moved.wait()
    finally:
        watcher.cancel()
        if not flight.done:
            replica.driver.abort(flight)
    return not flight.gone
