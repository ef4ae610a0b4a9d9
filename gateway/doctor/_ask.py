"""Asks engines, Redis and this machine. All I/O of the room is here; nothing is judged."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.context import UnsupportedTokenizer, load_tokenizer
from gateway.policy import ModelSpec, Policies
from gateway.settings import Settings
from gateway.store import EmbeddedStoreFailed, StoreUnavailable, connect, durable

from ._facts import Answer, Disk, LongPrompt, ReplicaFacts, StoreFacts, TokenizerFacts
from ._findings import Finding
from ._http import PROMPT, TIMEOUT_S, get, post
from ._place import judge_place, judge_store
from ._probe import probe
from ._read import cards_of, count_of
from ._replica import Wants, judge_replica, judge_replicas, judge_tokenizer, not_examined

INFO_TIMEOUT_S: Final = 60.0
"""vLLM collects its environment for the first `/server_info`: 15 s where the cores are busy."""
ANSWER_TIMEOUT_S: Final = 60.0
"""A replica past its knee answers late."""
REPLICAS_AT_ONCE: Final = 16
LOOKS: Final = 7
TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "def f(x: int) -> str:\n    return f'{x:>08.3f}'\n\n\n",
    "  leading,\ttabs   and trailing spaces   \r\n",
    "3.14159265358979 20261125 0x1F600 1,000,000",
    "Größe, naïve, Ελληνικά, русский, العربية, हिन्दी",
    "今天天气很好。東京は晴れです。오늘은 맑아요.",
    "emoji 😀👩‍💻🇩🇪 and e\u0301 combined",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa====----",
)
"""Where tokenizers differ: splitting, white space, digits, scripts, normalization, repetition."""
_FEW = 3


async def examine(policies: Policies, settings: Settings, *, measure: bool) -> list[Finding]:
    """Everything that can be found out about this fleet. `measure`: a stream beside a long prompt, one replica after
    the other, which takes seconds of each one's time."""
    store = await _store(settings)  # alone, since it is timed
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, limits=limits) as http:
        turns = asyncio.Semaphore(REPLICAS_AT_ONCE)
        vllm = [model for model in policies.models.values() if model.engine == "vllm"]
        models = [_Model(http, model, Wants.of(policies, model)) for model in vllm]
        await asyncio.gather(*(model.ask(turns) for model in models))
        if measure:
            for model in models:
                await model.measure()
        tokenizers = [finding for model in models for finding in await model.judge_tokenizer()]
    disk = await asyncio.to_thread(_disk, settings.data_dir)
    has_admin_key, embedded = settings.admin_key_sha256 is not None, settings.redis_url is None
    others = [model for model in policies.models.values() if model.engine != "vllm"]
    return [
        *(finding for model in models for finding in model.judge()),
        *(not_examined(model) for model in others),
        *tokenizers,
        *judge_store(store),
        *judge_place(disk, has_admin_key=has_admin_key, embedded=embedded),
    ]


class _Model:
    """A model's replicas, by url, and what they answered."""

    def __init__(self, http: httpx.AsyncClient, spec: ModelSpec, wants: Wants) -> None:
        self._http = http
        self._spec = spec
        self._wants = wants
        self._facts: dict[str, ReplicaFacts] = {}

    async def ask(self, turns: asyncio.Semaphore) -> None:
        """All of them."""

        async def one(url: str) -> None:
            async with turns:
                self._facts[url] = await _replica(self._http, url, self._spec.name)

        self._facts = dict.fromkeys((replica.url for replica in self._spec.replicas), ReplicaFacts(health=Answer(0)))
        await asyncio.gather(*map(one, self._facts))

    async def measure(self) -> None:
        """One after the other, so that nothing is measured beside another measurement."""
        for url, facts in self._facts.items():
            if facts.health.status == 200 and self._wants.itl_ms is not None:
                measured = await _measure(self._http, url, self._spec.name, facts)
                self._facts[url] = msgspec.structs.replace(facts, long_prompt=measured)

    def judge(self) -> list[Finding]:
        """Each of them, and what differs between them."""
        named = {url.partition("://")[2]: facts for url, facts in self._facts.items()}
        findings = [finding for name, facts in named.items() for finding in judge_replica(name, self._wants, facts)]
        return findings + judge_replicas(self._spec.name, named)

    async def judge_tokenizer(self) -> list[Finding]:
        """Where the policy names one."""
        path, name = self._spec.tokenizer, self._spec.name
        if path is None:
            return []
        healthy = next((url for url, facts in self._facts.items() if facts.health.status == 200), None)
        return judge_tokenizer(name, await _tokenizer(self._http, path, healthy, name))


