"""What is asked of placement, and what it answers."""

from __future__ import annotations

from typing import Protocol

import xxhash
from msgspec import Struct

from ._index import Held
from ._load import AHEAD_PART, Load, work
from ._prefix import Chain


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


class Expected(Struct, frozen=True, array_like=True):
    """What is expected of a request at one replica: how much of its prompt is cached there, uncached tokens of others
    that come before it, requests that run there, and when its first token comes, in milliseconds from now."""

    replica: str
    cached_tokens: int
    waiting_tokens: int
    running: int
    ttft_ms: int


class Told(Struct):
    """Sums over a replica's answers: prompt tokens that were expected to be cached, those that its engine says were,
    and by how many each answer's two differed; milliseconds to the first tokens, expected and real."""

    answers: int = 0
    predicted_tokens: int = 0
    reported_tokens: int = 0
    error_tokens: int = 0
    first_tokens: int = 0
    expected_ms: int = 0
    real_ms: int = 0


class Site:
    """A replica as one model's router sees it. `tells` is whether its engine has ever said that something was cached:
    some never do. `truth` is how much of what was predicted to be cached was."""

    __slots__ = ("held", "load", "name", "seed", "tells", "told", "truth")

    def __init__(self, name: str, load: Load, held: Held) -> None:
        self.name = name
        self.load = load
        self.held = held
        self.seed = xxhash.xxh3_64_intdigest(name.encode())
        self.tells = False
        self.truth = 1.0
        self.told = Told()


Rival = tuple[str, int, int, int, float, float]
"""A replica that was not chosen, as it was: its name, how many of the prompt's blocks it had, tokens that waited and
requests that ran there, milliseconds until it could begin, and those that a token takes it."""


class Booking:
    """One request at one replica, from the decision on.

    `index` is its place among the targets it was chosen from, `cached_bytes` how much of the chain's text is expected
    to be cached there. `unseen`: nobody was known to have more of the prompt than what is hot; `clear`: little came
    before it, so that its first token tells the prefill rate.
    """

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
        "rivals",
        "runs",
        "site",
        "unseen",
        "work",
    )

    def __init__(
        self,
        query: Query,
        index: int,
        site: Site,
        expected: Expected,
        *,
        rivals: tuple[Rival, ...],
        cached_bytes: int,
        unseen: bool,
        at_ms: int,
    ) -> None:
        self.query = query
        self.index = index
        self.site = site
        self.load = site.load
        self.replica = site.name
        self.expected = expected
        self.rivals = rivals
        self.cached_bytes = cached_bytes
        self.unseen = unseen
        self.at_ms = at_ms
        self.work = work(query.prompt_tokens - expected.cached_tokens, query.prompt_tokens)
        self.clear = site.load.waiting <= AHEAD_PART * self.work
        self.reads = self.runs = True

    @property
    def others(self) -> tuple[Expected, ...]:
        """What was expected elsewhere: at the replica that had most of the prompt, and at the one that waited least.
        Worked out when it is asked for, which is after the request has gone on its way."""
        chain, prompt = self.query.chain, self.query.prompt_tokens
        others = []
        for name, depth, waiting, running, wait_ms, pace_ms in self.rivals:
            cached = max(0, min(prompt - 1, prompt * chain.bytes_at(depth) // max(1, len(chain.text))))
            ttft_ms = int(wait_ms + work(prompt - cached, prompt) * pace_ms)
            others.append(Expected(name, cached, waiting, running, ttft_ms))
        return tuple(others)
