"""The fair queue of one model: what waits for its replicas, and whose turn it is.

Higher bands go first, but each lower one has a floor. Within a band tenants go by their virtual token counters; within
a tenant first attempts before retries, then first come first served or the shortest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush

from ._counters import Band
from ._drain import Drain
from ._flow import Entry, Flow
from ._margin import Margin
from ._retry import Doubling, Returns
from ._work import BandLoad, Cost, Turned, Work

LOWER_BAND_FLOOR = 0.05
"""Of the cost dispatched while a lower band waits, what it gets even if higher ones could use it all."""

CREDIT_TOKENS = 20_000.0
"""How far a tenant can be behind at least: a dozen chat requests."""

CREDIT_MS = 2_000.0
"""And as much as the whole fleet drains in this time: what one of ten tenants that uses just its share on the average
asks for at once now and then. More would let one that used less have the fleet for longer."""

LOCALITY_TOKENS = 2_000.0
"""About one chat request: what tenants may be given out of turn because their prefix is the one just dispatched."""

OVERTAKEN_TOKENS = 20_000.0
"""What others may be given while the head of a tenant whose turn it is fits no replica, if the head costs less."""

MERGED_S = 10.0
"""Service that other gateways gave counts up to what the whole fleet drains in this time."""

_LOOK = 32
"""So many tenants in order of their counters are asked whether their head fits."""


class FairQueue:
    """Decides for one model; no clock and no I/O. A work is offered or started, then ended, withdrawn or expired.

    `is_held` says of which works their tenants have enough running: others go before them and owe them nothing.
    `locality_tokens` and `credit_tokens` (at least so much) are costs, per tenant. `sequences`, where it is known, is
    how many requests the replicas run at most, for tenants that may hold only a part of them (`max_share`); it may
    change.
    """

    def __init__(
        self,
        *,
        cost: Cost | None = None,
        lowest_band_floor: float = LOWER_BAND_FLOOR,
        locality_tokens: float = LOCALITY_TOKENS,
        credit_tokens: float = CREDIT_TOKENS,
    ) -> None:
        self.sequences: int | None = None
        self.is_held: Callable[[Work], bool] = _never
        self._cost = cost or Cost()
        self._floor = lowest_band_floor
        self._locality_tokens = locality_tokens
        self._credit_tokens = credit_tokens
        self._bands: list[Band] = []
        self._by_priority: dict[int, Band] = {}
        self._entries: dict[str, Entry] = {}
        self._deadlines: list[tuple[int, int, Entry]] = []
        self._late: list[Entry] = []
        self._waiting = 0
        self._sequence = 0
        self._pushed = 0
        self._prefix = 0
        self._drain = Drain()
        self._returns: dict[int, Returns] = {}
        self._doubling = Doubling()
        self._margins = (Margin(), Margin())

    def __len__(self) -> int:
        """Works that wait."""
        return self._waiting

    def offer(self, work: Work, now_ms: int) -> Turned | None:
        """Lets `work` wait, or refuses it because it would wait past its deadline; a refusal changes no counter.

        With nothing waiting nothing is refused: a rate that was measured too low is found out only by waiting.
        """
        self._drain.passed(now_ms, waits=self._waiting > 0)
        cost = self._cost_of(work)
        wait_ms = self._wait_ms(work, cost)
        until_ms = now_ms + (wait_ms or 0.0) if self._waiting else now_ms
        if until_ms > work.deadline_ms:
            return self._turned(work, cost, wait_ms, now_ms)
        entry = self._entry(work, cost)
        entry.predicted_ms = wait_ms
        entry.below_share = self._below_share(entry.flow)
        self._wait(entry)
        return None

    def next(self, fits: Callable[[Work, bool], bool], now_ms: int) -> Work | None:
        """The work to dispatch now, taken out and charged; None where nothing that waits may run.

        `fits(work, below_share)` says whether a replica has room; the work returned is the one it was asked about last.
        """
        self._drain.passed(now_ms, waits=self._waiting > 0)
        self._set_late_aside(now_ms)
        misfits: list[_Misfit] = []
        for band in self._in_order():
            flow, below, blocked = self._choose(band, fits, misfits)
            if flow is not None:
                entry = flow.head
                for misfit in misfits:
                    misfit.pay(entry.cost, below)
                self._pay_floors(band, entry.cost)
                if flow is band.waiting[0][2]:
                    band.out_of_turn = 0.0
                self._waiting -= 1
                band.run(entry)
                self._prefix = entry.work.prefix
                entry.started_ms = now_ms
                if entry.predicted_ms is not None:
                    self._margin(entry.below_share).served()
                self._drain.dispatched(band.priority, entry.cost, retry=entry.work.retry)
                return entry.work
            if blocked:
                return None
        return None

    def predicted_wait_ms(self, work: Work) -> float | None:
        """How long `work`, which waits or runs, was expected to wait when it came; None where no rate was known then,
        or it did not have to."""
        entry = self._entries.get(work.id)
        return None if entry is None else entry.predicted_ms

    def start(self, work: Work, now_ms: int) -> None:
        """`work` is dispatched without having waited: charged the same."""
        self._drain.passed(now_ms, waits=self._waiting > 0)
        entry = self._entry(work, self._cost_of(work))
        self._prefix = work.prefix
        self._by_priority[work.band].run(entry)
        entry.started_ms = now_ms
        self._drain.started(entry.cost, retry=work.retry)

    def ended(self, work: Work, *, input_tokens: int, cached_tokens: int, output_tokens: int, now_ms: int) -> None:
        """`work` has ended in the engine, having used this; zeros where it never ran. Only the first call counts."""
        self._drain.passed(now_ms, waits=self._waiting > 0)
        entry = self._entries.get(work.id)
        if entry is None or not entry.runs:
            return
        del self._entries[work.id]
        used = self._cost.of(input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)
        self._by_priority[work.band].end(entry, used)
        self._drain.ended(entry.cost, now_ms - entry.started_ms)

    def requeue(self, work: Work, now_ms: int) -> None:
        """The engine would not have `work`: it goes back before all its tenant's, and was never charged."""
        self._drain.passed(now_ms, waits=self._waiting > 0)
        entry = self._entries.get(work.id)
        if entry is None or not entry.runs:
            return
        band = self._by_priority[work.band]
        band.end(entry, 0.0)
        self._drain.undone(band.priority, entry.cost)
        entry.rank = -1
        self._wait(entry)

    def withdraw(self, work: Work) -> None:
        """Nobody waits for `work` any more. One that runs has to end."""
        entry = self._entries.get(work.id)
        if entry is not None and entry.waits:
            self._leave(entry)
            del self._entries[work.id]
        elif entry is not None and entry in self._late:
            self._late.remove(entry)
            del self._entries[work.id]

    def expired(self, now_ms: int) -> list[tuple[Work, Turned]]:
        """Those whose deadline has passed, taken out, and what to tell them."""
        self._drain.passed(now_ms, waits=self._waiting > 0)
        self._set_late_aside(now_ms)
        late, self._late = self._late, []
        expired = []
        for entry in late:
            del self._entries[entry.work.id]
            wait_ms = self._wait_ms(entry.work, entry.cost)
            expired.append((entry.work, self._turned(entry.work, entry.cost, wait_ms, now_ms)))
        return expired

    def below_share(self, work: Work) -> bool:
        """Whether its tenant has credit, or what it has running is less than its share of what runs in its band and
        lower ones."""
        band = self._by_priority.get(work.band)
        flow = None if band is None else band.known(work.tenant)
        if flow is None:
            return any(other.running or other.elsewhere for other in self._bands if other.priority <= work.band)
        return self._below_share(flow)

    def has_others(self, tenant: str) -> bool:
        """Whether any other tenant waits or runs, in any band."""
        return any(band.has_others(tenant) for band in self._bands)

    def load(self) -> dict[int, BandLoad]:
        """How much waits and runs, by band. Looks at every tenant: for pages and gauges."""
        return {band.priority: band.load for band in self._bands}

    def demand(self) -> dict[str, tuple[float, int, float]]:
        """By "<priority> <tenant>" its weight, the sequences that it runs and waits for here, and the cost of those
        that run."""
        return {f"{band.priority} {tenant}": own for band in self._bands for tenant, own in band.demand().items()}

    def beside(self, demands: Iterable[Mapping[str, tuple[float, int, float]]]) -> None:
        """What other gateways' tenants run and wait for now: a share is of all that runs, wherever it was asked for."""
        by_band: dict[int, dict[str, tuple[float, int, float]]] = {band.priority: {} for band in self._bands}
        for demand in demands:
            for name, (weight, sequences, running) in demand.items():
                priority, _, tenant = name.partition(" ")
                there = by_band.setdefault(int(priority), {})
                _, before, ran = there.get(tenant, (weight, 0, 0.0))
                there[tenant] = (weight, before + sequences, ran + running)
        for number, there in by_band.items():
            self._band(number).beside(there)

    def counters(self) -> dict[str, float]:
        """Cost that each tenant was given here since this was called last; names are for `merge` to read."""
        return {name: cost for band in self._bands for name, cost in band.given().items()}

    def merge(self, others: Mapping[str, float]) -> None:
        """Adds what other gateways gave since the last merge."""
        total = self._drain.rate
        at_most = max(self._credit_tokens, 0.0 if total is None else total * 1000 * MERGED_S)
        for name, cost in others.items():
            of, _, tenant = name.partition(" ")
            priority, _, weight = of.partition("*")
            self._band(int(priority)).merge(tenant, float(weight or 1.0), cost, at_most)

    def _cost_of(self, work: Work) -> float:
        return self._cost.of(
            input_tokens=work.input_tokens, cached_tokens=work.cached_tokens, output_tokens=work.output_tokens
        )

    def _band(self, priority: int) -> Band:
        band = self._by_priority.get(priority)
        if band is None:
            band = self._by_priority[priority] = Band(
                priority,
                credit_tokens=self._credit_tokens,
                locality_tokens=self._locality_tokens,
            )
            self._bands.append(band)
            self._bands.sort(key=lambda band: -band.priority)
        return band

    def _entry(self, work: Work, cost: float) -> Entry:
        band = self._band(work.band)
        rate = self._drain.rate
        if rate is not None:
            band.credit_tokens = max(self._credit_tokens, CREDIT_MS * rate)
        flow = band.flow(work.tenant, work.weight)
        flow.max_share = work.max_share
        if flow.shortest_first is not work.shortest_first:
            flow.go_by_size(work.shortest_first)
        self._sequence += 1
        entry = self._entries[work.id] = Entry(work, flow, cost, self._sequence)
        return entry

    def _wait(self, entry: Entry) -> None:
        self._by_priority[entry.work.band].wait(entry)
        self._waiting += 1
        self._pushed += 1
        heappush(self._deadlines, (entry.work.deadline_ms, self._pushed, entry))
        if len(self._deadlines) > 2 * self._waiting + 64:
            self._deadlines = [item for item in self._deadlines if item[2].waits]
            heapify(self._deadlines)

    def _leave(self, entry: Entry) -> None:
        self._by_priority[entry.work.band].leave(entry)
        self._waiting -= 1

    def _set_late_aside(self, now_ms: int) -> None:
        while self._deadlines and self._deadlines[0][0] < now_ms:
            entry = heappop(self._deadlines)[2]
            if entry.waits:
                self._leave(entry)
                self._late.append(entry)
                if entry.predicted_ms is not None:
                    self._margin(entry.below_share).missed()

    def _in_order(self) -> list[Band]:
        """Bands that wait: those that are owed service first, the lowest of them first, then the highest."""
        waiting = [band for band in self._bands if band.waiting]
        if len(waiting) < 2:
            return waiting
        owed = [band for band in reversed(waiting[1:]) if band.owed > 0.0]
        return owed + [band for band in waiting if band not in owed] if owed else waiting

    def _choose(
        self, band: Band, fits: Callable[[Work, bool], bool], misfits: list[_Misfit]
    ) -> tuple[Flow | None, bool, bool]:
        """The tenant to serve, whether it is below its share, and whether nobody may go before one that does not fit.

        A work at least as large as one that did not fit is not asked about.
        """
        warm = self._warm(band, fits)
        if warm is not None:
            return warm, self._below_share(warm), False
        running, weight = self._running_from(band), band.active_weight + band.weight_elsewhere
        tried: list[_Misfit] = []
        asked = 0
        for _, _, flow in band.waiting:
            if self._is_capped(flow) or self.is_held(flow.head.work):
                continue
            asked += 1
            if asked > _LOOK:
                break
            entry = flow.head
            below = (flow.running + flow.elsewhere) * weight < running * flow.weight or band.has_credit(flow)
            tokens = entry.work.input_tokens + entry.work.output_tokens
            uncached = entry.work.uncached_tokens
            for misfit in tried:
                if misfit.covers(uncached, tokens, below):
                    misfits.append(_Misfit(flow, uncached, tokens, below, misfit.lacks_slot))
                    break
            else:
                if fits(entry.work, below):
                    return flow, below, False
                misfit = _Misfit(flow, uncached, tokens, below, not below and fits(entry.work, True))
                tried.append(misfit)
                misfits.append(misfit)
            if flow.overtaken >= max(OVERTAKEN_TOKENS, entry.cost):
                return None, False, True
        return None, False, False

    def _warm(self, band: Band, fits: Callable[[Work, bool], bool]) -> Flow | None:
        """One whose head has the prefix that was dispatched last, near enough to its turn."""
        if not self._prefix or band.waiting[0][2].head.work.prefix == self._prefix:
            return None
        window = band.waiting[0][0] + self._locality_tokens
        for counter, _, flow in band.waiting[1:_LOOK]:
            if counter > window:
                break
            head = flow.head
            if (
                head.work.prefix == self._prefix
                and band.out_of_turn + head.cost <= self._locality_tokens
                and not self._is_capped(flow)
                and not self.is_held(head.work)
                and fits(head.work, self._below_share(flow))
            ):
                band.out_of_turn += head.cost
                return flow
        return None

    def _pay_floors(self, served: Band, cost: float) -> None:
        """Lower bands that wait are owed their floor; what one takes while a higher one waits is deducted."""
        higher_waits = False
        for band in self._bands:
            if not band.waiting:
                continue
            if band is served:
                band.owed -= cost if higher_waits else 0.0
            elif band.priority < served.priority:
                band.owed = min(self._credit_tokens, band.owed + cost * self._floor / (1 - self._floor))
            else:
                higher_waits = True

    def _running_from(self, top: Band) -> float:
        """The cost of what runs in its band and lower ones, at all gateways."""
        return sum([band.running + band.elsewhere for band in self._bands if band.priority <= top.priority])

    def _below_share(self, flow: Flow) -> bool:
        band = self._by_priority[flow.band]
        weight = band.active_weight + band.weight_elsewhere + (0.0 if flow.is_active else flow.weight)
        return (flow.running + flow.elsewhere) * weight < self._running_from(band) * flow.weight or band.has_credit(
            flow
        )

    def bend(self, locality_tokens: float) -> None:
        """From now on tenants may be given so much out of turn, as a cost, for the prefix that was just dispatched."""
        self._locality_tokens = locality_tokens
        for band in self._bands:
            band.locality_tokens = locality_tokens

    def has_its_share(self, work: Work) -> bool:
        """Whether its tenant holds all the places that it may hold at most."""
        if work.max_share >= 1.0:
            return False
        flow = self._band(work.band).flow(work.tenant, work.weight)
        flow.max_share = work.max_share
        return self._is_capped(flow)

    def _is_capped(self, flow: Flow) -> bool:
        return (
            flow.max_share < 1.0
            and self.sequences is not None
            and flow.sequences >= max(1, int(flow.max_share * self.sequences))
        )

    def _wait_ms(self, work: Work, cost: float) -> float | None:
        """When a newcomer would be dispatched: its own tenant's backlog over that tenant's share of what its band
        drains, not the whole queue's. None while the rate is unknown."""
        total = self._drain.rate
        if total is None:
            return None
        rate = total * self._drain.left_for(work.band, self._floor)
        higher = sum(band.backlog for band in self._bands if band.priority > work.band)
        wait_ms = higher / total + self._drain.interval_ms
        band = self._by_priority.get(work.band)
        flow = None if band is None else band.known(work.tenant)
        if band is not None and band.waiting:
            ahead = 0.0 if flow is None else flow.ahead(cost, retry=work.retry)
            turn = max(0.0, band.lag(flow) + ahead / work.weight) * self._weights(work)
            wait_ms += min(turn, band.backlog) / rate
        return wait_ms * self._margin(flow is None or self._below_share(flow)).factor

    def _margin(self, below_share: bool) -> Margin:
        """Those below their share are hardly overtaken; what is learnt from the others would have them refused."""
        return self._margins[below_share]

    def _weights(self, work: Work) -> float:
        """The weights among which the band's service is divided once `work` waits too."""
        band = self._by_priority.get(work.band)
        if band is None:
            return work.weight
        flow = band.known(work.tenant)
        return band.waiting_weight + (0.0 if flow is not None and flow.waiting else work.weight)

    def _turned(self, work: Work, cost: float, wait_ms: float | None, now_ms: int) -> Turned:
        rate = self._drain.rate
        if wait_ms is None or rate is None:
            return Turned(max(0, now_ms - work.arrived_ms), self._doubling.after_ms(work.id, now_ms))
        returns = self._returns.get(work.band)
        if returns is None:
            returns = self._returns[work.band] = Returns()
        after_ms = returns.after_ms(
            work.tenant,
            work.weight,
            work.id,
            wait_ms=wait_ms,
            alone_ms=cost / (rate * self._drain.left_for(work.band, self._floor) * self._drain.spare(rate)),
            waiting_weight=self._weights(work),
            now_ms=now_ms,
        )
        return Turned(int(wait_ms), after_ms)


def _never(work: Work) -> bool:
    """Nothing is held."""
    return False


class _Misfit:
    """A head that no replica has room for. `lacks_slot`: it would have had room, were its tenant below its share."""

    __slots__ = ("below", "flow", "lacks_slot", "tokens", "uncached")

    def __init__(self, flow: Flow, uncached: int, tokens: int, below: bool, lacks_slot: bool) -> None:
        self.flow = flow
        self.uncached = uncached
        self.tokens = tokens
        self.below = below
        self.lacks_slot = lacks_slot

    def covers(self, uncached: int, tokens: int, below: bool) -> bool:
        """Whether one of this size cannot fit either."""
        if below and not self.below:
            return False
        return self.lacks_slot or (uncached >= self.uncached and tokens >= self.tokens)

    def pay(self, cost: float, below: bool) -> None:
        """Others get `cost` before it. The slots kept for those below their share are not taken from it."""
        if not (self.lacks_slot and below):
            self.flow.overtaken += cost
