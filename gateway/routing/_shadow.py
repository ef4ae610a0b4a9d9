"""A strategy that is not used, scored beside the one that is: where it would have gone, and what it would have found.

It has an index and loads of its own, as if all requests had gone its way; how fast replicas read it is told. Both sides
count this worker's own requests only, so that they are comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ._booking import Booking, Query, Target
from ._load import RUNNING_MS, Loads
from ._router import Router, Strategy


class ShadowCounts(Struct):
    """Sums over the requests that had a choice. Times are expected ones, to the first token, in milliseconds."""

    requests: int = 0
    elsewhere: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cached_tokens_shadow: int = 0
    ttft_ms: int = 0
    ttft_ms_shadow: int = 0


class ShadowedRouter(Router):
    """A router with another one beside it that decides nothing."""

    def __init__(self, loads: Loads | None = None, strategy: Strategy | None = None, *, shadow: Strategy) -> None:
        super().__init__(loads, strategy)
        self._beside = Router(Loads(), shadow)
        self._would: dict[Booking, Booking] = {}
        self._last: dict[Booking, Booking] = {}
        """The one that has ended last: what its engine told comes right after its end."""
        self._counts = ShadowCounts()

    def counts(self) -> ShadowCounts:
        """What has been seen since this was called last."""
        counts, self._counts = self._counts, ShadowCounts()
        return counts

    def choose(self, query: Query, targets: Sequence[Target], now_ms: int) -> Booking:
        booking = super().choose(query, targets, now_ms)
        for target in targets:
            self._beside.loads.of(target.name).ms_per_token = self.loads.of(target.name).ms_per_token
        would = self._would[booking] = self._beside.choose(query, targets, now_ms)
        if len(targets) > 1:
            counts, elsewhere = self._counts, booking.load.beside
            counts.requests += 1
            counts.elsewhere += would.index != booking.index
            counts.input_tokens += query.prompt_tokens
            counts.cached_tokens += booking.expected.cached_tokens
            counts.cached_tokens_shadow += would.expected.cached_tokens
            others_ms = elsewhere.waiting_tokens * booking.load.ms_per_token + elsewhere.running * RUNNING_MS
            counts.ttft_ms += max(0, booking.expected.ttft_ms - int(others_ms))
            counts.ttft_ms_shadow += would.expected.ttft_ms
        return booking

    def first_token(self, booking: Booking, now_ms: int) -> None:
        super().first_token(booking, now_ms)
        if (would := self._would.get(booking)) is not None:
            self._beside.first_token(would, now_ms)

    def answered(self, booking: Booking, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        super().answered(booking, input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)
        if (would := self._would.get(booking) or self._last.get(booking)) is not None:
            found = input_tokens * would.cached_bytes // max(1, len(would.query.chain.text))
            self._beside.answered(would, input_tokens=input_tokens, cached_tokens=found, output_tokens=output_tokens)

    def ended(self, booking: Booking) -> None:
        super().ended(booking)
        if (would := self._would.pop(booking, None)) is not None:
            self._beside.ended(would)
            self._last = {booking: would}

    def restarted(self, replica: str) -> None:
        super().restarted(replica)
        self._beside.restarted(replica)

    def capacity(self, replica: str, kv_tokens: int) -> None:
        super().capacity(replica, kv_tokens)
        self._beside.capacity(replica, kv_tokens)
