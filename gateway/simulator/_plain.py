"""The endpoints that generate nothing: models, health, versions, load, tokens, metrics, embeddings."""

from __future__ import annotations

import base64
import secrets
import struct
import time
from typing import cast

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from ._answers import mix, seed_of
from ._chat import read_messages
from ._completions import read_prompts
from ._errors import Invalid
from ._exposition import number
from ._http import Exchange, HttpMetrics
from ._json import Json
from ._params import Body, check_types
from ._replica import Replica

METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"
EMBEDDING_DIMENSIONS = 64


class Plain:
    """Handlers that need the replica and nothing in flight."""

    def __init__(self, replica: Replica, http: HttpMetrics) -> None:
        """Of one replica; `http` is what its server has counted."""
        self.replica = replica
        self._http = http
        self._registry = CollectorRegistry()
        for collector in (GCCollector, PlatformCollector, ProcessCollector):
            collector(registry=self._registry)

    async def health(self, exchange: Exchange) -> None:
        """200 and nothing, while the engine lives."""
        await exchange.answer(200, b"", content_type=None)

    async def version(self, exchange: Exchange) -> None:
        """vLLM's version."""
        await exchange.answer_json({"version": self.replica.profile.version})

    async def load(self, exchange: Exchange) -> None:
        """Requests being answered."""
        await exchange.answer_json({"server_load": self.replica.driver.in_api})

    async def metrics(self, exchange: Exchange) -> None:
        """Process, engine and HTTP families."""
        replica = self.replica
        await replica.driver.api_work(replica.profile.api.metrics_ms)
        process = generate_latest(self._registry).decode().splitlines()
        # Several replicas may share a process here; each was started when it was made.
        lines = [
            f"process_start_time_seconds {number(replica.started_s)}"
            if line.startswith("process_start_time_seconds ")
            else line
            for line in process
        ]
        lines += replica.metrics.text(replica.driver.core)
        lines += self._http.text()
        await exchange.answer(200, ("\n".join(lines) + "\n").encode(), content_type=METRICS_TYPE)

    async def models(self, exchange: Exchange) -> None:
        """The one model, with its context."""
        profile, created = self.replica.profile, int(time.time())
        permission = {
            "id": f"modelperm-{secrets.token_hex(8)}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        model = {
            "id": profile.model,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": f"/srv/v/{profile.model}",
            "parent": None,
            "max_model_len": profile.max_model_len,
            "permission": [permission],
        }
        await exchange.answer_json({"object": "list", "data": [model]})

    async def tokenize(self, exchange: Exchange, body: Body) -> None:
        """The ids of a prompt or of a conversation: as many as its usage will say."""
        self.replica.check_model(body)
        tokenizer = self.replica.tokenizer
        if body.get("messages") is not None:
            check_types(body, {"messages": "list"})
            ids = tokenizer.chat(read_messages(body), answer=body.get("add_generation_prompt") is not False)
        else:
            check_types(body, {"prompt": "str"})
            ids = tokenizer.encode(cast("str", body["prompt"]))
        strings = [tokenizer.decode([one]) for one in ids] if body.get("return_token_strs") else None
        limit = self.replica.profile.max_model_len
        await exchange.answer_json({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": strings})

    async def detokenize(self, exchange: Exchange, body: Body) -> None:
        """The text of token ids."""
        check_types(body, {"tokens": "list"})
        self.replica.check_model(body)
        ids = cast("list[int]", body["tokens"])
        for place, one in enumerate(ids):
            if type(one) is not int:
                raise Invalid("int_type", ("body", "tokens", place), "Input should be a valid integer", one)
        await exchange.answer_json({"prompt": self.replica.tokenizer.decode(ids)})

    async def embeddings(self, exchange: Exchange, body: Body) -> None:
        """Vectors for each input; only in profiles with `embeddings`."""
        check_types(body, {"input": ""})
        self.replica.check_model(body)
        prompts = read_prompts(self.replica, {"prompt": body["input"]})
        for ids in prompts:
            self.replica.check_length(len(ids), None)
        total = sum(map(len, prompts))
        await self.replica.driver.api_delay(total)
        self.replica.driver.core.counters.prompt_tokens += total
        packed = body.get("encoding_format") == "base64"
        data = [
            {"index": index, "object": "embedding", "embedding": _vector(ids, packed=packed)}
            for index, ids in enumerate(prompts)
        ]
        await exchange.answer_json(
            {
                "id": f"embd-{exchange.header(b'x-request-id') or secrets.token_hex(8)}",
                "object": "list",
                "created": int(time.time()),
                "model": self.replica.profile.model,
                "data": data,
                "usage": {
                    "prompt_tokens": total,
                    "total_tokens": total,
                    "completion_tokens": 0,
                    "prompt_tokens_details": None,
                },
            }
        )


def _vector(ids: list[int], *, packed: bool) -> Json:
    seed = seed_of(ids, None, 0)
    values = [mix(seed + place) / 2**63 - 1.0 for place in range(EMBEDDING_DIMENSIONS)]
    if packed:
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return values
