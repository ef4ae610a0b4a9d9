"""What a GPU's time costs: spans in which a replica was there, to the second, in nano-dollars that add up.

The cost of a part of a span is a difference of whole nano-dollars since the span's start. So parts add up to the whole
to the nano-dollar, wherever they are cut, and no hour is charged twice by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from ._quote import SECONDS_PER_HOUR


class GpuSpan(Struct, frozen=True, kw_only=True):
    """A replica was there from `start_s` until `end_s` (Unix seconds), at one price for all its GPUs, for these models.

    `sku`, `count` and `purchase` say what was paid for; they are empty where only the price is known.
    """

    replica: str
    models: tuple[str, ...]
    start_s: int
    end_s: int
    nanousd_per_hour: int
    sku: str = ""
    count: int = 1
    purchase: str = ""

    def seconds(self, start_s: int, end_s: int) -> int:
        """How long of [start, end) it was there."""
        return max(0, min(end_s, self.end_s) - max(start_s, self.start_s))

    def cost_nanousd(self, start_s: int, end_s: int) -> int:
        """What its part in [start, end) costs."""
        first, last = max(start_s, self.start_s), min(end_s, self.end_s)
        return self._until(last) - self._until(first) if first < last else 0

    def _until(self, at_s: int) -> int:
        return (at_s - self.start_s) * self.nanousd_per_hour // SECONDS_PER_HOUR


def cost_nanousd(spans: Iterable[GpuSpan], start_s: int, end_s: int) -> int:
    """What these GPUs cost in [start, end)."""
    return sum(span.cost_nanousd(start_s, end_s) for span in spans)


def gpu_seconds(spans: Iterable[GpuSpan], start_s: int, end_s: int) -> int:
    """How long GPUs were there in [start, end), each counted."""
    return sum(span.count * span.seconds(start_s, end_s) for span in spans)