async def _tokenizer(http: httpx.AsyncClient, path: str, url: str | None, model: str) -> TokenizerFacts:
    try:
        tokenizer = await asyncio.to_thread(load_tokenizer, Path(path))
    except UnsupportedTokenizer as error:
        return TokenizerFacts(path=path, error=str(error))
    counts = []
    for text in TEXTS if url is not None else ():
        asked = {"model": model, "prompt": text, "add_special_tokens": False}
        counts.append((text, tokenizer.count(text), count_of(await post(http, f"{url}/tokenize", asked))))
    return TokenizerFacts(path=path, counts=tuple(counts))


async def _measure(http: httpx.AsyncClient, url: str, model: str, facts: ReplicaFacts) -> LongPrompt | str:
    cards = None if facts.models is None else cards_of(facts.models)
    context_tokens = next((card.max_model_len for card in cards or [] if card.id == model), None)
    if context_tokens is None:
        return "it does not tell its context"
    return await probe(http, url, model, context_tokens)


async def _replica(http: httpx.AsyncClient, url: str, model: str) -> ReplicaFacts:
    health = await get(http, f"{url}/health")
    if health.status != 200:
        return ReplicaFacts(health=health)
    few = {"model": model, "prompt": PROMPT, "max_tokens": _FEW, "temperature": 0}
    streamed = few | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    models, metrics, version, tokenize, whole, stream, info = await asyncio.gather(
        get(http, f"{url}/v1/models"),
        get(http, f"{url}/metrics"),
        get(http, f"{url}/version"),
        post(http, f"{url}/tokenize", {"model": model, "prompt": PROMPT}),
        post(
            http,
            f"{url}/v1/completions",
            few,
            headers={"endpoint-load-metrics-format": "text"},
            timeout_s=ANSWER_TIMEOUT_S,
        ),
        post(http, f"{url}/v1/completions", streamed, timeout_s=ANSWER_TIMEOUT_S),
        get(http, f"{url}/server_info?config_format=json", timeout_s=INFO_TIMEOUT_S),
    )
    return ReplicaFacts(
        health=health,
        models=models,
        metrics=metrics,
        version=version,
        tokenize=tokenize,
        whole=whole,
        stream=stream,
        server_info=info,
    )


async def _store(settings: Settings) -> StoreFacts:
    try:
        async with connect(settings) as redis:
            return await _redis(redis)
    except (RedisError, OSError, EmbeddedStoreFailed) as error:
        return StoreFacts(error=str(error) or type(error).__name__)


async def _redis(redis: Redis) -> StoreFacts:
    info = {str(name): str(value) for name, value in (await redis.info()).items()}
    looks = []
    for _ in range(LOOKS):
        before = time.time()
        seconds, microseconds = await redis.time()
        after = time.time()
        there = seconds + microseconds / 1e6
        looks.append((1000 * (after - before), 1000 * (there - (before + after) / 2)))
    ping_ms, ahead_ms = min(looks)
    synced: bool | None
    try:
        synced = True if await durable(redis) else None
    except StoreUnavailable:
        synced = False
    return StoreFacts(info=info, synced=synced, ping_ms=ping_ms, ahead_ms=ahead_ms, within_ms=ping_ms / 2)


def _disk(directory: Path) -> Disk:
    """Of a directory that is not there yet: whether it could be made."""
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free_bytes = shutil.disk_usage(there).free
        with tempfile.NamedTemporaryFile(dir=there, prefix=".mtok-doctor-") as file:
            file.write(b"0" * 4096)
            file.flush()
            before = time.monotonic()
            os.fsync(file.fileno())
            sync_ms = 1000 * (time.monotonic() - before)
    except OSError as error:
        return Disk(path=directory, error=error.strerror or str(error))
    return Disk(path=directory, free_bytes=free_bytes, sync_ms=sync_ms if there == directory else None)
