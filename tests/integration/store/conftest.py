"""Fixtures for tests that talk to Valkey call by call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis as sync_redis


@pytest.fixture(scope="module")
def valkey(valkey_url: str) -> Iterator[sync_redis.Redis]:
    """A client of the session's Valkey, as it is: tests take names that nobody else has."""
    with sync_redis.Redis.from_url(valkey_url) as connection:
        yield connection
