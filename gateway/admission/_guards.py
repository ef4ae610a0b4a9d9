"""What an engine's own gauges say against giving it more. They are late (seconds) and coarse, so they only ever hold a
limit or lower it, and only where what they say lasts; what is measured here after each dispatch leads.
"""

from __future__ import annotations

from collections import deque

import msgspec

STALE_MS = 25_000
"""A reading so old says nothing of now. One worker reads every ten seconds, the others hear of it up to ten later."""
WAITING_MOST = 8
"""An engine at its knee has prompts waiting in most readings: those that came during the step that runs. In simulations
of an H200 these were 9 at most, as many as P lets be read at once."""
WAITING_PART = 0.1
"""Of the sequences at the engine. On an H200 waiting was 0 to 4 % of them up to the knee, and 40 % past it."""
AFTER_WAITING = 0.9
"""What is left of N where too many wait in two readings, one after the other."""
AFTER_PREEMPTIONS = 0.8
KV_AFTER = 0.9
"""What is left of N and of K where answers were put off for want of cache since the last reading."""
KV_REGAINED = 1.05
"""K comes back by so much with each reading without."""
KV_LEAST = 0.5
KV_FULL = 0.95
"""With so much of the cache in use N does not grow."""
SHARED_MOST = 0.9
"""Of prompts, what they are believed to share at most, whatever the gauge says."""
COUNTED_WITHIN_MS = 1000
COUNTED = 32
"""Counts of what is resident are kept for so many seconds, to be compared with a reading of that time."""


class Gauges(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An engine's own, read at `read_ms`: `sequences` of all gateways at it, of which `waiting` are in no step;
    `kv_usage` is the used part of its KV cache, which holds `kv_tokens` (0: it does not say); `preemptions` since it
    started."""

    read_ms: int
    sequences: int
    waiting: int
    kv_usage: float
    kv_tokens: int
    preemptions: int


class Guards:
    """One replica's; no clock and no I/O."""

    def __init__(self) -> None:
        self.kv_part = 1.0
        """Of K, what preemptions have left."""
        self.shared = 0.0
        """Of the prompt tokens counted as resident, the part that is there already: prompts that begin alike share
        their blocks."""
        self._last: Gauges | None = None
        self._waited = False
        self._counted: deque[tuple[int, int, int]] = deque(maxlen=COUNTED)

    def counted(self, prompt_tokens: int, answer_tokens: int, now_ms: int) -> None:
        """So many tokens of this gateway's should be in the cache now, if nothing is shared."""
        self._counted.append((now_ms, prompt_tokens, answer_tokens))

    def observe(self, gauges: Gauges, now_ms: int) -> float:
        """What is left of N, as a part of it: 1 where nothing speaks against it. A reading counts once, and not at all
        where it is stale."""
        last = self._last
        if now_ms - gauges.read_ms > STALE_MS or (last is not None and gauges.read_ms <= last.read_ms):
            return 1.0
        self._last = gauges
        self._compare(gauges)
        if last is not None and gauges.preemptions > last.preemptions:
            self._waited = False
            self.kv_part = max(KV_LEAST, self.kv_part * KV_AFTER)
            return AFTER_PREEMPTIONS
        self.kv_part = min(1.0, self.kv_part * KV_REGAINED)
        waited, self._waited = self._waited, _too_many_wait(gauges)
        if waited and self._waited:
            self._waited = False
            return AFTER_WAITING
        return 1.0

    def hold(self, now_ms: int) -> bool:
        """Whether N had better not grow."""
        last = self._last
        if last is None or now_ms - last.read_ms > STALE_MS:
            return False
        return last.kv_usage >= KV_FULL or _too_many_wait(last)

    def _compare(self, gauges: Gauges) -> None:
        """What was counted as resident when this was read, with what the cache held. Believed at once where it held
        more, by half where less, and not where it was full: what is missing then was put off. Other gateways' load
        makes it too much, which is on the safe side."""
        for at_ms, prompt_tokens, answer_tokens in self._counted:
            if abs(at_ms - gauges.read_ms) <= COUNTED_WITHIN_MS and prompt_tokens and gauges.kv_tokens:
                there = (gauges.kv_usage * gauges.kv_tokens - answer_tokens) / prompt_tokens
                shared = min(SHARED_MOST, max(0.0, 1 - there))
                if shared < self.shared:
                    self.shared = shared
                elif gauges.kv_usage < KV_FULL:
                    self.shared = (self.shared + shared) / 2
                return


def _too_many_wait(gauges: Gauges) -> bool:
    return gauges.waiting > max(WAITING_MOST, WAITING_PART * gauges.sequences)
