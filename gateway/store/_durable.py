"""Whether what Redis has applied is on its disk."""

from __future__ import annotations

import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from ._errors import StoreUnavailable

log = logging.getLogger(__name__)

BARRIER = "mtok:barrier"
WAIT_MS = 2000
"""`appendfsync everysec` takes a second and a bit."""


async def durable(redis: Redis) -> bool:
    """Returns when everything that Redis had applied before this call is in its append-only file and synced.

    WAITAOF waits for the writes of its own connection, so it is given one here: what was applied before comes before it
    in the file. False when Redis cannot tell (older than 7.2, or without an append-only file): then only a later look
    at what it has tells what it lost.

    Raises:
        StoreUnavailable: Redis did not answer, or not in time.
    """
    try:
        async with redis.client() as connection:
            await connection.incr(BARRIER)
            synced = await connection.execute_command("WAITAOF", 1, 0, WAIT_MS)  # type: ignore[no-untyped-call]
    except ResponseError as error:
        log.debug("Redis does not tell what is on its disk: %s", error)
        return False
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    if synced[0] < 1:
        raise StoreUnavailable("Redis has not synced its append-only file in time")
    return True
