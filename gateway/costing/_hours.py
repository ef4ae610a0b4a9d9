"""GPU hours in Redis: from when a replica is seen until it is gone, to the second, with what it cost then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.policy import Policies
from gateway.pricing import GpuSpan, nanousd_of_usd
from gateway.store import GPU_REPLICAS, ReplicaKeys, StoreUnavailable, load_script

GPU_GAP_S = 60
"""Nobody stops a machine and starts it again within a minute: a replica that is not seen for so long was there."""

_SCRIPT = load_script("gpu").text.decode()


class GpuTerms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is there: for which models, at which price for all its GPUs, and what was paid for."""

    models: tuple[str, ...]
    nanousd_per_hour: int
    sku: str = ""
    count: int = 1
    purchase: str = ""


def gpu_terms(policies: Policies) -> dict[str, GpuTerms]:
    """Of each replica's URL that says what it runs on. One that serves several models is paid for once."""
    models: dict[str, list[str]] = {}
    for model in policies.models.values():
        for replica in model.replicas:
            models.setdefault(replica.url, []).append(model.name)
    terms: dict[str, GpuTerms] = {}
    for model in policies.models.values():
        for replica in model.replicas:
            gpu = replica.gpu or model.gpu
            if gpu is None or replica.url in terms:
                continue
            terms[replica.url] = GpuTerms(
                models=tuple(models[replica.url]),
                nanousd_per_hour=nanousd_of_usd(gpu.replica_usd_per_hour(policies.catalogue)),
                sku=gpu.sku or "",
                count=gpu.count,
                purchase=gpu.purchase if gpu.sku else "",
            )
    return terms


async def tell_gpus(redis: Redis, seen: Mapping[str, GpuTerms], now_s: int) -> None:
    """These replicas, by name, are there now. Raises `RedisError` and `OSError`."""
    if not seen:
        return
    pipeline = redis.pipeline(transaction=False)
    pipeline.sadd(GPU_REPLICAS, *seen)
    for name, terms in seen.items():
        packed = msgspec.json.encode(terms).decode()
        pipeline.eval(_SCRIPT, 1, ReplicaKeys(name).gpu, str(now_s), str(GPU_GAP_S), packed)
    await pipeline.execute()


async def read_spans(redis: Redis, start_s: int, end_s: int) -> list[GpuSpan]:
    """All that was there in some part of [start, end), by replica and time. Raises `StoreUnavailable`."""
    try:
        names = sorted(name.decode() for name in cast(set[bytes], await redis.smembers(GPU_REPLICAS)))
        pipeline = redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(ReplicaKeys(name).gpu)
        kept = cast(list[dict[bytes, bytes]], await pipeline.execute()) if names else []
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    spans = [_span(name, int(start), span) for name, of in zip(names, kept, strict=True) for start, span in _spans(of)]
    return sorted(
        (span for span in spans if span.seconds(start_s, end_s)), key=lambda span: (span.replica, span.start_s)
    )


def _spans(kept: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(start, span) for start, span in kept.items() if start != b"last"]


def _span(replica: str, start_s: int, packed: bytes) -> GpuSpan:
    end, _, terms = packed.partition(b" ")
    told = msgspec.json.decode(terms, type=GpuTerms)
    return GpuSpan(
        replica=replica,
        models=told.models,
        start_s=start_s,
        end_s=int(end),
        nanousd_per_hour=told.nanousd_per_hour,
        sku=told.sku,
        count=told.count,
        purchase=told.purchase,
    )


async def write_spans(redis: Redis, spans: Iterable[GpuSpan]) -> None:
    """Writes spans that somebody else has counted; one that is there is written over. Raises `StoreUnavailable`."""
    pipeline = redis.pipeline(transaction=False)
    for span in spans:
        terms = GpuTerms(
            models=span.models,
            nanousd_per_hour=span.nanousd_per_hour,
            sku=span.sku,
            count=span.count,
            purchase=span.purchase,
        )
        packed = f"{span.end_s} {msgspec.json.encode(terms).decode()}"
        pipeline.sadd(GPU_REPLICAS, span.replica)
        pipeline.hset(ReplicaKeys(span.replica).gpu, str(span.start_s), packed)
    try:
        await pipeline.execute()
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
