"""Who has asked for what lately: enough to say which rules of the policies nothing matches."""

from __future__ import annotations

from redis.asyncio import Redis

from gateway.metering import split_field
from gateway.policy import Match
from gateway.store import BUCKET_SECONDS, TenantKeys

from ._buckets import field_counts, read_fields


async def matches_since_yesterday(redis: Redis, tenant: str, now_s: int) -> set[Match]:
    """What the tenant's requests of today and yesterday (UTC) were of, refused ones included.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    seconds, keys = BUCKET_SECONDS["1d"], TenantKeys(tenant)
    today_s = now_s // seconds * seconds
    names = [keys.usage("1d", start_s) for start_s in (today_s - seconds, today_s)]
    found: set[Match] = set()
    async for _, fields in read_fields(redis, names, await field_counts(redis, names)):
        for field, _ in fields:
            group, _ = split_field(field.decode())
            found.add(Match(tenant, group.key, group.model))
    return found
