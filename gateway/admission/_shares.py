"""How what a model's replicas can take is divided among the gateway workers that use them.

A worker's part follows what its requests would be given were there one queue for all: first every tenant's part of the
fleet, by bands, weights and demand, then each tenant's part to the workers where it asks, in proportion. So a tenant
gets no more by asking many workers, and no less by asking one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec
import xxhash

LOWER_BANDS_FLOOR = 0.05
"""As in the queue: what lower bands that ask get even where higher ones could use it all."""

Demand = Mapping[str, tuple[float, int, float]]
"""What tenants run and wait for at one worker, "<priority> <tenant>" -> weight, sequences, cost of those that run."""


class Share(msgspec.Struct, frozen=True, gc=False):
    """A worker's part of one replica. `extra` sequences are for tenants below their share; `lane`: a prompt larger than
    all workers together may have read at once may be sent, by one worker at a time."""

    sequences: int
    extra: int
    prefill_tokens: int
    kv_tokens: int | None
    lane: bool


def divided(limit: int, demands: Mapping[str, Demand]) -> dict[str, float]:
    """Of `limit` sequences what each worker gets, as fractions of a sequence. The sum is at most `limit`.

    What nobody asks for is spread by half over those who ask, so that a request that comes finds room; the other half
    stays free for the first worker that asks for more. One worker alone gets everything.
    """
    if len(demands) == 1:
        return dict.fromkeys(demands, float(limit))
    parts = dict.fromkeys(demands, 0.0)
    left = float(limit)
    bands: defaultdict[int, dict[str, tuple[float, int]]] = defaultdict(dict)
    for demand in demands.values():
        for name, (weight, sequences, _) in demand.items():
            band = bands[int(name.partition(" ")[0])]
            _, before = band.get(name, (weight, 0))
            band[name] = (weight, before + sequences)
    asked = {priority: sum(sequences for _, sequences in band.values()) for priority, band in bands.items()}
    lower = sum(asked.values())
    for priority in sorted(bands, reverse=True):
        lower -= asked[priority]
        given = filled(left - min(float(lower), LOWER_BANDS_FLOOR * left), bands[priority])
        for worker, demand in demands.items():
            for name, (_, sequences, _) in demand.items():
                if sequences and name in given:
                    parts[worker] += given[name] * sequences / bands[priority][name][1]
        left -= sum(given.values())
    asking = [worker for worker, part in parts.items() if part]
    for worker in asking:
        parts[worker] += max(0.0, left) / 2 / len(asking)
    return parts


def filled(room: float, asks: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """`room` by weights among those who ask, to none more than it asks for: who needs less leaves it to the others."""
    given: dict[str, float] = {}
    weights = sum(weight for weight, _ in asks.values())
    # By how soon each is satisfied while all fill at the rate of their weights.
    for name in sorted(asks, key=lambda name: asks[name][1] / asks[name][0]):
        weight, sequences = asks[name]
        given[name] = min(float(sequences), max(0.0, room) * weight / weights) if weights > 0 else 0.0
        room -= given[name]
        weights -= weight
    return given


def whole(parts: Mapping[str, float], replica: str) -> dict[str, int]:
    """`parts` in whole sequences with the same sum, rounded down: what is lost by rounding goes to those who lost most,
    among equals to others at each replica."""
    shares = {worker: int(part) for worker, part in parts.items()}
    left = int(sum(parts.values()) + 1e-6) - sum(shares.values())

    def by_loss(worker: str) -> tuple[float, int]:
        return round(shares[worker] - parts[worker], 6), xxhash.xxh64_intdigest(f"{replica} {worker}".encode())

    for worker in sorted(parts, key=by_loss)[:left]:
        shares[worker] += 1
    return shares


def targets(me: str, limits: Mapping[str, int], demands: Mapping[str, Demand]) -> dict[str, int]:
    """The sequences that `me` should have at each replica, whose fleet-wide ones `limits` are. At each replica the
    targets of all workers have a sum of at most the limit."""
    total = sum(limits.values())
    if not total:
        return dict.fromkeys(limits, 0)
    fractions = {worker: part / total for worker, part in divided(total, demands).items()}
    return {
        replica: whole({worker: fraction * limit for worker, fraction in fractions.items()}, replica)[me]
        for replica, limit in limits.items()
    }
