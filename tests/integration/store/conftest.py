"""Fixtures for tests that talk to Valkey call by call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from gateway.metering import Ledger

from .ledgers import ManualClock, PatientLedger


@pytest.fixture(scope="module")
def valkey(valkey_url: str) -> Iterator[sync_redis.Redis]:
    """A client of the session's Valkey, as it is: tests take names that nobody else has."""
    with sync_redis.Redis.from_url(valkey_url) as connection:
        yield connection


@pytest.fixture
def clock() -> ManualClock:
    """Stands still unless a test moves it."""
    return ManualClock()


@pytest.fixture
async def ledger(redis: Redis, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Ledger]:
    """One worker's, whose settlements are in Valkey when they return."""
    async with PatientLedger(redis, tmp_path, now_ms=clock) as ledger:
        yield ledger
