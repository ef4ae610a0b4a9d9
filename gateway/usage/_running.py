"""How many requests of each tenant run, over all gateways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.store import StoreUnavailable, TenantKeys


async def read_running(redis: Redis, tenants: Sequence[str], now_ms: int) -> dict[str, int]:
    """Requests that run, by tenant, in one exchange with Redis. Raises `StoreUnavailable`."""
    pipeline = redis.pipeline(transaction=False)
    for tenant in tenants:
        keys = TenantKeys(tenant)
        pipeline.zcount(keys.leases, f"({now_ms}", "+inf")
        pipeline.hget(keys.limits, "slices")  # leases that only extend another
    try:
        answers = cast(list[int | bytes | None], await pipeline.execute())
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    leases, slices = answers[::2], answers[1::2]
    return {
        tenant: max(0, int(count or 0) - int(extending or 0))
        for tenant, count, extending in zip(tenants, leases, slices, strict=True)
    }
