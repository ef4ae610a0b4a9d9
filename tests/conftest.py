"""Fixtures for every test: a real Valkey for the session, empty for each test that asks for a client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from gateway.store import client, embedded


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command that is run in a test's process sends the log to its own stderr, which ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the embedded Valkey, on a unix socket; one per test process."""
    with embedded(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A client of that Valkey, which is empty when the test begins."""
    async with client(valkey_url) as redis:
        await redis.flushall()
        yield redis
