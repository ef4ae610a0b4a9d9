"""What input costs of output by where the engines' own time went, from the counters that audits read too."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.pricing import opencost_input_ratio
from gateway.store import ReplicaKeys, StoreUnavailable

MINUTE_S = 60
TOKENS_LEAST = 10_000
"""Of each kind: a ratio of less is noise, and the one that was set holds."""


async def measured_input_ratio(redis: Redis, replicas: Collection[str], start_s: int, end_s: int) -> Decimal | None:
    """OpenCost's split over these replicas in [start, end), whole minutes: an uncached input token's time over an
    output token's, at most 1. OpenCost divides by delivered input; cached tokens have a ratio of their own here, so
    they are left out. None where the engines tell no times, or made too little.

    Raises `StoreUnavailable`.
    """
    pipeline = redis.pipeline(transaction=False)
    for replica in replicas:
        keys = ReplicaKeys(replica)
        for minute_s in range(start_s, end_s, MINUTE_S):
            pipeline.hgetall(keys.engine(minute_s))
    try:
        minutes = cast(list[dict[bytes, bytes]], await pipeline.execute())
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    sums = dict.fromkeys(("prompt", "cached", "generation", "prefill_ms", "decode_ms"), 0)
    for fields in minutes:
        for field, value in fields.items():
            metric = field.decode().partition("|")[2]
            if metric in sums:
                sums[metric] += int(value)
    uncached = sums["prompt"] - sums["cached"]
    if min(uncached, sums["generation"]) < TOKENS_LEAST:
        return None
    ratio = opencost_input_ratio(
        prefill_s=Decimal(sums["prefill_ms"]) / 1000,
        decode_s=Decimal(sums["decode_ms"]) / 1000,
        input_tokens=uncached,
        output_tokens=sums["generation"],
    )
    return None if ratio is None else min(Decimal(1), ratio.quantize(Decimal("0.0001")))
