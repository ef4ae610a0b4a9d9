"""Whether one engine's events can be believed: numbers without a gap since its process began. Pure."""

from __future__ import annotations

from enum import Enum

SILENT_MS = 30_000
"""A replica that has read prompts for so long without an event has its events elsewhere, or off."""


class Next(Enum):
    """What to do with a batch of a number."""

    TAKE = "take"
    SKIP = "skip"
    """It has been replayed already."""
    REPLAY = "replay"
    """Batches before it are missing."""
    RESET = "reset"
    """It is another process's, whose cache was empty when it began; it may not be its first."""


class EventStream:
    """The numbers of one engine's batches. `trusted`: all that its cache holds is known."""

    def __init__(self) -> None:
        self.expected = 0
        self.trusted = True
        self.gaps = 0
        """Times at which something was missing that could not be had again."""
        self._live_from = 0
        self._read_ms: int | None = None

    def came(self, number: int) -> Next:
        """A batch has come. After `TAKE` it counts as read; after `REPLAY`, which `replayed` or `missed` answers, and
        `RESET`, which `reset` does, it is asked about again."""
        if number > self.expected:
            self._live_from = number
            return Next.REPLAY
        self._read_ms = None
        if number == self.expected:
            self.expected = self._live_from = number + 1
            return Next.TAKE
        return Next.SKIP if number >= self._live_from else Next.RESET

    def replayed(self, next_number: int) -> None:
        """All batches before that one have been read now, live ones that are still to come among them."""
        self.expected = max(self.expected, next_number)

    def missed(self, next_number: int) -> None:
        """What is missing before that one cannot be had."""
        self.expected = next_number
        self.trusted = False
        self.gaps += 1

    def reset(self) -> None:
        """Another process: it has an empty cache and begins with 0."""
        self.expected = self._live_from = 0
        self.trusted = True

    def cleared(self) -> None:
        """The engine says that nothing is cached: what was missing does not matter any more."""
        self.trusted = True

    def answered(self, now_ms: int) -> None:
        """The replica has read a prompt of which a whole block was not cached."""
        if self._read_ms is None:
            self._read_ms = now_ms

    def is_silent(self, now_ms: int) -> bool:
        """Whether there should have been events for long."""
        return self._read_ms is not None and now_ms - self._read_ms >= SILENT_MS
