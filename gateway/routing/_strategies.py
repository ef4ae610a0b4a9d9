"""The other ways to place a request, by policy: beside the default they know less, and some fleets want that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import xxhash

from gateway.policy import ModelSpec, StrategyName

from ._booking import Query, Target
from ._load import Loads
from ._router import Prefix, Router, Strategy
from ._shadow import ShadowedRouter

_MANTISSA_BITS = 53


class LeastLoaded:
    """The replica with the fewest requests of all gateways; of several the one that the prompt's first block prefers,
    so that gateways agree."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        counts = [router.running(target.name) for target in targets]
        least = min(counts)
        tied = [index for index, count in enumerate(counts) if count == least]
        block = query.chain.blocks[0]
        return max(tied, key=lambda index: router.weight(block, targets[index].name))


class RoundRobin:
    """The replica whose last turn is longest ago. Each worker takes turns of its own."""

    def __init__(self) -> None:
        self._turns = 0
        self._last: dict[str, int] = {}

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        last = self._last
        picked = min(range(len(targets)), key=lambda index: last.get(targets[index].name, 0))
        self._turns += 1
        last[targets[picked].name] = self._turns
        return picked


class Session:
    """The replica that a session prefers of those there are: the same at every gateway, and when one is lost only its
    own sessions go elsewhere, to all the others. What belongs to no session goes as by default."""

    def __init__(self) -> None:
        self._otherwise = Prefix()

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        if not query.session:
            return self._otherwise.pick(router, query, targets, now_ms)
        key = xxhash.xxh3_64_intdigest(query.session.encode())
        return max(range(len(targets)), key=lambda index: router.weight(key, targets[index].name))


class Weighted:
    """Each replica its part of the requests: a canary of weight 5 beside replicas of 95 in all gets 5 of 100.

    Sessions stay where their hash puts them, in the same parts (weighted rendezvous); everything else takes smooth
    turns, as nginx does, so that any hundred requests hold the parts. A replica of weight 0 gets what nobody else can
    take.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """By replica; one that is not there weighs 1."""
        self._weights = weights
        self._credits: dict[str, float] = {}

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        names = [target.name for target in targets]
        weights = [self._weights.get(name, 1.0) for name in names]
        total = sum(weights)
        if not total:
            weights, total = [1.0] * len(names), float(len(names))
        if query.session:
            key = xxhash.xxh3_64_intdigest(query.session.encode())
            return max(range(len(names)), key=lambda index: _stake(weights[index], router.weight(key, names[index])))
        credit = self._credits
        for name, weight in zip(names, weights, strict=True):
            credit[name] = credit.get(name, 0.0) + weight
        picked = max(range(len(names)), key=lambda index: (weights[index] > 0, credit[names[index]]))
        credit[names[picked]] -= total
        return picked


def strategy_of(name: StrategyName, weights: Mapping[str, float]) -> Strategy:
    """A new one of that name; `weights` are the replicas', by name."""
    match name:
        case "prefix":
            return Prefix()
        case "least_loaded":
            return LeastLoaded()
        case "round_robin":
            return RoundRobin()
        case "session":
            return Session()
        case "weighted":
            return Weighted(weights)


def router_of(spec: ModelSpec, loads: Loads, *, before: Router | None, said: ModelSpec | None) -> Router:
    """The router of a model: the one it had, unless the policy said something else of where requests go; then a new one
    that knows what the last one did. `said` is what the policy said when that was made."""
    weights = _weights(spec)
    if before is not None and said is not None and (said.routing, _weights(said)) == (spec.routing, weights):
        return before
    strategy = strategy_of(spec.routing.strategy, weights)
    if spec.routing.shadow is None:
        router = Router(loads, strategy)
    else:
        router = ShadowedRouter(loads, strategy, shadow=strategy_of(spec.routing.shadow, weights))
    if before is not None:
        router.inherit(before)
    return router


def session_of(tenant: str, header: bytes, user: bytes) -> str:
    """What says that a tenant's request belongs together with others: the header that the policy names, or else the
    request's raw `user`; empty where it says nothing. Tenants' sessions of one name are different ones."""
    said = header or user
    return f"{tenant}\0{said.decode('latin-1')}" if said else ""


def _weights(spec: ModelSpec) -> dict[str, float]:
    """By place, as far as they are not 1: replicas that come and go with a weight of 1 change nothing."""
    weights = {
        place: float(replica.weight) / len(replica.places) for replica in spec.replicas for place in replica.places
    }
    return {place: weight for place, weight in weights.items() if weight != 1}


def _stake(weight: float, hashed: int) -> float:
    """A target's part in weighted rendezvous: the chance that it is the greatest is its part of all weights."""
    part = ((hashed >> (64 - _MANTISSA_BITS)) + 0.5) / (1 << _MANTISSA_BITS)
    return -weight / log(part) if weight else 0.0
