"""What a replica has to do before it can read one prompt more, and how fast it reads: learnt from its first tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ._elsewhere import Beside
from ._news import Held

PREFILL_TOKENS_PER_S = 20_000.0
"""Of a replica of which nothing is known yet, where nothing is known of any other either."""
SAMPLES_KEPT = 64
SAMPLES_LEAST = 8
LEARNS_FROM_TOKENS = 512
"""Shorter prompts' first tokens tell of steps and queues, not of the prefill rate."""
RATE_PART = 0.9
"""The rate is the one that so many of the last prompts did not exceed: the others had waited for something."""
AHEAD_PART = 0.25
"""Who had more than this part of its own prompt ahead of it says nothing of the rate."""
ATTENTION_TOKENS = 45_000
"""From this context on attention takes as long as all else: 20.7 ms and 0.92 ms per 1,000 tokens (of 1,000) of prefill
measured on an H200 with a model of 8 billion parameters."""
HEARD_LATE_MS = 100.0
"""How old what other gateways have there is while it counts, on average: it takes some 50 ms to be heard and counts for
100. So much of what waited has been read by then. Without this eight gateways take each other's prompts for a queue
long after they were read: simulated chats lose 3 % of their cached share, and p99 TTFT is 82 ms instead of 58."""
CACHED_TOKENS = 12
"""So many take as long as one that is not cached: 1.9 ms per 1,000 to hash, find and reference, where reading them
takes 22.7 (H200, as above)."""
RUNNING_MS = 2.0
"""What one running answer counts for: its tokens are made in the same steps as the prompt is read."""
PRICE_LEAST = 1.25
PRICE_STREAMS = 12
"""Reading a prompt costs its own time and a quarter, and as much again for every so many streams that run there, which
have no token meanwhile; to wait costs nobody else anything. So an idle replica takes a copy of a prefix gladly, a busy
one where it spares more than it takes. Chosen on the workloads of `docs/routing.md`, "Measured": below 8 a burst of one
new prefix stays on too few replicas, above 24 prefixes are copied that need not be."""


_NOTHING = Beside(0, 0)


class Load:
    """One replica's, whichever model's requests they are. `waiting` is the work booked there that has not come to its
    first token, in tokens of a short prompt; `running` are the requests that have not ended."""

    __slots__ = ("_beside", "_rates", "_unsorted", "ms_per_token", "price_ms", "rate", "running", "wait_ms", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.running = 0
        self.wait_ms = 0.0
        """How long until it can begin to read another prompt."""
        self._beside = _NOTHING
        self._unsorted = 0
        self.rate: float | None = None
        """Tokens a second; None: not known yet."""
        self.ms_per_token = 1000 / PREFILL_TOKENS_PER_S
        self.price_ms = self.ms_per_token * PRICE_LEAST
        """What reading one token there costs, with what it holds up."""
        self._rates: deque[float] = deque(maxlen=SAMPLES_KEPT)

    @property
    def beside(self) -> Beside:
        """What other gateways have there."""
        return self._beside

    @beside.setter
    def beside(self, beside: Beside) -> None:
        self._beside = beside
        self.add(0, 0)

    def add(self, waiting: int, running: int) -> None:
        """So much more is booked there, or less."""
        self.waiting += waiting
        self.running += running
        streams = self.running + self._beside.running
        self.wait_ms = self.waiting * self.ms_per_token + streams * RUNNING_MS
        if self._beside.waiting_tokens:
            self.wait_ms += max(0.0, self._beside.waiting_tokens * self.ms_per_token - HEARD_LATE_MS)
        self.price_ms = self.ms_per_token * (PRICE_LEAST + streams / PRICE_STREAMS)

    def learn(self, tokens: int, took_ms: int) -> bool:
        """So much work, with little ahead of it, took so long to its first token. Whether the rate is another now."""
        self._rates.append(tokens * 1000 / took_ms)
        self._unsorted += 1
        if self._unsorted < SAMPLES_LEAST:
            return False
        self._unsorted = 0
        ordered = sorted(self._rates)
        self.rate = ordered[int(RATE_PART * (len(ordered) - 1))]
        self.assume(self.rate)
        return True

    def assume(self, rate: float) -> None:
        """It reads so many tokens a second."""
        self.ms_per_token = 1000 / rate
        self.add(0, 0)


class Loads:
    """All replicas', by name: those of one worker, whatever models they serve."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self.on_said: Callable[[str, int], None] = _nobody
        """Hears how many requests an engine says wait in it."""

    def of(self, name: str) -> Load:
        """A replica's; of a new one it is taken to be as fast as the others are."""
        load = self._loads.get(name)
        if load is None:
            load = self._loads[name] = Load()
            self.even_out()
        return load

    def even_out(self) -> None:
        """Replicas of which nothing is known yet are taken to be as fast as the others are: who is thought slow would
        get nothing to be learnt from."""
        known = [load.rate for load in self._loads.values() if load.rate is not None]
        if known and len(known) < len(self._loads):
            mean = sum(known) / len(known)
            for load in self._loads.values():
                if load.rate is None:
                    load.assume(mean)

    def said(self, name: str, waiting: int) -> None:
        """A replica's engine has said how many requests wait in it."""
        self.on_said(name, waiting)

    def held(self) -> list[Held]:
        """What this worker has in flight, for others to know: replicas that have nothing are left out."""
        return [
            Held(name, load.waiting, load.running)
            for name, load in self._loads.items()
            if load.waiting > 0 or load.running > 0
        ]

    def forget(self, name: str) -> None:
        """It is gone for good."""
        self._loads.pop(name, None)


def _nobody(replica: str, waiting: int) -> None:
    """Nobody hears of it."""


def work(uncached: int, prompt: int) -> int:
    """What reading the last `uncached` tokens of a prompt costs, in tokens of a short one: each looks back at all
    before it, and those too have to be found."""
    return uncached + (prompt - uncached) // CACHED_TOKENS + uncached * (prompt - uncached // 2) // ATTENTION_TOKENS
