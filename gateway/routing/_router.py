"""Where a request goes: to the replica that is expected to give its first token soonest.

One `Router` serves a model in a worker. Pure: time is passed in. What it decides it books at once, so that the next
decision knows of it, and each booking is released at its first token (its prompt has been read) and at its end.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import ceil
from typing import Protocol

import xxhash
from msgspec import Struct

from ._elsewhere import Beside
from ._ends import Ends
from ._heat import Heat
from ._index import Held, PrefixIndex, Steps, depth_of
from ._load import AHEAD_PART, LEARNS_FROM_TOKENS, Load, Loads, work
from ._prefix import BLOCK_BYTES, Chain

TOKEN_BYTES = 4.0
"""Of English text, until prompts have told."""
LEARNS_PART = 0.02
MISSED_LEAST = 256
"""An engine rounds what it has cached down to its blocks; predictions of fewer tokens say nothing of the index."""
TRUTH_PART = 0.125
TRUTH_LEAST = 0.5
"""Of what it should hold a replica had less, on average: what it used longest ago it has not got."""
UNSEEN_WARM = 0.1
"""How much of a prompt that is new here its rendezvous replica is taken to hold, from other gateways, until it has been
seen how often that is so. Enough to tell replicas apart that are about as busy; more would fill one cache and leave
another empty."""
UNSEEN_PART = 0.05
COPIES_SPARE = 1.1
"""Replicas for a hot prefix, over those whose whole time it would take."""
MEMBERS_USED = 64
"""How often the replicas of a hot prefix are looked up before they are worked out again."""

FEW_HOLDERS = 8
"""Of more it is not looked up where conversations ended: they have a common beginning and nothing else."""

_hash = xxhash.xxh3_64_intdigest
_SPREAD = 0x9E3779B97F4A7C15
"""Odd, and without a pattern: the golden ratio in 64 bits (Knuth)."""
_ALL = (1 << 64) - 1


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


class Expected(Struct, frozen=True):
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
        "site",
        "unseen",
        "work",
    )

    def __init__(
        self, query: Query, index: int, site: _Site, expected: Expected, *, cached_bytes: int, unseen: bool, at_ms: int
    ) -> None:
        self.query = query
        self.index = index
        self.site = site
        self.load = site.load
        self.replica = site.name
        self.expected = expected
        self.cached_bytes = cached_bytes
        self.unseen = unseen
        self.at_ms = at_ms
        self.work = work(query.prompt_tokens - expected.cached_tokens, query.prompt_tokens)
        self.clear = site.load.waiting <= AHEAD_PART * self.work
        self.reads = self.runs = True


class Strategy(Protocol):
    """Which of the targets a request goes to, by its place among them. Asked only where there are several."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int: ...


class Prefix:
    """The default: the least expected time to the first token."""

    def pick(self, router: Router, query: Query, targets: Sequence[Target], now_ms: int) -> int:
        return router.soonest(query, targets)


class _Site:
    """A replica as one model's router sees it. `truth` is how much of what was predicted to be cached was."""

    __slots__ = ("held", "load", "name", "seed", "truth")

    def __init__(self, name: str, load: Load, held: Held) -> None:
        self.name = name
        self.load = load
        self.held = held
        self.seed = _hash(name.encode())
        self.truth = 1.0


