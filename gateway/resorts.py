"""Where a request may run when its model's own replicas have no room in time: hosted providers, at their own prices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from gateway import refusals
from gateway.attempts import Attempts
from gateway.errors import Refusal
from gateway.fleet import SALTED_ALWAYS, ModelFleet
from gateway.pricing import Price
from gateway.routing import Router
from gateway.wire import Endpoint

OVERLOADED = "overloaded"
"""The code of a refusal by the model's line: it would wait beyond its deadline, or has."""


class Resort(Struct, frozen=True, kw_only=True):
    """One of a model's last resorts, as it is to one tenant."""

    model: ModelFleet
    router: Router
    price: Price | None

    def serves(self, endpoint: Endpoint, *, isolated: bool) -> bool:
        """Whether such a request may run there. `isolated`: no other tenant may find its prompt in a cache."""
        dialect = self.model.dialect
        return dialect.serves(endpoint) and (
            not isolated or (dialect.takes_cache_salt and endpoint.path in SALTED_ALWAYS)
        )


class Elsewhere(Struct, frozen=True, kw_only=True):
    """One request at a last resort, if it comes to that."""

    price: Price | None
    attempts: Callable[[], Attempts]


def cover(price: Price | None, resorts: Iterable[Resort]) -> Price | None:
    """What a budget has to hold for a request that may run at any of these, or at its model's own price; None where
    nothing is charged."""
    others = [resort.price for resort in resorts if resort.price is not None]
    if price is None or not others:
        return price
    return Price.dearest([price, *others])


def has_no_room(refusal: Refusal, attempts: Attempts) -> bool:
    """Whether a request that was refused so may run elsewhere. One that may have run on an engine is tried once more
    only as any other is."""
    if refusal is refusals.UPSTREAM_LOST:
        return attempts.may_try_again()
    return refusal.code == OVERLOADED or refusal in _NO_ROOM


_NO_ROOM: Sequence[Refusal] = (refusals.NO_REPLICA, refusals.REPLICAS_BUSY)
