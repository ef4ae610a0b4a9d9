"""Fixtures: gateways in front of scripted engines, on uvloop as in production."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis

from gateway.clock import Clock
from tests.integration.gateway.engine import Engine, running
from tests.integration.gateway.serving import Served, policies, serve

Start = Callable[..., Awaitable[Served]]


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """What the gateway runs on: its back-pressure and its closing of connections are uvloop's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """A replica that listens and has nothing to say yet."""
    engine = Engine()
    async with running(engine):
        yield engine


@pytest.fixture
async def second() -> AsyncIterator[Engine]:
    """Another replica."""
    engine = Engine()
    async with running(engine):
        yield engine


@pytest.fixture
async def start(tmp_path: Path, redis: Redis, valkey_url: str) -> AsyncIterator[Start]:
    """Starts gateways that stop when the test ends: `await start(engine, limits={...}, settings={...})`. `top` are
    further sections of the policies."""
    async with AsyncExitStack() as stack:

        async def start(
            *engines: Engine,
            clock: Clock | None = None,
            settings: dict[str, Any] | None = None,
            top: dict[str, Any] | None = None,
            **document: Any,
        ) -> Served:
            chosen = policies(*engines, **document) | (top or {})
            return await stack.enter_async_context(
                serve(chosen, tmp_path / "policies", redis, valkey_url, clock=clock, **(settings or {}))
            )

        yield start
