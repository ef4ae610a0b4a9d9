"""Commands that ask Redis one thing."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from ._words import FAILED, fail, settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

_Found = TypeVar("_Found")


def ask_store(ask: Callable[[Redis], Awaitable[_Found]]) -> _Found:
    """What `ask` finds in the Redis that the environment names. A Redis that does not answer ends the command."""
    from gateway.store import EmbeddedStoreFailed, StoreUnavailable, connect

    async def run() -> _Found:
        async with connect(settings()) as redis:
            return await ask(redis)

    try:
        return asyncio.run(run())
    except StoreUnavailable:
        fail("Redis does not answer; is MTOK_REDIS_URL right?", FAILED)
    except EmbeddedStoreFailed as error:
        fail(str(error), FAILED)
