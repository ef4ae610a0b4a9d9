"""What a request would meet at each replica, and where it would cost least: the least expected time to first token.

    cost = what is booked there before its first token + what runs there
         + this prompt's uncached part, with what reading it there holds up

in milliseconds, at that replica's measured pace. Nothing switches over at a threshold. Equal costs, and prompts that
nobody is known to have, go by rendezvous hash over the shortest part of the chain that is not hot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil

from ._booking import Expected, Query, Rival, Site, Target
from ._ends import Ends
from ._heat import Heat
from ._index import PrefixIndex, Steps, depth_of
from ._load import Load, Loads, work
from ._prefix import Chain

TOKEN_BYTES = 4.0
"""Of English text, until prompts have told."""
UNSEEN_WARM = 0.1
"""How much of a prompt that is new here its rendezvous replica is taken to hold, from other gateways, until it has been
seen how often that is so. Enough to tell replicas apart that are about as busy; more would fill one cache and leave
another empty."""
UNSEEN_LEAST = 0.02
"""Below that nobody else is there to have sent it."""
COPIES_SPARE = 1.1
"""Replicas for a prefix, over those whose whole time it would take."""
MEMBERS_USED = 64
"""How often the replicas of a prefix are looked up before they are worked out again."""
FEW_HOLDERS = 8
"""Of more it is not looked up where conversations ended: they have a common beginning and nothing else."""
MANY_HOLDERS = 3
"""From so many on a prefix may have more copies than it needs."""
JOINS_PART = 0.1
"""How much of what a copy saves is not counted where it is one too many: enough that idle replicas are passed over, so
that it is forgotten there, and busy ones are not waited for."""

NEAR_MS = 20.0
"""Where other gateways have requests too, costs so near to each other are taken for equal, and one is drawn: what the
others send at this moment is heard of a tenth of a second later, and by the same costs all would send it to the same
replica. Simulated with eight gateways, prompts that share nothing have a p50 TTFT of 38 ms instead of 51, and a p99 of
195 instead of 215; twice as much costs conversations a hundredth of their cached share."""

_SPREAD = 0x9E3779B97F4A7C15
"""Odd, and without a pattern: the golden ratio in 64 bits (Knuth)."""
_ALL = (1 << 64) - 1


class _Members:
    """The replicas that are to hold a prefix, out of so many."""

    __slots__ = ("of", "sites", "used")

    def __init__(self, of: int, sites: frozenset[Site]) -> None:
        self.of = of
        self.sites = sites
        self.used = 0


class Prospects:
    """What one model's router knows of prompts, held against the replicas' loads."""

    def __init__(self, loads: Loads) -> None:
        self.index = PrefixIndex()
        self.heat = Heat()
        self.ends = Ends()
        self.token_bytes = TOKEN_BYTES
        self.unseen_warm = UNSEEN_WARM
        """How much of prompts new here their rendezvous replica did hold."""
        self.running = 0
        """Requests that this router has open."""
        self.sites: dict[str, Site] = {}
        self._loads = loads
        self._drawn = 0
        self._members: dict[int, _Members] = {}
        self._looked: tuple[list[int], Steps, int] | None = None
        self._targets: list[Target] = []
        self._here: list[Site] = []
        self._loads_here: list[Load] = []

    def inherit(self, before: Prospects) -> None:
        """Takes over what that one knew of prompts, before anything is asked of this one."""
        self.index, self.heat, self.ends = before.index, before.heat, before.ends
        self.token_bytes, self.unseen_warm = before.token_bytes, before.unseen_warm

    def site(self, name: str) -> Site:
        """A replica; the same object for as long as this lives."""
        site = self.sites.get(name)
        if site is None:
            site = self.sites[name] = Site(name, self._loads.of(name), self.index.of(name))
        return site

    def forget_look(self) -> None:
        """What was looked up for the last decision may be so no longer."""
        self._looked = None

    def look(self, blocks: list[int], replicas: int) -> tuple[Steps, int]:
        """Who holds how much of a chain, and how many of its blocks are hot: of one decision it is asked twice."""
        known = self._looked
        if known is not None and known[0] is blocks:
            return known[1], known[2]
        steps = self.index.steps(blocks)
        hot = self.heat.depth(blocks, 1 / replicas) if steps else 0
        self._looked = (blocks, steps, hot)
        return steps, hot

    def expected(self, query: Query, steps: Steps, site: Site) -> tuple[Expected, int]:
        """At one replica; and how many bytes of the prompt should be cached there."""
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

    def rivals(self, steps: Steps, chosen: Site) -> tuple[Rival, ...]:
        """What else there was to choose: the replica that has most of the prompt, and the one that waits least."""
        rivals: list[Rival] = []
        most = None
        if steps and steps[0][1].bit_count() <= FEW_HOLDERS:
            most = self.sites.get(self.index.holders(steps[0][1])[0])
            if most is not None and most is not chosen:
                rivals.append(_rival(most, steps))
        waits = [load.wait_ms for load in self._loads_here]
        if waits:
            idlest = self._here[waits.index(min(waits))]
            if idlest is not chosen and idlest is not most:
                rivals.append(_rival(idlest, steps))
        return tuple(rivals)

    def soonest(self, query: Query, targets: Sequence[Target]) -> int:
        """Where it costs least, by its place among the targets."""
        sites, loads = self._at(targets)
        costs, hot, is_unseen = self._costs(query, sites, loads)
        blocks = query.chain.blocks
        weights: list[int] = []
        if is_unseen and self.unseen_warm > UNSEEN_LEAST:
            weights = _weights(blocks[min(hot, len(blocks) - 1)], sites)
            if hot:
                members = self._members_of(blocks[hot - 1], sites, len(sites))
                home = max([(weight, n) for n, weight in enumerate(weights) if sites[n] in members])[1]
            else:
                home = weights.index(max(weights))
            costs[home] -= self.unseen_warm * (costs[home] - loads[home].wait_ms)
        least = min(costs)
        if loads[costs.index(least)].beside.running:
            return self._near(blocks[-1], sites, costs, least)
        if costs.count(least) == 1:
            return costs.index(least)
        tied = [n for n, cost in enumerate(costs) if cost == least]
        if weights:
            return max([(weights[n], n) for n in tied])[1]
        return max(zip(_weights(blocks[min(hot, len(blocks) - 1)], [sites[n] for n in tied]), tied, strict=True))[1]

    def _near(self, block: int, sites: Sequence[Site], costs: Sequence[float], least: float) -> int:
        """One of those that cost little more than the least, now one and then another."""
        near = [n for n, cost in enumerate(costs) if cost <= least + NEAR_MS]
        if len(near) == 1:
            return near[0]
        self._drawn += 1
        return max(zip(_weights(block ^ self._drawn, [sites[n] for n in near]), near, strict=True))[1]

    def costs_ms(self, query: Query, targets: Sequence[Target]) -> list[float]:
        """What it would cost at each of the targets: its wait for its first token, and what others wait for its prompt
        to be read."""
        return self._costs(query, *self._at(targets))[0]

    def _costs(self, query: Query, sites: list[Site], loads: list[Load]) -> tuple[list[float], int, bool]:
        """At each of them; how many of its first blocks are hot; and whether nobody is known to hold more."""
        prompt, chain = query.prompt_tokens, query.chain
        blocks, text_bytes = chain.blocks, max(1, len(chain.text))
        whole = work(prompt, prompt)
        steps, hot = self.look(blocks, len(sites))
        if hot:
            members = self._members_of(blocks[hot - 1], sites, len(sites))
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
            block, is_known_well = blocks[depth - 1], holders.bit_count() <= FEW_HOLDERS
            if is_known_well:
                known = [self.sites.get(name) for name in set(self.index.holders(holders))]
                there = [site for site in known if site is not None and site in sites]
            else:
                there = [site for site in sites if site.held.mask & holders]
            needed = self._members_of(block, there, len(sites)) if len(there) >= MANY_HOLDERS else there
            cached = chain.bytes_at(depth)
            own = work(max(1, prompt - prompt * cached // text_bytes), prompt)
            for site in there:
                if is_known_well:
                    cached = self._cached_bytes(chain, depth, site)
                    own = work(max(1, prompt - int(site.truth * prompt * cached) // text_bytes), prompt)
                tokens = own if site in needed else own + int(JOINS_PART * (whole - own))
                costs[sites.index(site)] = site.load.wait_ms + tokens * site.load.price_ms
        return costs, hot, is_unseen

    def _members_of(self, block: int, among: Sequence[Site], replicas: int) -> Collection[Site]:
        """Which of these replicas are to hold the prefix that ends with this block: as many as its share of the
        requests takes of `replicas`, the first in rendezvous order, so that gateways agree, and that fewer when it
        cools are some of them."""
        known = self._members.get(block)
        if known is not None and known.of == len(among) and known.used < MEMBERS_USED:
            known.used += 1
            return known.sites
        share = self.heat.share(block)
        running = self.running + sum([site.load.beside.running for site in among])
        copies = max(1, ceil(min(COPIES_SPARE * share * replicas, share * running + 1)))
        weights = _weights(block, among)
        least = sorted(weights, reverse=True)[:copies][-1]
        chosen = frozenset([site for site, weight in zip(among, weights, strict=True) if weight >= least])
        if len(self._members) > MEMBERS_USED:
            self._members.clear()
        self._members[block] = _Members(len(among), chosen)
        return chosen

    def _cached_bytes(self, chain: Chain, depth: int, site: Site) -> int:
        """How much of the text a replica should have that has seen so many blocks of it."""
        if not depth:
            return 0
        tail_bytes, answer_tokens = self.ends.beyond(chain, depth, site.name)
        seen = chain.bytes_at(depth) + tail_bytes + int(answer_tokens * self.token_bytes)
        return min(seen, len(chain.text))

    def _at(self, targets: Sequence[Target]) -> tuple[list[Site], list[Load]]:
        """The targets' sites and loads: mostly they are the ones of the last decision."""
        if targets != self._targets:
            self._targets = list(targets)
            self._here = [self.site(target.name) for target in targets]
            self._loads_here = [site.load for site in self._here]
        return self._here, self._loads_here


def _rival(site: Site, steps: Steps) -> Rival:
    load, beside = site.load, site.load.beside
    waiting, running = load.waiting + beside.waiting_tokens, load.running + beside.running
    return site.name, depth_of(site.held.mask, steps), waiting, running, load.wait_ms, load.ms_per_token


def _weights(block: int, sites: Sequence[Site]) -> list[int]:
    """A prefix's preference for each of them (rendezvous hashing); whoever has the highest is its home. Both numbers
    are hashes already, so a multiplication spreads them well enough: lost homes' heirs are even within a tenth."""
    return [(block ^ site.seed) * _SPREAD & _ALL for site in sites]
