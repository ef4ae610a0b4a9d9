"""What one request asks of a replica, predicted, and what it is told where it cannot be served in time."""

from __future__ import annotations

import msgspec
from msgspec.structs import force_setattr


class Work(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request asks of a replica, as predicted before it runs. Sizes are tokens, times milliseconds.

    `id` is the request's. `band` is its priority: higher goes first. `weight` is the tenant's share within its band.
    `input_tokens` is the whole prompt, of which `cached_tokens` are predicted to be in a replica's cache; the others,
    `uncached_tokens`, it has to prefill. `output_tokens` is the predicted answer. `retry`: the client has tried before.
    `deadline_ms` is the latest time at which it may be dispatched. `prefix` is the first block of its prefix chain, 0
    where there is none. `max_share` is the part of the replicas' sequences that its tenant may hold at most, even where
    the rest is idle. With `shortest_first` its tenant's requests of this band go by size, not by arrival.
    """

    id: str
    tenant: str
    band: int
    weight: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    retry: bool
    arrived_ms: int
    deadline_ms: int
    prefix: int = 0
    max_share: float = 1.0
    shortest_first: bool = False
    uncached_tokens: int = 0

    def __post_init__(self) -> None:
        # Asked for a dozen times for each request.
        force_setattr(self, "uncached_tokens", max(0, self.input_tokens - self.cached_tokens))


class Turned(msgspec.Struct, frozen=True, gc=False):
    """It would wait past its deadline, or has. `retry_after_ms` is when it would be served, spread over clients."""

    predicted_wait_ms: int
    retry_after_ms: int


class Cost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What tokens weigh in a tenant's counter, in uncached input tokens: what the live price charges for them,
    0.28 of an output token for uncached input and 0.1 for cached."""

    input: float = 1.0
    cached: float = 0.1 / 0.28
    output: float = 1.0 / 0.28

    def of(self, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """The cost of a whole prompt of `input_tokens`, `cached_tokens` of them cached, and its answer."""
        cached = min(cached_tokens, input_tokens)
        return (input_tokens - cached) * self.input + cached * self.cached + output_tokens * self.output


class BandLoad(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One band of a queue: requests that wait and run, what both are predicted to cost, and how many tenants are
    remembered."""

    waiting: int
    running: int
    waiting_cost: float
    running_cost: float
    tenants: int
