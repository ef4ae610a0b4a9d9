"""Where a request goes: to the replica that is expected to give its first token soonest.

One `Router` serves a model in a worker. Pure: time is passed in. What it decides it books at once, so that the next
decision knows of it, and each booking is released at its first token (its prompt has been read) and at its end.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol

import xxhash

from ._booking import Booking, Expected, Query, Target, Told
from ._elsewhere import Beside
from ._index import PrefixIndex
from ._load import LEARNS_FROM_TOKENS, Loads
from ._prefix import BLOCK_BYTES
from ._prospects import Prospects

LEARNS_PART = 0.02
MISSED_LEAST = 256
"""An engine rounds what it has cached down to its blocks; predictions of fewer tokens say nothing of the index."""
TRUTH_PART = 0.125
TRUTH_LEAST = 0.5
"""Of what it should hold a replica had less, on average: what it used longest ago it has not got."""
UNSEEN_PART = 0.05


class Strategy(Protocol):
    """Which of the targets a request goes to, by its place among them. Asked only where there are several."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int: ...


class Prefix:
    """The default: the least expected time to the first token."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        return router.soonest(query, targets)


class Router:
    """See the module. Other workers' and gateways' part comes by `note_elsewhere` and `beside`."""

    def __init__(self, loads: Loads | None = None, strategy: Strategy | None = None) -> None:
        """`loads` are those of all models' requests; `strategy` is asked where to."""
        self.strategy = strategy or Prefix()
        self.loads = loads or Loads()
        self.on_placed: Callable[[str, Sequence[int]], None] = _nobody
        """Hears which replica each prompt goes to, and its blocks."""
        self._prospects = Prospects(self.loads)
        self._presumed: list[tuple[int, int, Booking]] = []
        self._booked = 0

    @property
    def index(self) -> PrefixIndex:
        """Which replica holds which blocks."""
        return self._prospects.index

    @property
    def unseen_warm(self) -> float:
        """How much of prompts new here their rendezvous replica did hold, from other gateways."""
        return self._prospects.unseen_warm

    @property
    def token_bytes(self) -> float:
        """Bytes of a prompt's text for each of its tokens, as measured."""
        return self._prospects.token_bytes

    def inherit(self, before: Router) -> None:
        """It takes over what that one knew of prompts, before it has decided anything."""
        self._prospects.inherit(before._prospects)

    def expect(self, query: Query, targets: Sequence[Target], now_ms: int) -> list[Expected]:
        """What is expected at each of the targets, in their order."""
        self._presume_read(now_ms)
        prospects = self._prospects
        steps = prospects.index.steps(query.chain.blocks)
        return [prospects.expected(query, steps, prospects.site(target.name))[0] for target in targets]

    def choose(self, query: Query, targets: Sequence[Target], now_ms: int) -> Booking:
        """Books the request at one of the targets, of which there is at least one."""
        self._presume_read(now_ms)
        prospects, blocks = self._prospects, query.chain.blocks
        prospects.forget_look()
        index = 0 if len(targets) == 1 else self.strategy.pick(self, query, targets, now_ms)
        site = prospects.site(targets[index].name)
        steps, hot = prospects.look(blocks, len(targets))
        expected, cached_bytes = prospects.expected(query, steps, site)
        booking = Booking(
            query,
            index,
            site,
            expected,
            rivals=prospects.rivals(steps, site) if len(targets) > 1 else (),
            cached_bytes=cached_bytes,
            unseen=not steps or steps[0][0] <= hot,
            at_ms=now_ms,
        )
        prospects.running += 1
        site.load.add(booking.work, 1)
        if query.prompt_tokens:
            prospects.index.note(blocks, site.name, known=steps[0][0] if steps else 0)
            prospects.heat.count(blocks)
            self.on_placed(site.name, blocks)
        if not query.streams:
            self._booked += 1
            heapq.heappush(self._presumed, (now_ms + expected.ttft_ms, self._booked, booking))
        return booking

    def first_token(self, booking: Booking, now_ms: int) -> None:
        """Its prompt has been read."""
        if not booking.reads:
            return
        _has_read(booking)
        told = booking.site.told
        told.first_tokens += 1
        told.expected_ms += booking.expected.ttft_ms
        told.real_ms += now_ms - booking.at_ms
        uncached = booking.query.prompt_tokens - booking.expected.cached_tokens
        learns = booking.clear and uncached >= LEARNS_FROM_TOKENS and now_ms > booking.at_ms
        if learns and booking.load.learn(booking.work, now_ms - booking.at_ms):
            self.loads.even_out()

    def answered(self, booking: Booking, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """What the engine has told of it at its end. Does not release it: see `ended`."""
        query, site, prospects = booking.query, booking.site, self._prospects
        text_bytes = len(query.chain.text)
        if not input_tokens or not query.prompt_tokens or text_bytes < BLOCK_BYTES:
            return
        prospects.token_bytes += LEARNS_PART * (text_bytes / input_tokens - prospects.token_bytes)
        prospects.ends.note(query.chain, site.name, output_tokens)
        prospects.index.note((), site.name, unknown=int(output_tokens * prospects.token_bytes) // BLOCK_BYTES)
        predicted = input_tokens * booking.cached_bytes // text_bytes
        told = site.told
        told.answers += 1
        told.predicted_tokens += predicted
        told.reported_tokens += cached_tokens
        told.error_tokens += abs(predicted - cached_tokens)
        site.tells = site.tells or cached_tokens > 0
        if booking.unseen:
            found = max(0.0, cached_tokens - predicted) / max(1, input_tokens - predicted)
            prospects.unseen_warm += UNSEEN_PART * (found - prospects.unseen_warm)
        if predicted >= MISSED_LEAST and site.tells:
            site.truth += TRUTH_PART * (min(1.0, cached_tokens / predicted) - site.truth)
            if site.truth < TRUTH_LEAST:
                site.truth = 1.0
                prospects.index.forget_oldest(site.name)

    def ended(self, booking: Booking) -> None:
        """The engine does nothing more for it; only the first call counts."""
        if booking.reads:
            _has_read(booking)
        if booking.runs:
            booking.runs = False
            booking.load.add(0, -1)
            self._prospects.running -= 1

    def restarted(self, replica: str) -> None:
        """Its engine's cache is empty: the process is new, or was told to forget."""
        self.index.forget(replica)
        self._prospects.site(replica).truth = 1.0

    def capacity(self, replica: str, kv_tokens: int) -> None:
        """Its engine's cache holds so many tokens."""
        self.index.resize(replica, int(kv_tokens * self.token_bytes / BLOCK_BYTES))

    def note_elsewhere(self, blocks: Sequence[int], replica: str) -> None:
        """Another gateway has sent a prompt with these blocks there."""
        self.index.note(blocks, replica)
        self._prospects.heat.count(blocks)

    def beside(self, replica: str, waiting_tokens: int, running: int) -> None:
        """What other gateways have there now."""
        self.loads.of(replica).beside = Beside(waiting_tokens, running)

    def take_told(self) -> dict[str, Told]:
        """How predictions have come true, replica by replica, since this was called last."""
        told = {}
        for name, site in self._prospects.sites.items():
            if site.told.answers or site.told.first_tokens:
                told[name], site.told = site.told, Told()
        return told

    def cached_most(self, query: Query) -> int:
        """How many of its prompt's tokens the replica has that has most of them."""
        steps = self.index.steps(query.chain.blocks)
        return query.prompt_tokens * query.chain.bytes_at(steps[0][0]) // max(1, len(query.chain.text)) if steps else 0

    def running(self, replica: str) -> int:
        """How many requests it has, of all gateways that are known of."""
        load = self.loads.of(replica)
        return load.running + load.beside.running

    def weight(self, block: int, replica: str) -> int:
        """A prefix's preference for a replica, the same for everybody who asks."""
        return xxhash.xxh3_64_intdigest(replica.encode(), block)

    def soonest(self, query: Query, targets: Sequence[Target]) -> int:
        """Where the request costs least, by its place among the targets."""
        return self._prospects.soonest(query, targets)

    def costs_ms(self, query: Query, targets: Sequence[Target]) -> list[float]:
        """What placing the request at each of the targets would cost, in milliseconds: its wait for its first token,
        and what others wait for its prompt to be read."""
        return self._prospects.costs_ms(query, targets)

    def _presume_read(self, now_ms: int) -> None:
        """Of answers that come whole nobody tells when their prompts have been read."""
        presumed = self._presumed
        while presumed and (presumed[0][0] <= now_ms or not presumed[0][2].reads):
            booking = heapq.heappop(presumed)[2]
            if booking.reads:
                _has_read(booking)


def _has_read(booking: Booking) -> None:
    booking.reads = False
    booking.load.add(-booking.work, 0)


def _nobody(replica: str, blocks: Sequence[int]) -> None:
    """Nobody hears of it."""
