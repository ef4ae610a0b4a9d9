"""Where a request goes: to the replica that is expected to give its first token soonest.

One `Router` serves a model in a worker. Pure: time is passed in. What it decides it books at once, so that the next
decision knows of it, and each booking is released at its first token (its prompt has been read) and at its end.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import xxhash
from msgspec import Struct

from ._elsewhere import Beside
from ._index import PrefixIndex, Steps, depth_of
from ._load import AHEAD_PART, LEARNS_FROM_TOKENS, Load, Loads, work
from ._prefix import BLOCK_BYTES, Chain

TOKEN_BYTES = 4.0
"""Of English text, until prompts have told."""
TOKEN_BYTES_PART = 0.02


class Target(Protocol):
    """What placement needs to know about a replica."""

    @property
    def name(self) -> str: ...


class Query(Struct, frozen=True, kw_only=True, gc=False):
    """A request to be placed. `prompt_tokens` is what its prompt is taken for, 0 where no engine reads it; `streams`:
    its first bytes come with its first token, not at its end. `session` is what says that it belongs together with
    others, empty: nothing."""

    chain: Chain
    prompt_tokens: int
    streams: bool = True
    session: str = ""


class Expected(Struct, frozen=True, kw_only=True):
    """What is expected of a request at one replica: how much of its prompt is cached there, uncached tokens of others
    that come before it, requests that run there, and when its first token comes, in milliseconds from now."""

    replica: str
    cached_tokens: int
    waiting_tokens: int
    running: int
    ttft_ms: int


class Booking:
    """One request at one replica, from the decision on. `index` is its place among the targets it was chosen from,
    `cached_bytes` how much of the chain's text is expected to be cached there."""

    __slots__ = (
        "at_ms",
        "cached_bytes",
        "clear",
        "expected",
        "index",
        "load",
        "query",
        "reads",
        "replica",
        "runs",
        "work",
    )

    def __init__(
        self, query: Query, index: int, *, cached_bytes: int, expected: Expected, load: Load, work: int, at_ms: int
    ) -> None:
        self.query = query
        self.index = index
        self.replica = expected.replica
        self.cached_bytes = cached_bytes
        self.expected = expected
        self.load = load
        self.work = work
        self.at_ms = at_ms
        self.reads = self.runs = True
        self.clear = load.waiting <= AHEAD_PART * work


class Strategy(Protocol):
    """Which of the targets a request goes to, by its place among them. Asked only where there are several."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int: ...


class Prefix:
    """The default: the least expected time to the first token."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        costs = router.costs_ms(query, targets)
        least = min(costs)
        tied = [index for index, cost in enumerate(costs) if cost <= least]
        if len(tied) == 1:
            return tied[0]
        block = query.chain.blocks[0]
        return max(tied, key=lambda index: router.weight(block, targets[index].name))


