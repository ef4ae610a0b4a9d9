"""From settings to a Redis client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Protocol

from redis import DriverInfo
from redis.asyncio import Redis

from ._embedded import embedded

CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 5.0


class StoreSettings(Protocol):
    """What the store needs to know: `redis_url`, or `data_dir` for the embedded Valkey when that is None."""

    @property
    def redis_url(self) -> str | None: ...
    @property
    def data_dir(self) -> Path: ...


@contextlib.asynccontextmanager
async def connect(settings: StoreSettings) -> AsyncIterator[Redis]:
    """A client at `settings.redis_url`, or of the embedded Valkey, which is started for this block unless it runs.

    Answers are bytes. The client connects when it is first used: leaving and entering the block needs no Redis.

    Raises:
        EmbeddedStoreFailed: the embedded Valkey could not be started.
    """
    if settings.redis_url is not None:
        async with client(settings.redis_url) as redis:
            yield redis
        return
    server = embedded(settings.data_dir)
    url = await asyncio.to_thread(server.__enter__)
    try:
        async with client(url) as redis:
            yield redis
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def client(url: str) -> Redis:
    """A client at `url`: `redis://`, `rediss://`, `valkey://`, `valkeys://` or `unix://`."""
    scheme, separator, rest = url.partition("://")
    return Redis.from_url(
        {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme) + separator + rest,
        protocol=2,  # no server pushes: the coalescing client reads one answer per command
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        driver_info=_driver(),
    )


@cache
def _driver() -> DriverInfo:
    """What Redis is told of its client. Looking its version up takes 3 ms, and redis-py does for each connection."""
    return DriverInfo()
