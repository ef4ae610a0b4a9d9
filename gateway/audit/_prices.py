"""The price book: what each model cost in each epoch, written down once and never changed, so that any bill can be
recomputed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.pricing import Price
from gateway.store import PRICE_BOOK, StoreUnavailable

log = logging.getLogger(__name__)

PriceBook = Mapping[tuple[str, str], Price]
"""By epoch and model."""


class _Entry(msgspec.Struct, frozen=True):
    """Dollars per million tokens, exact: decimals travel as strings."""

    output: Decimal
    input: Decimal
    cached: Decimal


async def write_prices(redis: Redis, prices: Collection[tuple[str, Price]]) -> None:
    """Adds these prices of models under their epochs. One that is there stays as it is.

    Raises `RedisError` and `OSError`.
    """
    pipeline = redis.pipeline(transaction=False)
    entries = []
    for model, price in prices:
        field = f"{price.epoch}|{model}"
        entry = _Entry(price.output_usd_per_mtok, price.input_usd_per_mtok, price.cached_usd_per_mtok)
        entries.append((field, entry))
        pipeline.hsetnx(PRICE_BOOK, field, msgspec.json.encode(entry))
        pipeline.hget(PRICE_BOOK, field)
    stored = cast(list[bytes], await pipeline.execute())[1::2] if entries else []
    for (field, entry), packed in zip(entries, stored, strict=True):
        if msgspec.json.decode(packed, type=_Entry) != entry:
            log.error("the price book says of %s: %s, which is not what is charged", field, packed.decode())


async def read_prices(redis: Redis) -> PriceBook:
    """The whole book. Raises `StoreUnavailable`."""
    try:
        fields = cast(dict[bytes, bytes], await redis.hgetall(PRICE_BOOK))
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis did not answer: {error}") from error
    return dict(_entries(fields.items()))


def _entries(fields: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[tuple[str, str], Price]]:
    for field, packed in fields:
        epoch, _, model = field.decode().partition("|")
        entry = msgspec.json.decode(packed, type=_Entry)
        yield (
            (epoch, model),
            Price.in_usd(epoch=epoch, output=entry.output, input=entry.input, cached=entry.cached),
        )