class Router:
    """See the module. Other workers' and gateways' part comes by `note_elsewhere` and `beside`."""

    def __init__(self, loads: Loads | None = None, strategy: Strategy | None = None) -> None:
        """`loads` are those of all models' requests; `strategy` is asked where to."""
        self.strategy = strategy or Prefix()
        self.index = PrefixIndex()
        self.loads = loads or Loads()
        self.token_bytes = TOKEN_BYTES
        self.on_placed: Callable[[str, Sequence[int]], None] = _nobody
        """Hears which replica each prompt goes to, and its blocks."""
        self._presumed: list[tuple[int, int, Booking]] = []
        self._booked = 0

    def expect(self, query: Query, targets: Sequence[Target], now_ms: int) -> list[Expected]:
        """What is expected at each of the targets, in their order."""
        self._presume_read(now_ms)
        steps = self.index.steps(query.chain.blocks)
        return [self._expected(query, steps, target.name) for target in targets]

    def choose(self, query: Query, targets: Sequence[Target], now_ms: int) -> Booking:
        """Books the request at one of the targets, of which there is at least one."""
        self._presume_read(now_ms)
        index = 0 if len(targets) == 1 else self.strategy.pick(self, query, targets, now_ms)
        name, chain = targets[index].name, query.chain
        steps = self.index.steps(chain.blocks)
        cached_bytes = chain.bytes_at(depth_of(self.index.mask(name), steps))
        expected = self._expected(query, steps, name)
        load = self.loads.of(name)
        uncached = query.prompt_tokens - expected.cached_tokens
        booking = Booking(
            query,
            index,
            cached_bytes=cached_bytes,
            expected=expected,
            load=load,
            work=work(uncached, query.prompt_tokens),
            at_ms=now_ms,
        )
        load.waiting += booking.work
        load.running += 1
        if query.prompt_tokens:
            self.index.note(chain.blocks, name)
            self.on_placed(name, chain.blocks)
        if not query.streams:
            self._booked += 1
            heapq.heappush(self._presumed, (now_ms + expected.ttft_ms, self._booked, booking))
        return booking

    def first_token(self, booking: Booking, now_ms: int) -> None:
        """Its prompt has been read."""
        if not booking.reads:
            return
        self._has_read(booking)
        uncached = booking.query.prompt_tokens - booking.expected.cached_tokens
        if booking.clear and uncached >= LEARNS_FROM_TOKENS and now_ms > booking.at_ms:
            booking.load.learn(booking.work, now_ms - booking.at_ms)

    def answered(self, booking: Booking, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """What the engine has told of it at its end. Does not release it: see `ended`."""
        text_bytes = len(booking.query.chain.text)
        if input_tokens and text_bytes >= BLOCK_BYTES:
            self.token_bytes += TOKEN_BYTES_PART * (text_bytes / input_tokens - self.token_bytes)

    def ended(self, booking: Booking) -> None:
        """The engine does nothing more for it; only the first call counts."""
        if booking.reads:
            self._has_read(booking)
        if booking.runs:
            booking.runs = False
            booking.load.running -= 1

    def restarted(self, replica: str) -> None:
        """Its engine's cache is empty: the process is new, or was told to forget."""
        self.index.forget(replica)

    def capacity(self, replica: str, kv_tokens: int) -> None:
        """Its engine's cache holds so many tokens."""
        self.index.resize(replica, int(kv_tokens * self.token_bytes / BLOCK_BYTES))

    def note_elsewhere(self, blocks: Sequence[int], replica: str) -> None:
        """Another gateway has sent a prompt with these blocks there."""
        self.index.note(blocks, replica)

    def beside(self, replica: str, waiting_tokens: int, running: int) -> None:
        """What other gateways have there now."""
        self.loads.of(replica).beside = Beside(waiting_tokens, running)

    def costs_ms(self, query: Query, targets: Sequence[Target]) -> list[float]:
        """What placing the request at each of the targets would cost, in milliseconds of its time to first token."""
        prompt, chain = query.prompt_tokens, query.chain
        steps, of, mask = self.index.steps(chain.blocks), self.loads.of, self.index.mask
        text_bytes = max(1, len(chain.text))
        whole = work(prompt, prompt)
        costs = []
        for target in targets:
            name = target.name
            load = of(name)
            own = whole
            if steps and (depth := depth_of(mask(name), steps)):
                own = work(max(1, prompt - prompt * chain.bytes_at(depth) // text_bytes), prompt)
            costs.append(load.wait_ms() + own * load.ms_per_token)
        return costs

    def cached_most(self, query: Query) -> int:
        """How many of its prompt's tokens the replica has that has most of them."""
        steps = self.index.steps(query.chain.blocks)
        return query.prompt_tokens * query.chain.bytes_at(steps[0][0]) // max(1, len(query.chain.text)) if steps else 0

    def running(self, replica: str) -> int:
        """How many requests it has, of all gateways that are known of."""
        load = self.loads.of(replica)
        return load.running + load.beside.running

    @staticmethod
    def weight(block: int, replica: str) -> int:
        """A prefix's preference for a replica, the same for everybody who asks."""
        return _weight(block, replica)

    def _expected(self, query: Query, steps: Steps, name: str) -> Expected:
        chain, prompt = query.chain, query.prompt_tokens
        load, depth = self.loads.of(name), depth_of(self.index.mask(name), steps)
        cached = max(0, min(prompt - 1, prompt * chain.bytes_at(depth) // max(1, len(chain.text))))
        return Expected(
            replica=name,
            cached_tokens=cached,
            waiting_tokens=int(load.waiting) + load.beside.waiting_tokens,
            running=load.running + load.beside.running,
            ttft_ms=int(load.wait_ms() + work(prompt - cached, prompt) * load.ms_per_token),
        )

    def _has_read(self, booking: Booking) -> None:
        booking.reads = False
        booking.load.waiting -= booking.work

    def _presume_read(self, now_ms: int) -> None:
        """Of answers that come whole nobody tells when their prompts have been read."""
        presumed = self._presumed
        while presumed and (presumed[0][0] <= now_ms or not presumed[0][2].reads):
            booking = heapq.heappop(presumed)[2]
            if booking.reads:
                self._has_read(booking)


class Busy(Target, Protocol):
    """A replica that knows how many requests it has."""

    @property
    def in_flight(self) -> int: ...


B = TypeVar("B", bound=Busy)


def least_loaded(block: int, targets: Sequence[B]) -> B:
    """The target with the fewest requests; of several the one that a prompt with that first block prefers."""
    least = min([target.in_flight for target in targets])
    tied = [target for target in targets if target.in_flight == least]
    return tied[0] if len(tied) == 1 else max(tied, key=lambda target: _weight(block, target.name))


def _nobody(replica: str, blocks: Sequence[int]) -> None:
    """Nobody hears of it."""


def _weight(block: int, name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(), block)
