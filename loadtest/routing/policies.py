"""Ways to choose a replica: what others do, what the gateway did before, and what it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.routing import Booking, Query, Router, prefix_chain

from .workloads import Workload
from .world import Asked, Chooser


class Counting(Chooser):
    """Knows what it has sent and not had back."""

    def __init__(self, replicas: int) -> None:
        self.in_flight = [0] * replicas
        self._turn = 0

    def place(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        replica = self.choose(asked, usable, now_s)
        self.in_flight[replica] += 1
        return replica

    def ended(self, asked: Asked, now_s: float) -> None:
        self.in_flight[asked.replica] -= 1

    def choose(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        raise NotImplementedError

    def least(self, usable: Sequence[int]) -> int:
        """Fewest in flight, of those alike each in turn."""
        self._turn += 1
        count = len(usable)
        return min(
            (usable[(self._turn + offset) % count] for offset in range(count)), key=lambda one: self.in_flight[one]
        )


class RoundRobin(Counting):
    """Each in turn."""

    def choose(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        self._turn += 1
        return usable[self._turn % len(usable)]


class LeastLoaded(Counting):
    """Fewest in flight."""

    def choose(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        return self.least(usable)


class Sticky(Counting):
    """Whoever is alike goes where the first of them went; new ones in turn."""

    def __init__(self, replicas: int, key: Callable[[Asked], object]) -> None:
        super().__init__(replicas)
        self._key = key
        self._home: dict[object, int] = {}

    def choose(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        key = self._key(asked)
        if self._home.get(key) not in usable:
            self._turn += 1
            self._home[key] = usable[self._turn % len(usable)]
        return self._home[key]


class CacheAware(Counting):
    """sglang-router 0.3 and vllm-router 0.1 as released: one approximate tree of the prompts' characters.

    More requests apart than 64 and than half as many again: shortest queue, for everybody. Else, where more than 30 %
    of the prompt's characters are known, a worker that knows them; else the one with the smallest tree (sglang-router)
    or the fewest requests (vllm-router). Here a tree's edge is a block of 64 characters and nothing is evicted: their
    bound of 2^26 characters is beyond these runs.
    """

    THRESHOLD, APART, TIMES = 0.3, 64, 1.5

    def __init__(self, replicas: int, *, smallest_tree: bool) -> None:
        super().__init__(replicas)
        self._owners: dict[int, dict[int, None]] = defaultdict(dict)
        self._sizes = [0] * replicas
        self._smallest_tree = smallest_tree

    def choose(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        replica = self._choose(asked, usable)
        keys = asked.text.keys
        for key in keys:
            owners = self._owners[key]
            if replica not in owners:
                owners[replica] = None
                self._sizes[replica] += 1
        return replica

    def _choose(self, asked: Asked, usable: Sequence[int]) -> int:
        loads = [self.in_flight[one] for one in usable]
        if max(loads) - min(loads) > self.APART and max(loads) > self.TIMES * min(loads):
            return self.least(usable)
        keys = asked.text.keys
        depth, owner = 0, -1
        for key in keys:
            known = self._owners.get(key)
            if not known:
                break
            depth += 1
            owner = next(iter(known))
        if keys and depth / len(keys) > self.THRESHOLD:
            # A tree that names a worker that is gone drops it and takes the first healthy one.
            return owner if owner in usable else usable[0]
        if self._smallest_tree:
            return min(usable, key=lambda one: self._sizes[one])
        return self.least(usable)


class BoundedLoad(Counting):
    """What the gateway did before: the last owner of the longest known prefix, no replica above 1.25 times its share of
    the requests (Mirrokni, Thorup, Zadimoghaddam 2018); else rendezvous."""

    FACTOR, FREE = 1.25, 4

    def __init__(self, replicas: int) -> None:
        super().__init__(replicas)
        self._owners: dict[int, int] = {}

    def choose(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        keys = asked.text.keys or [0]
        total = 1 + sum(self.in_flight[one] for one in usable)
        bound = max(self.FREE, -int(-self.FACTOR * total // len(usable)))
        replica = next((self._owners[key] for key in reversed(keys) if key in self._owners), -1)
        if replica not in usable or self.in_flight[replica] >= bound:
            free = [one for one in usable if self.in_flight[one] < bound] or usable
            replica = max(free, key=lambda one: hash((keys[0], one)))
        self._owners.update(dict.fromkeys(keys, replica))
        return replica


@dataclass(frozen=True, slots=True)
class Replica:
    """As the router is told of it."""

    name: str


class Mtok(Chooser):
    """The gateway's own router, told what the gateway would tell it, and no more."""

    def __init__(self, workload: Workload) -> None:
        self.router = Router()
        self.replicas = [Replica(f"10.0.0.{number}:8000") for number in range(workload.replicas)]
        for replica in self.replicas:
            self.router.capacity(replica.name, workload.profile.block_size * (workload.profile.kv_blocks - 1))

    def place(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        query = Query(chain=prefix_chain(asked.text.data), prompt_tokens=asked.text.tokens)
        booking = self.router.choose(query, [self.replicas[number] for number in usable], _ms(now_s))
        asked.note = booking
        return usable[booking.index]

    def first_token(self, asked: Asked, now_s: float) -> None:
        assert isinstance(asked.note, Booking)
        self.router.first_token(asked.note, _ms(now_s))

    def ended(self, asked: Asked, now_s: float) -> None:
        booking = asked.note
        assert isinstance(booking, Booking)
        if asked.cached_tokens >= 0:
            self.router.answered(
                booking,
                input_tokens=asked.text.tokens,
                cached_tokens=asked.cached_tokens,
                output_tokens=asked.output_tokens,
            )
        self.router.ended(booking)

    def restarted(self, replica: int, now_s: float) -> None:
        self.router.restarted(self.replicas[replica].name)


def _ms(now_s: float) -> int:
    return round(now_s * 1000)


Policy = Callable[[Workload], Chooser]

POLICIES: dict[str, Policy] = {
    "round robin": lambda workload: RoundRobin(workload.replicas),
    "least loaded": lambda workload: LeastLoaded(workload.replicas),
    "bounded load": lambda workload: BoundedLoad(workload.replicas),
    "cache_aware, sglang-router": lambda workload: CacheAware(workload.replicas, smallest_tree=True),
    "cache_aware, vllm-router": lambda workload: CacheAware(workload.replicas, smallest_tree=False),
    "Mtok": Mtok,
}

STICKY: dict[str, Policy] = {
    "sticky by session": lambda workload: Sticky(workload.replicas, lambda asked: asked.session),
    "sticky by prefix": lambda workload: Sticky(workload.replicas, lambda asked: asked.session.kind),
}
"""For the workload that was measured with them: who belongs together is known to nobody but it."""
