"""All replicas of all models: who is healthy, what context they serve, and the control-plane calls to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import httpx
import msgspec

from gateway.policy import ModelSpec

from ._replica import Replica
from ._retries import RetryBudget
from ._salts import SALTED_ALWAYS, salted_paths

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 2.0
"""Each probe costs this worker 4 ms of CPU; a replica that refuses connections is noticed at once, by a request."""
PROBE_TIMEOUT_S = 2.0
PROBES_MISSED_MAX = 3
"""An API server busy with a burst of prompts is late for seconds; only so many late answers in a row are an outage."""
TOKENIZE_TIMEOUT_S = 5.0
SILENCE_S = 600.0
"""A replica that sends nothing for so long counts as lost: the SDKs give up after the same 600 s."""


class _ModelCard(msgspec.Struct):
    id: str = ""
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard] = []


class _TokenCount(msgspec.Struct):
    count: int | None = None
    input_tokens: int | None = None


@dataclass(slots=True)
class ModelFleet:
    """A model and the replicas that serve it. `retries` is what this worker may try again of its requests."""

    spec: ModelSpec
    replicas: list[Replica]
    retries: RetryBudget = field(default_factory=RetryBudget)
    pools: dict[Replica, tuple[int, str]] = field(default_factory=dict)
    """Where the policy has pools, each replica's: its place in their order, and its name."""

    @property
    def context_tokens(self) -> int | None:
        """The policy's context, else the smallest any replica has told; None until one has."""
        told = self.spec.context_tokens
        if told is None:
            for replica in self.replicas:
                if replica.context_tokens is not None and (told is None or replica.context_tokens < told):
                    told = replica.context_tokens
        return told

    def healthy(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.healthy]

    def first_pool(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        """Those of them that are in the first pool which has any."""
        if not self.pools or not replicas:
            return replicas
        order = [self.pools[replica][0] for replica in replicas]
        first = min(order)
        return [replica for replica, place in zip(replicas, order, strict=True) if place == first]

    def pool_of(self, replica: Replica) -> str:
        """The name of a replica's pool; empty where there are none."""
        return self.pools[replica][1] if replica in self.pools else ""


class Fleet:
    """Owns every replica's connections and the task that watches them. Use it as an async context manager."""

    def __init__(
        self,
        models: Iterable[ModelSpec],
        *,
        probe_interval_s: float = PROBE_INTERVAL_S,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self.models: dict[str, ModelFleet] = {}
        self.replicas: list[Replica] = []
        self._leaving: list[Replica] = []
        self.update(models)
        self._probe_interval_s = probe_interval_s
        self._http = httpx.AsyncClient(timeout=probe_timeout_s, trust_env=False)
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Fleet:
        # Once before anything is served, so that the first request finds the healthy ones.
        await self._probe_all()
        self._watcher = asyncio.create_task(self._watch(), name="fleet-watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._http.aclose()
        for replica in (*self.replicas, *self._leaving):
            replica.close()

    def update(self, models: Iterable[ModelSpec]) -> None:
        """From now on these are the models and their replicas. One that is gone gets nothing new and is let go when its
        last answer has ended; a new one gets requests once it has answered its first probe."""
        known = {replica.url: replica for replica in (*self.replicas, *self._leaving)}
        wanted: dict[str, Replica] = {}
        updated: dict[str, ModelFleet] = {}
        for spec in models:
            for one in spec.replicas:
                if one.url not in wanted:
                    wanted[one.url] = known.get(one.url) or Replica(one.url)
            model = updated[spec.name] = self.models.get(spec.name) or ModelFleet(spec, [])
            model.spec = spec
            model.replicas[:] = [wanted[one.url] for one in spec.replicas]
            model.pools = {
                wanted[one.url]: (place, pool.name) for place, pool in enumerate(spec.pools) for one in pool.replicas
            }
        for name in self.models.keys() - updated.keys():
            self.models[name].replicas.clear()
        self.models = updated
        self.replicas[:] = wanted.values()
        self._leaving = [replica for url, replica in known.items() if url not in wanted]

    def ready(self) -> bool:
        """Whether any replica answers."""
        return any(replica.healthy for replica in self.replicas)

    async def salts(self, model: ModelFleet, path: str) -> bool:
        """Whether every healthy replica keeps prompts apart by their `cache_salt` at this path; asks those that have
        not been asked. One that cannot be asked may not do it."""
        if path in SALTED_ALWAYS:
            return True
        for replica in model.healthy():
            if replica.salted_paths is None:
                replica.salted_paths = await self._salted_paths_of(replica)
            if replica.salted_paths is None or path not in replica.salted_paths:
                return False
        return True

    async def _salted_paths_of(self, replica: Replica) -> frozenset[str] | None:
        try:
            answer = await self._http.get(replica.url + "/openapi.json", timeout=TOKENIZE_TIMEOUT_S)
            return salted_paths(answer.content) if answer.status_code == httpx.codes.OK else frozenset()
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            log.warning("replica %s does not describe its requests: %s", replica.name, error)
            return None

    async def count_tokens(self, model: ModelFleet, path: str, payload: bytes) -> int | None:
        """Asks a healthy replica's tokenizer. None when none can tell; never raises for what the replica does."""
        for replica in model.healthy():
            try:
                answer = await self._http.post(
                    replica.url + path,
                    content=payload,
                    headers={"content-type": "application/json"},
                    timeout=TOKENIZE_TIMEOUT_S,
                )
                if answer.status_code != httpx.codes.OK:
                    return None
                told = msgspec.json.decode(answer.content, type=_TokenCount)
            except (httpx.HTTPError, msgspec.DecodeError) as error:
                log.warning("replica %s could not count tokens: %s", replica.name, error)
                continue
            return told.input_tokens if told.count is None else told.count
        return None

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._probe_interval_s)
            await self._probe_all()
            for replica in self.replicas:
                replica.sweep(now_s=loop.time(), silence_s=SILENCE_S)
            for replica in [replica for replica in self._leaving if not replica.in_flight]:
                replica.close()
                self._leaving.remove(replica)

    async def _probe_all(self) -> None:
        await asyncio.gather(*(self._probe(replica) for replica in self.replicas))

    async def _probe(self, replica: Replica) -> None:
        try:
            answer = await self._http.get(replica.url + "/health")
            healthy = answer.status_code == httpx.codes.OK
            if healthy and replica.context_tokens is None:
                replica.context_tokens = await self._context_of(replica)
            replica.probes_missed = 0
        except httpx.TimeoutException:
            replica.probes_missed += 1
            healthy = replica.healthy and replica.probes_missed < PROBES_MISSED_MAX
        except httpx.HTTPError:
            healthy = False
        if healthy != replica.healthy:
            log.info("replica %s is %s", replica.name, "healthy" if healthy else "down")
            replica.salted_paths = None  # another version may run there now
        replica.healthy = healthy

    async def _context_of(self, replica: Replica) -> int | None:
        answer = await self._http.get(replica.url + "/v1/models")
        try:
            cards = msgspec.json.decode(answer.content, type=_ModelList).data
        except msgspec.DecodeError as error:
            log.warning("replica %s answers /v1/models with something else: %s", replica.name, error)
            return None
        return min((card.max_model_len for card in cards if card.max_model_len is not None), default=None)
