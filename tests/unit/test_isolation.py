"""The secret behind the salts: where it comes from, and what happens while nobody knows it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from gateway import refusals
from gateway.errors import Refused
from gateway.isolation import Salts
from gateway.store import client


async def test_while_the_secret_is_not_known_nothing_that_is_isolated_runs(redis: Redis) -> None:
    async with client("redis://127.0.0.1:1/0") as away:
        with pytest.raises(Refused) as refused:
            await Salts(away, None).of("acme", b"")
        assert refused.value.refusal is refusals.STORE_AWAY
        given = [await Salts(away, letter * 32).of("acme", b"") for letter in (b"s", b"s", b"t")]
        assert given[0] == given[1] != given[2], "one that is given needs no store, and all who have it agree"
    first, second = Salts(redis, None), Salts(redis, None)
    assert await first.of("acme", b"") == await second.of("acme", b"")
    await redis.flushall()
    assert await first.of("acme", b"") == await second.of("acme", b""), "known is known"
    await redis.set("mtok:salt-seed", b"short")
    with pytest.raises(Refused):
        await Salts(redis, None).of("acme", b"")
