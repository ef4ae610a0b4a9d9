"""A secret that all gateways over one Redis have in common."""

from __future__ import annotations

import secrets

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ._errors import StoreUnavailable
from ._keys import SALT_SEED

SECRET_BYTES = 32


async def cache_secret(redis: Redis) -> bytes:
    """The secret of the salts that keep tenants' caches apart; whoever asks first makes it.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    try:
        await redis.set(SALT_SEED, secrets.token_bytes(SECRET_BYTES), nx=True)
        kept = await redis.get(SALT_SEED)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    if not isinstance(kept, bytes) or len(kept) != SECRET_BYTES:
        raise StoreUnavailable(f"{SALT_SEED} holds something else than a secret")
    return kept
