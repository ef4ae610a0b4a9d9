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

from ._facts import Disk, LongPrompt, ReplicaFacts, StoreFacts, TokenizerFacts
from ._findings import Finding
from ._http import PROMPT, TIMEOUT_S, get, post
from ._place import judge_place, judge_store
from ._probe import probe
from ._read import cards_of, count_of
from ._replica import Wants, judge_replica, judge_replicas, judge_tokenizer

INFO_TIMEOUT_S: Final = 60.0
"""vLLM collects its environment for the first `/server_info`: 15 s where the cores are busy."""
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
    """Everything that can be found out about this fleet. `measure`: a stream beside a long prompt, one replica of a
    model after the other, which takes seconds of each one's time."""
    store = await _store(settings)  # alone, since it is timed
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        models = await asyncio.gather(
            *(_model(http, policies, model, measure=measure) for model in policies.models.values())
        )
    disk = await asyncio.to_thread(_disk, settings.data_dir)
    has_admin_key, embedded = settings.admin_key_sha256 is not None, settings.redis_url is None
    return [
        *(finding for found in models for finding in found),
        *judge_store(store),
        *judge_place(disk, has_admin_key=has_admin_key, embedded=embedded),
    ]


async def _model(http: httpx.AsyncClient, policies: Policies, model: ModelSpec, *, measure: bool) -> list[Finding]:
    wants = Wants.of(policies, model)
    asked = await asyncio.gather(*(_replica(http, replica.url, model.name) for replica in model.replicas))
    facts = dict(zip((replica.url for replica in model.replicas), asked, strict=True))
    if measure and wants.itl_ms is not None:
        for url, one in facts.items():
            if one.health.status == 200:
                facts[url] = msgspec.structs.replace(one, long_prompt=await _measure(http, url, model.name, one))
    named = {url.partition("://")[2]: one for url, one in facts.items()}
    findings = [finding for name, one in named.items() for finding in judge_replica(name, wants, one)]
    findings += judge_replicas(model.name, named)
    if model.tokenizer is not None:
        healthy = next((url for url, one in facts.items() if one.health.status == 200), None)
        findings += judge_tokenizer(model.name, await _tokenizer(http, model.tokenizer, healthy, model.name))
    return findings


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
        post(http, f"{url}/v1/completions", few, headers={"endpoint-load-metrics-format": "text"}),
        post(http, f"{url}/v1/completions", streamed),
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
