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
        pipeline.zcount(TenantKeys(tenant).leases, f"({now_ms}", "+inf")
    try:
        counts = cast(list[int], await pipeline.execute())
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return dict(zip(tenants, counts, strict=True))
