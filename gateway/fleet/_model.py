"""A model and the replicas that serve it: which of them a request may go to."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from gateway.engines import Dialect, dialect_of
from gateway.policy import ModelSpec

from ._first_bytes import FirstBytes
from ._replica import Replica
from ._retries import RetryBudget


@dataclass(slots=True)
class ModelFleet:
    """A model and the replicas that serve it. `retries` is what this worker may try again of its requests; `starts`:
    one of the replicas has only a part of its share yet."""

    spec: ModelSpec
    replicas: list[Replica]
    retries: RetryBudget = field(default_factory=RetryBudget)
    first_bytes: FirstBytes = field(default_factory=FirstBytes)
    pools: dict[Replica, tuple[int, str]] = field(default_factory=dict)
    """Where the policy has pools, each replica's: its place in their order, and its name."""
    starts: bool = False
    resorts: list[ModelFleet] = field(default_factory=list)
    """The model as each of its last resorts serves it."""
    is_resort: bool = False
    has_ranks: bool = False
    """Whether several engines are behind any replica's address."""

    @property
    def dialect(self) -> Dialect:
        """Its engine's ways."""
        return dialect_of(self.spec.engine)

    @property
    def context_tokens(self) -> int | None:
        """The policy's context, else the smallest any replica has told; None until one has."""
        told = self.spec.context_tokens
        if told is None:
            for replica in self.replicas:
                if replica.context_tokens is not None and (told is None or replica.context_tokens < told):
                    told = replica.context_tokens
        return told

    def healthy(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.healthy]

    def untried(self, tried: Container[Replica]) -> list[Replica]:
        """Those that a request may go to which has been at these. While others are there, one that starts is not, if it
        has its present share of their load."""
        usable = [replica for replica in self.replicas if replica.healthy and replica not in tried]
        return within_share(usable) if self.starts else usable

    def first_pool(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        """Those of them that are in the first pool which has any."""
        if not self.pools or not replicas:
            return replicas
        order = [self.pools[replica][0] for replica in replicas]
        first = min(order)
        return [replica for replica, place in zip(replicas, order, strict=True) if place == first]

    def pool_of(self, replica: Replica) -> str:
        """The name of a replica's pool; empty where there are none."""
        return self.pools[replica][1] if replica in self.pools else ""


def within_share(replicas: list[Replica]) -> list[Replica]:
    """All but those that start and have their share of requests already: so much of what the others have on average.

    One that is idle may always have one. Whatever strategy chooses among the rest, a cold replica is not flooded. Where
    most of them start nobody is left out: the few others could not carry it.
    """
    full = [replica.in_flight for replica in replicas if replica.share >= 1]
    if 2 * len(full) < len(replicas):
        return replicas
    mean = sum(full) / len(full)
    return [replica for replica in replicas if replica.share >= 1 or replica.in_flight < max(1.0, replica.share * mean)]
