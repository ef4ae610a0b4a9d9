"""Epochs in Redis: appended, never changed. Who writes one that is there already learns what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.store import PRICE_EPOCHS, StoreUnavailable

from ._epochs import Epoch, epoch_name

_decode = msgspec.json.Decoder(Epoch).decode


async def write_epoch(redis: Redis, epoch: Epoch) -> Epoch:
    """Writes it down unless there is one of that name; what holds is what is returned.

    Raises `RedisError` and `OSError`.
    """
    pipeline = redis.pipeline(transaction=False)
    pipeline.hsetnx(PRICE_EPOCHS, epoch.name, msgspec.json.encode(epoch))
    pipeline.hget(PRICE_EPOCHS, epoch.name)
    _, kept = cast(tuple[int, bytes], await pipeline.execute())
    return _decode(kept)


async def read_epochs(redis: Redis, starts_s: Sequence[int]) -> list[Epoch | None]:
    """The epochs that begin at these times, None for one that nobody has written. Raises `StoreUnavailable`."""
    return await read_named_epochs(redis, [epoch_name(start_s) for start_s in starts_s])


async def epoch_names(redis: Redis) -> list[str]:
    """All epochs there have been, in order. Raises `StoreUnavailable`."""
    try:
        return sorted(name.decode() for name in cast(list[bytes], await redis.hkeys(PRICE_EPOCHS)))
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error


async def read_named_epochs(redis: Redis, names: Sequence[str]) -> list[Epoch | None]:
    """The epochs of these names, None for one that is not there. Raises `StoreUnavailable`."""
    if not names:
        return []
    try:
        kept = cast(list[bytes | None], await redis.hmget(PRICE_EPOCHS, list(names)))
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return [None if packed is None else _decode(packed) for packed in kept]