class _Members:
    """The replicas that are to hold a hot prefix, of so many."""

    __slots__ = ("of", "sites", "used")

    def __init__(self, of: int, sites: frozenset[_Site]) -> None:
        self.of = of
        self.sites = sites
        self.used = 0


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
        self.unseen_warm = UNSEEN_WARM
        """How much of prompts new here their rendezvous replica did hold."""
        self._heat = Heat()
        self._ends = Ends()
        self._sites: dict[str, _Site] = {}
        self._members: dict[int, _Members] = {}
        self._presumed: list[tuple[int, int, Booking]] = []
        self._booked = 0
        self._running = 0
        self._looked: tuple[list[int], Steps, int] | None = None
        self._targets: list[Target] = []
        self._here: list[_Site] = []
        self._loads_here: list[Load] = []

    def inherit(self, before: Router) -> None:
        """It takes over what that one knew of prompts, before it has decided anything."""
        self.index, self.token_bytes, self.unseen_warm = before.index, before.token_bytes, before.unseen_warm
        self._heat, self._ends = before._heat, before._ends

    def expect(self, query: Query, targets: Sequence[Target], now_ms: int) -> list[Expected]:
        """What is expected at each of the targets, in their order."""
        self._presume_read(now_ms)
        steps = self.index.steps(query.chain.blocks)
        return [self._expected(query, steps, self._site(target.name))[0] for target in targets]

    def choose(self, query: Query, targets: Sequence[Target], now_ms: int) -> Booking:
        """Books the request at one of the targets, of which there is at least one."""
        self._presume_read(now_ms)
        index = 0 if len(targets) == 1 else self.strategy.pick(self, query, targets, now_ms)
        site, blocks = self._site(targets[index].name), query.chain.blocks
        steps, hot = self._look(blocks, len(targets))
        expected, cached_bytes = self._expected(query, steps, site)
        booking = Booking(
            query,
            index,
            site,
            expected,
            cached_bytes=cached_bytes,
            unseen=not steps or steps[0][0] <= hot,
            at_ms=now_ms,
        )
        self._running += 1
        site.load.add(booking.work, 1)
        if query.prompt_tokens:
            self.index.note(blocks, site.name, known=steps[0][0] if steps else 0)
            self._looked = None
            self._heat.count(blocks)
            self.on_placed(site.name, blocks)
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
        query, site = booking.query, booking.site
        text_bytes = len(query.chain.text)
        if not input_tokens or not query.prompt_tokens or text_bytes < BLOCK_BYTES:
            return
        self.token_bytes += LEARNS_PART * (text_bytes / input_tokens - self.token_bytes)
        self._ends.note(query.chain, site.name, output_tokens)
        self._looked = None
        self.index.note((), site.name, unknown=int(output_tokens * self.token_bytes) // BLOCK_BYTES)
        predicted = input_tokens * booking.cached_bytes // text_bytes
        if booking.unseen:
            found = max(0.0, cached_tokens - predicted) / max(1, input_tokens - predicted)
            self.unseen_warm += UNSEEN_PART * (found - self.unseen_warm)
        if predicted >= MISSED_LEAST:
            site.truth += TRUTH_PART * (min(1.0, cached_tokens / predicted) - site.truth)
            if site.truth < TRUTH_LEAST:
                site.truth = 1.0
                self.index.forget_oldest(site.name)

    def ended(self, booking: Booking) -> None:
        """The engine does nothing more for it; only the first call counts."""
        if booking.reads:
            self._has_read(booking)
        if booking.runs:
            booking.runs = False
            booking.load.add(0, -1)
            self._running -= 1

    def restarted(self, replica: str) -> None:
        """Its engine's cache is empty: the process is new, or was told to forget."""
        self._looked = None
        self.index.forget(replica)
        self._site(replica).truth = 1.0

    def capacity(self, replica: str, kv_tokens: int) -> None:
        """Its engine's cache holds so many tokens."""
        self._looked = None
        self.index.resize(replica, int(kv_tokens * self.token_bytes / BLOCK_BYTES))

    def note_elsewhere(self, blocks: Sequence[int], replica: str) -> None:
        """Another gateway has sent a prompt with these blocks there."""
        self._looked = None
        self.index.note(blocks, replica)
        self._heat.count(blocks)

    def beside(self, replica: str, waiting_tokens: int, running: int) -> None:
        """What other gateways have there now."""
        self.loads.of(replica).beside = Beside(waiting_tokens, running)

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
        return _hash(replica.encode(), block)

    def costs_ms(self, query: Query, targets: Sequence[Target]) -> list[float]:
        """What placing the request at each of the targets would cost, in milliseconds: its wait for its first token,
        and what others wait for its prompt to be read."""
        return self._costs(query, *self._at(targets))[0]

    def soonest(self, query: Query, targets: Sequence[Target]) -> int:
        """Where it costs least, by its place among the targets."""
        sites, loads = self._at(targets)
        costs, hot, is_unseen = self._costs(query, sites, loads)
        blocks = query.chain.blocks
        weights: list[int] = []
        if is_unseen and self.unseen_warm > LEARNS_PART:
            weights = _weights(blocks[min(hot, len(blocks) - 1)], sites)
            if hot:
                members = self._members_of(blocks[hot - 1], sites)
                home = max([(weight, n) for n, weight in enumerate(weights) if sites[n] in members])[1]
            else:
                home = weights.index(max(weights))
            costs[home] -= self.unseen_warm * (costs[home] - loads[home].wait_ms)
        least = min(costs)
        if costs.count(least) == 1:
            return costs.index(least)
        tied = [n for n, cost in enumerate(costs) if cost == least]
        if weights:
            return max([(weights[n], n) for n in tied])[1]
        return max(zip(_weights(blocks[min(hot, len(blocks) - 1)], [sites[n] for n in tied]), tied, strict=True))[1]

    def _costs(self, query: Query, sites: list[_Site], loads: list[Load]) -> tuple[list[float], int, bool]:
        """At each of them; how many of its first blocks are hot; and whether nobody is known to hold more."""
        prompt, chain = query.prompt_tokens, query.chain
        blocks, text_bytes = chain.blocks, max(1, len(chain.text))
        whole = work(prompt, prompt)
        steps, hot = self._look(blocks, len(sites))
        if hot:
            members = self._members_of(blocks[hot - 1], sites)
            warm = work(max(1, prompt - prompt * chain.bytes_at(hot) // text_bytes), prompt)
            if len(members) < len(sites):
                costs = [
                    load.wait_ms + (warm if site in members else whole) * load.price_ms
                    for site, load in zip(sites, loads, strict=True)
                ]
            else:
                costs = [load.wait_ms + warm * load.price_ms for load in loads]
        else:
            costs = [load.wait_ms + whole * load.price_ms for load in loads]
        is_unseen = True
        for depth, holders in reversed(steps):
            if depth <= hot:
                continue
            is_unseen = False
            cached_bytes = chain.bytes_at(depth)
            if holders.bit_count() > FEW_HOLDERS:
                own = work(max(1, prompt - prompt * cached_bytes // text_bytes), prompt)
                for index, site in enumerate(sites):
                    if site.held.mask & holders:
                        costs[index] = site.load.wait_ms + own * site.load.price_ms
                continue
            for name in self.index.holders(holders):
                holder = self._sites.get(name)
                if holder is not None and holder in sites:
                    cached = self._cached_bytes(chain, depth, holder)
                    own = work(max(1, prompt - int(holder.truth * prompt * cached) // text_bytes), prompt)
                    costs[sites.index(holder)] = holder.load.wait_ms + own * holder.load.price_ms
        return costs, hot, is_unseen

    def _members_of(self, block: int, sites: Sequence[_Site]) -> frozenset[_Site]:
        """Which replicas are to hold the hot prefix that ends with this block: as many as its share of the requests
        takes, the first in rendezvous order, so that gateways agree, and that fewer when it cools are some of them."""
        known = self._members.get(block)
        if known is not None and known.of == len(sites) and known.used < MEMBERS_USED:
            known.used += 1
            return known.sites
        share = self._heat.share(block)
        running = self._running + sum([site.load.beside.running for site in sites])
        copies = ceil(min(COPIES_SPARE * share * len(sites), share * running + 1))
        weights = _weights(block, sites)
        least = sorted(weights, reverse=True)[:copies][-1]
        chosen = frozenset([site for site, weight in zip(sites, weights, strict=True) if weight >= least])
        if len(self._members) > MEMBERS_USED:
            self._members.clear()
        self._members[block] = _Members(len(sites), chosen)
        return chosen

    def _look(self, blocks: list[int], replicas: int) -> tuple[Steps, int]:
        """Who holds how much of a chain, and how many of its blocks are hot: of one decision it is asked twice."""
        known = self._looked
        if known is not None and known[0] is blocks:
            return known[1], known[2]
        steps = self.index.steps(blocks)
        hot = self._heat.depth(blocks, 1 / replicas) if steps else 0
        self._looked = (blocks, steps, hot)
        return steps, hot

    def _cached_bytes(self, chain: Chain, depth: int, site: _Site) -> int:
        """How much of the text a replica should have that has seen so many blocks of it."""
        if not depth:
            return 0
        tail_bytes, answer_tokens = self._ends.beyond(chain, depth, site.name)
        seen = chain.bytes_at(depth) + tail_bytes + int(answer_tokens * self.token_bytes)
        return min(seen, len(chain.text))

    def _expected(self, query: Query, steps: Steps, site: _Site) -> tuple[Expected, int]:
        chain, prompt, load = query.chain, query.prompt_tokens, site.load
        cached_bytes = self._cached_bytes(chain, depth_of(site.held.mask, steps), site)
        cached = max(0, min(prompt - 1, prompt * cached_bytes // max(1, len(chain.text))))
        expected = Expected(
            site.name,
            cached,
            load.waiting + load.beside.waiting_tokens,
            load.running + load.beside.running,
            int(load.wait_ms + work(prompt - cached, prompt) * load.ms_per_token),
        )
        return expected, cached_bytes

    def _at(self, targets: Sequence[Target]) -> tuple[list[_Site], list[Load]]:
        """The targets' sites and loads: mostly they are the ones of the last decision."""
        if targets != self._targets:
            self._targets = list(targets)
            self._here = [self._site(target.name) for target in targets]
            self._loads_here = [site.load for site in self._here]
        return self._here, self._loads_here

    def _site(self, name: str) -> _Site:
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(name, self.loads.of(name), self.index.of(name))
        return site

    def _has_read(self, booking: Booking) -> None:
        booking.reads = False
        booking.load.add(-booking.work, 0)

    def _presume_read(self, now_ms: int) -> None:
        """Of answers that come whole nobody tells when their prompts have been read."""
        presumed = self._presumed
        while presumed and (presumed[0][0] <= now_ms or not presumed[0][2].reads):
            booking = heapq.heappop(presumed)[2]
            if booking.reads:
                self._has_read(booking)


def _nobody(replica: str, blocks: Sequence[int]) -> None:
    """Nobody hears of it."""


def _weights(block: int, sites: Sequence[_Site]) -> list[int]:
    """A prefix's preference for each of them (rendezvous hashing); whoever has the highest is its home. Both numbers
    are hashes already, so a multiplication spreads them well enough: lost homes' heirs are even within a tenth."""
    return [(block ^ site.seed) * _SPREAD & _ALL for site in sites]
