"""All replicas of all models: who is healthy, what context they serve, and the control-plane calls to them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping

import httpx
import msgspec

from gateway.engines import Question, dialect_of
from gateway.policy import ModelSpec

from ._health import Reason, State, last_resorts
from ._http import http_client
from ._model import ModelFleet
from ._probe import Prober
from ._replica import Replica
from ._salts import SALTED_ALWAYS, salted_paths

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 2.0
"""A probe costs this worker 0.15 ms of CPU; a replica that refuses connections is noticed at once, by a request."""
PROBE_TIMEOUT_S = 2.0
LOOK_INTERVAL_S = 0.5
TOKENIZE_TIMEOUT_S = 5.0
DESCRIPTION_TIMEOUT_S = 15.0
"""vLLM 0.32 makes its `/openapi.json` when it is first asked: more than 5 s on a busy CPU."""
SILENCE_S = 600.0
"""A replica that sends nothing for so long counts as lost: the SDKs give up after the same 600 s."""


class _Tokens(msgspec.Struct):
    tokens: list[int] | None = None


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
        self.on_change: Callable[[Replica], None] = _nobody
        """Hears of each replica whose state or its reason has changed."""
        self.on_restart: Callable[[Replica], None] = _nobody
        """Hears of each replica that is another process now, with an empty cache."""
        self._leaving: list[Replica] = []
        self._probers: dict[Replica, Prober] = {}
        self._states: dict[Replica, tuple[State, Reason]] = {}
        self._weighing = False
        self._serves = False
        self._probe_interval_s = probe_interval_s
        self._probe_timeout_s = probe_timeout_s
        self._http = http_client(TOKENIZE_TIMEOUT_S)
        self._watcher: asyncio.Task[None] | None = None
        self.update(models)

    async def __aenter__(self) -> Fleet:
        # Once before anything is served, so that the first request finds the healthy ones.
        await self._probe_all()
        self._serves = True
        self._watcher = asyncio.create_task(self._watch(), name="fleet-watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._http.aclose()
        for prober in self._probers.values():
            prober.close()
        for replica in (*self.replicas, *self._leaving):
            replica.close()

    def update(self, models: Iterable[ModelSpec]) -> None:
        """From now on these are the models and their replicas. One that is gone gets nothing new and is let go when its
        last answer has ended; a new one gets requests once it has answered its first probe."""
        known = {replica.url: replica for replica in (*self.replicas, *self._leaving)}
        wanted: dict[str, Replica] = {}
        updated: dict[str, ModelFleet] = {}
        for spec in models:
            model = updated[spec.name] = self.models.get(spec.name) or ModelFleet(spec, [])
            self._serve(model, spec, known, wanted)
            before = {resort.spec.pools[0].name: resort for resort in model.resorts}
            model.resorts = [before.get(of.pools[0].name) or ModelFleet(of, [], is_resort=True) for of in spec.resorts]
            for resort, of in zip(model.resorts, spec.resorts, strict=True):
                self._serve(resort, of, known, wanted)
        for name in self.models.keys() - updated.keys():
            for gone in (self.models[name], *self.models[name].resorts):
                gone.replicas.clear()
        self.models = updated
        self.replicas[:] = wanted.values()
        self._leaving = [replica for url, replica in known.items() if url not in wanted]
        for replica in self._leaving:
            self._forget(replica)
        for replica in self.replicas:
            self._prober(replica).serves = frozenset(
                served.spec.engine_name
                for model in updated.values()
                for served in (model, *model.resorts)
                if replica in served.replicas
            )
        self._weigh()

    def _serve(
        self, model: ModelFleet, spec: ModelSpec, known: Mapping[str, Replica], wanted: dict[str, Replica]
    ) -> None:
        """A model, or one of its last resorts, has these replicas from now on, which thereby are `wanted`."""
        for one in spec.replicas:
            if one.url not in wanted:
                wanted[one.url] = known.get(one.url) or self._new(one.url)
                wanted[one.url].speak(dialect_of(spec.engine), _api_key(spec))
            wanted[one.url].serve_ranks(one.ranks)
        model.spec = spec
        model.replicas[:] = [wanted[one.url] for one in spec.replicas]
        model.has_ranks = any(one.ranks for one in spec.replicas)
        own = enumerate(pool for pool in spec.pools if not pool.is_apart)
        model.pools = {wanted[one.url]: (place, pool.name) for place, pool in own for one in pool.replicas}

    def _new(self, url: str) -> Replica:
        return Replica(url, changed=self._changed, restarted=self._restarted)

    def _restarted(self, replica: Replica) -> None:
        log.warning("replica %s is another process than before: its cache is empty", replica.name)
        replica.salted_paths = None
        self.on_restart(replica)

    def _prober(self, replica: Replica) -> Prober:
        prober = self._probers.get(replica)
        if prober is None:
            prober = self._probers[replica] = Prober(replica, timeout_s=self._probe_timeout_s)
            prober.joins = self._serves
        return prober

    def _forget(self, replica: Replica) -> None:
        """It is not probed any more."""
        if (prober := self._probers.pop(replica, None)) is not None:
            prober.close()
        self._states.pop(replica, None)

    def _changed(self, replica: Replica) -> None:
        """A replica's health has changed: whether others must serve all the same, and who is told."""
        health = replica.health
        state = health.state, health.reason
        if self._states.get(replica, ("open", "new")) != state:
            self._states[replica] = state
            out = health.state in ("open", "quarantined")
            if out:
                replica.salted_paths = None  # another version may run there by the time it is back
            log.log(
                logging.WARNING if out else logging.INFO,
                "replica %s is %s%s",
                *(replica.name, health.state.replace("_", "-"), _why(health.reason, health.detail)),
            )
            self.on_change(replica)
            self._weigh()

    def _weigh(self) -> None:
        """Where every replica of a model is out by what requests said alone, those that answer probes serve on."""
        if self._weighing:
            return
        self._weighing = True
        now_s = asyncio.get_running_loop().time()
        needed = {
            health for model in self.models.values() for health in last_resorts(one.health for one in model.replicas)
        }
        for replica in self.replicas:
            health = replica.health
            if health in needed and health.state != "half_open" and not health.is_last_resort:
                log.warning("replica %s serves on: no other replica of a model of its does", replica.name)
            health.use_as_last_resort(now_s, on=health in needed)
        self._weighing = False
        self._note_starts()

    def _note_starts(self) -> None:
        for model in self.models.values():
            model.starts = any(replica.share < 1 for replica in model.replicas)

    def find(self, replica: str) -> Replica | None:
        """The replica with that URL, or host and port; also one that is leaving."""
        named = replica.rstrip("/")
        return next((one for one in (*self.replicas, *self._leaving) if named in (one.url, one.name)), None)

    def ready(self) -> bool:
        """Whether any replica answers."""
        return any(replica.healthy for replica in self.replicas)

    async def salts(self, model: ModelFleet, path: str) -> bool | None:
        """Whether every healthy replica keeps prompts apart by their `cache_salt` at this path; asks those that have
        not been asked. None: one did not answer."""
        if not model.dialect.takes_cache_salt:
            return False
        if path in SALTED_ALWAYS:
            return True
        for replica in model.healthy():
            if replica.salted_paths is None:
                replica.salted_paths = await self._salted_paths_of(replica)
            if replica.salted_paths is None:
                return None
            if path not in replica.salted_paths:
                return False
        return True

    async def _salted_paths_of(self, replica: Replica) -> frozenset[str] | None:
        try:
            answer = await self._http.get(
                replica.url + "/openapi.json", headers=replica.control_headers, timeout=DESCRIPTION_TIMEOUT_S
            )
            return salted_paths(answer.content) if answer.status_code == httpx.codes.OK else frozenset()
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            log.warning("replica %s does not describe its requests: %s", replica.name, error)
            return None

    async def count_tokens(self, model: ModelFleet, question: Question) -> int | None:
        """Asks a healthy replica's tokenizer. None when none can tell; never raises for what the replica does."""
        for replica in model.healthy():
            asked: int | Question | None = question
            try:
                while isinstance(asked, Question):
                    answer = await self._http.post(
                        replica.url + asked.path,
                        content=asked.body,
                        headers={"content-type": "application/json", **replica.control_headers},
                        timeout=TOKENIZE_TIMEOUT_S,
                    )
                    if answer.status_code != httpx.codes.OK:
                        return None
                    asked = asked.read(answer.content)
            except (httpx.HTTPError, msgspec.DecodeError) as error:
                log.warning("replica %s could not count tokens: %s", replica.name, error)
                continue
            return asked
        return None

    async def token_ids(self, replica: Replica, payload: bytes) -> list[int] | None:
        """A prompt's tokens, by a replica's tokenizer; None where it does not tell. Never raises for what it does."""
        try:
            answer = await self._http.post(
                replica.url + "/tokenize",
                content=payload,
                headers={"content-type": "application/json", **replica.control_headers},
                timeout=TOKENIZE_TIMEOUT_S,
            )
            told = msgspec.json.decode(answer.content, type=_Tokens)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            log.warning("replica %s could not tokenize: %s", replica.name, error)
            return None
        return told.tokens if answer.status_code == httpx.codes.OK else None

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(LOOK_INTERVAL_S, self._probe_interval_s))
            now_s = loop.time()
            for replica in self.replicas:
                replica.look()
                prober = self._prober(replica)
                if now_s >= prober.due_s and (prober.running is None or prober.running.done()):
                    prober.due_s = now_s + self._probe_interval_s
                    prober.running = loop.create_task(prober.probe(), name="probe")
            self._note_starts()
            for replica in (*self.replicas, *self._leaving):
                replica.sweep(now_s=now_s, silence_s=SILENCE_S)
            for replica in [replica for replica in self._leaving if not replica.in_flight]:
                replica.close()
                self._leaving.remove(replica)

    async def _probe_all(self) -> None:
        await asyncio.gather(*(self._prober(replica).probe() for replica in self.replicas))


def _why(reason: Reason, detail: str) -> str:
    said = ", ".join(filter(None, (reason, detail)))
    return f": {said}" if said else ""


def _nobody(replica: Replica) -> None:
    """Nobody hears of it."""


def _api_key(spec: ModelSpec) -> str | None:
    """The key for a model's engines, out of the environment variable that its policy names."""
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        log.error("model %s: %s is not set, so its engines are asked without a key", spec.name, spec.api_key_env)
        return None
    return key
