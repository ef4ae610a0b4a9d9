"""One request's way through its model's router: where it is booked, and that each booking is released."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from gateway.fleet import Fleet, ModelFleet, Rank, Reading, Replica
from gateway.policy import ModelSpec
from gateway.routing import Beside, Booking, Expected, Held, LeastLoaded, Loads, Query, Router, router_of
from gateway.wire import Usage


class Placement:
    """Ending it twice changes nothing. Several attempts one after the other have one; two at a time have two."""

    __slots__ = ("_has_ranks", "_now_ms", "booking", "query", "rank", "router")

    def __init__(self, router: Router, query: Query, now_ms: Callable[[], int], *, has_ranks: bool = False) -> None:
        """`has_ranks`: several engines may be behind a replica's address."""
        self.router = router
        self.query = query
        self.booking: Booking | None = None
        self.rank: Rank | None = None
        """Which of the replica's engines it goes to, where it has several."""
        self._now_ms = now_ms
        self._has_ranks = has_ranks

    @property
    def cached_share(self) -> tuple[int, int]:
        """Of so many bytes of its prompt, the second number, the first are expected to be cached where it is. Bills are
        made of it, so in the client's favour: a prompt known to its last whole block is known whole."""
        chain = self.query.chain
        cached_bytes = 0 if self.booking is None else self.booking.cached_bytes
        text_bytes = max(1, len(chain.text))
        return text_bytes if chain.reaches_end(cached_bytes) else cached_bytes, text_bytes

    @property
    def expected(self) -> tuple[Expected, ...]:
        """What was expected where it is, and at others."""
        booking = self.booking
        if booking is None or not self.query.prompt_tokens:
            return ()
        return (booking.expected, *booking.others)

    def choose(self, targets: Sequence[Replica]) -> Replica:
        """The replica to run it, one of `targets`; booked there and nowhere else."""
        self.ended()
        self.rank = None
        if self._has_ranks:
            return self._choose_rank(targets)
        self.booking = self.router.choose(self.query, targets, self._now_ms())
        return targets[self.booking.index]

    def _choose_rank(self, targets: Sequence[Replica]) -> Replica:
        places = [place for replica in targets for place in replica.ranks or (replica,)]
        self.booking = self.router.choose(self.query, places, self._now_ms())
        chosen = places[self.booking.index]
        if isinstance(chosen, Replica):
            return chosen
        self.rank = chosen
        return chosen.replica

    def another(self) -> Placement:
        """For a second attempt beside this one."""
        return Placement(self.router, self.query, self._now_ms, has_ranks=self._has_ranks)

    def take(self, other: Placement) -> None:
        """From now on it is where the other one was."""
        self.ended()
        self.booking, other.booking = other.booking, None
        self.rank = other.rank

    def first_token(self) -> None:
        """The engine has begun to answer."""
        if self.booking is not None:
            self.router.first_token(self.booking, self._now_ms())

    def answered(self, usage: Usage) -> None:
        """The engine has said what it used."""
        if self.booking is not None:
            self.router.answered(
                self.booking,
                input_tokens=usage.input_tokens,
                cached_tokens=usage.input_cached_tokens,
                output_tokens=usage.output_tokens,
            )

    def ended(self) -> None:
        """The engine does nothing more for it, or never began to."""
        if self.booking is not None:
            self.router.ended(self.booking)


class Routers:
    """All models' routers, as far as gateways tell each other of what they know."""

    def __init__(self, fleet: Fleet, loads: Loads) -> None:
        self.by_model: dict[str, Router] = {}
        self.loads = loads
        self._on_placed: Callable[[str, str, Sequence[int]], None] = _nobody
        self._fleet = fleet
        self._resorts: dict[tuple[str, str], Router] = {}
        self._said: Mapping[str, ModelSpec] = {}

    def use(self, models: Mapping[str, ModelSpec]) -> None:
        """From now on there are these models, placed as they say."""
        self.by_model = {name: self._router(spec) for name, spec in models.items()}
        self._said = models

    def resort(self, model: str, pool: str) -> Router:
        """Of one of a model's last resorts, which no other gateway hears of: what it caches nobody knows."""
        router = self._resorts.get((model, pool))
        if router is None:
            router = self._resorts[model, pool] = Router(Loads(), LeastLoaded())
        return router

    def share(self, *, placed: Callable[[str, str, Sequence[int]], None], said: Callable[[str, int], None]) -> None:
        """From now on `placed` hears of each prompt's model, replica and blocks, and `said` how many requests an engine
        says wait in it."""
        self._on_placed = placed
        self.loads.on_said = said

    def note_elsewhere(self, model: str, replica: str, blocks: Sequence[int]) -> None:
        """Another gateway has sent a prompt of these blocks there."""
        if router := self.by_model.get(model):
            router.note_elsewhere(blocks, replica)

    def beside(self, replica: str, load: Beside) -> None:
        """All other gateways together have this in flight there."""
        self.loads.of(replica).beside = load

    def running(self, replica: str) -> int:
        """How many requests from here have not ended there."""
        return self.loads.of(replica).running

    def held(self) -> list[Held]:
        """What is in flight from here; replicas that have nothing are left out."""
        return self.loads.held()

    def epoch(self, replica: str) -> int:
        """When the replica's process began, in Unix milliseconds; 0 where that is not known."""
        for known in self._fleet.replicas:
            if known.reading is not None and replica in known.places:
                return known.reading.started_ms or 0
        return 0

    def forget(self, replica: str) -> None:
        """What has been noted of it was of a process that is no more."""
        for router in self.by_model.values():
            router.restarted(replica)

    def _router(self, spec: ModelSpec) -> Router:
        model = spec.name
        router = router_of(spec, self.loads, before=self.by_model.get(model), said=self._said.get(model))
        router.on_placed = lambda replica, blocks: self._on_placed(model, replica, blocks)
        return router


class Caches:
    """What the engines' pages say of their caches, told to the routers: how much they hold, and that they are empty
    again."""

    def __init__(self, on_restart: Callable[[str], None]) -> None:
        """`on_restart` hears of the replicas whose caches are empty again."""
        self._last: dict[str, Reading] = {}
        self._on_restart = on_restart

    def look(self, models: Iterable[ModelFleet], routers: Mapping[str, Router]) -> None:
        """Call it about once a second."""
        heard: dict[str, Reading] = {}
        for model in models:
            router = routers.get(model.spec.name)
            if router is None:
                continue
            for replica in model.replicas:
                reading = replica.reading
                if reading is None:
                    continue
                last = self._last.get(replica.name)
                heard[replica.name] = reading
                if last is reading:
                    continue
                places = replica.places
                if last is not None and _is_anew(last, reading):
                    for place in places:
                        router.restarted(place)
                        self._on_restart(place)
                if reading.kv_tokens:
                    for place in places:  # an engine's page sums its ranks, which are alike
                        router.capacity(place, reading.kv_tokens // len(places))
        self._last |= heard


def _nobody(model: str, replica: str, blocks: Sequence[int]) -> None:
    """Nobody hears of it."""


def _is_anew(last: Reading, now: Reading) -> bool:
    """Whether its process has begun since: it says so, or its counters fell."""
    if now.asked_ms < last.asked_ms:
        return False
    return now.started_ms != last.started_ms or any(
        now.counters.get(metric, 0) < count for metric, count in last.counters.items()
    )
