"""Virtual token counters (VTC, OSDI'24) of one band: whose turn it is.

A counter is the service a tenant was given per unit of its weight; the lowest goes first. Virtual time is what the one
dispatched last had been given before, and never goes back. Counters stay near it: one that idles is lifted to it when
it returns; one that asks for less than its share, without ever being idle, is behind it by `credit_tokens` at most, or
it would have all of the fleet later (Kubernetes APF #95979); one that runs alone is before it by what it has running at
most, or it would wait for others to use as much.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from ._flow import Entry, Flow
from ._work import BandLoad

_FORGET_FROM = 256
"""So many tenants are kept before the idle ones are looked through."""


class Band:
    """The tenants of one priority. `backlog` and `running` are costs, `owed` what it may take before higher bands,
    `credit_tokens` how far a tenant may be behind, and `out_of_turn` what others were given since the one whose turn it
    is became that, of at most `locality_tokens`."""

    def __init__(self, priority: int, *, credit_tokens: float, locality_tokens: float) -> None:
        self.priority = priority
        self.waiting: list[tuple[float, int, Flow]] = []
        """By counter. A sorted list: with 10,000 tenants its moves cost less than a heap's stale items."""
        self.backlog = 0.0
        self.running = 0.0
        self.owed = 0.0
        self.out_of_turn = 0.0
        self.elsewhere = 0.0
        """The cost of what runs at other gateways."""
        self.weight_elsewhere = 0.0
        """Of those that are active there and not here."""
        self.waiting_weight = 0.0
        self.active_weight = 0.0
        self.credit_tokens = credit_tokens
        self.locality_tokens = locality_tokens
        self._flows: dict[str, Flow] = {}
        self._elsewhere: dict[str, float] = {}
        self._virtual_time = 0.0
        self._last: Flow | None = None
        self._active = 0
        self._sequences = 0
        self._order = 0
        self._forget_at = _FORGET_FROM

    @property
    def load(self) -> BandLoad:
        return BandLoad(
            waiting=sum([flow.waiting for flow in self._flows.values()]),
            running=self._sequences,
            waiting_cost=self.backlog,
            running_cost=self.running,
            tenants=len(self._flows),
        )

    def has_others(self, tenant: str) -> bool:
        """Whether any other tenant waits or runs, at any gateway."""
        flow = self._flows.get(tenant)
        here = self._active > (flow is not None and flow.is_active)
        return here or len(self._elsewhere) > (tenant in self._elsewhere)

    def known(self, tenant: str) -> Flow | None:
        return self._flows.get(tenant)

    def flow(self, tenant: str, weight: float) -> Flow:
        """The tenant's flow, with its weight as it is now."""
        flow = self._flows.get(tenant)
        if flow is None:
            if len(self._flows) >= self._forget_at:
                self._forget()
            self._order += 1
            flow = Flow(tenant, self.priority, self._order, weight=weight)
            flow.counter = self._virtual_time
            flow.elsewhere = self._elsewhere.get(tenant, 0.0)
            self._flows[tenant] = flow
        elif flow.weight != weight:
            change = weight - flow.weight
            self.waiting_weight += change if flow.waiting else 0.0
            self.active_weight += change if flow.is_active else 0.0
            flow.weight = weight
        return flow

    def lag(self, flow: Flow | None) -> float:
        """By how much its counter will be before virtual time once it waits; negative where it has credit."""
        return 0.0 if flow is None else self._lifted(flow) - self._now()

    def has_credit(self, flow: Flow) -> bool:
        """Whether it was given less than those dispatched last."""
        return flow.counter < self._virtual_time

    def wait(self, entry: Entry) -> None:
        """`entry` joins its tenant's backlog."""
        flow = entry.flow
        if not flow.waiting:
            self._lift(flow)
            self._activate(flow)
            self.waiting_weight += flow.weight
            flow.push(entry)
            insort(self.waiting, (flow.counter, flow.order, flow))
        else:
            flow.push(entry)
        self.backlog += entry.cost

    def leave(self, entry: Entry) -> None:
        """`entry` waits no longer."""
        flow = entry.flow
        flow.remove(entry)
        self.backlog -= entry.cost
        if not flow.waiting:
            self._take_place(flow)
            self.waiting_weight -= flow.weight
            self._deactivate(flow)
        if not self.waiting:
            self.backlog = self.waiting_weight = 0.0
            self.owed = min(self.owed, 0.0)

    def run(self, entry: Entry) -> None:
        """`entry`, which waits or has just come, is dispatched: its tenant is charged what it is predicted to cost."""
        flow = entry.flow
        cost = entry.cost / flow.weight
        if entry.waits:
            start = flow.counter - self.locality_tokens
            self._virtual_time = max(self._virtual_time, start)
        self._lift(flow)
        if not self.waiting:
            ceiling = self._virtual_time + max(self.credit_tokens, flow.running + entry.cost) / flow.weight
            cost = max(0.0, min(cost, ceiling - flow.counter))
        self._activate(flow)
        entry.runs = True
        flow.running += entry.cost
        flow.sequences += 1
        self.running += entry.cost
        self._sequences += 1
        entry.charged = cost * flow.weight
        flow.given += entry.cost
        self._last = flow
        if entry.waits:
            self.leave(entry)
        self.move(flow, cost)

    def end(self, entry: Entry, cost: float) -> None:
        """`entry` has ended and cost `cost`: its tenant gets back what it was charged above that, or pays more."""
        flow = entry.flow
        entry.runs = False
        flow.running -= entry.cost
        flow.sequences -= 1
        self.running -= entry.cost
        self._sequences -= 1
        if not flow.sequences:
            flow.running = 0.0
        flow.given += cost - entry.cost
        self.move(flow, max(cost - entry.cost, -entry.charged) / flow.weight)
        self._deactivate(flow)
        if not self._sequences:
            self.running = 0.0

    def move(self, flow: Flow, by: float) -> None:
        """Changes a counter."""
        if flow.waiting:
            self._take_place(flow)
            flow.counter += by
            insort(self.waiting, (flow.counter, flow.order, flow))
        else:
            flow.counter += by

    def demand(self) -> dict[str, tuple[float, int, float]]:
        """The weight of each tenant that waits or runs, its sequences, and the cost of those that run."""
        return {
            flow.tenant: (flow.weight, flow.waiting + flow.sequences, flow.running)
            for flow in self._flows.values()
            if flow.is_active
        }

    def beside(self, demand: Mapping[str, tuple[float, int, float]]) -> None:
        """What waits and runs at other gateways now, by tenant."""
        for tenant in self._elsewhere:
            if flow := self._flows.get(tenant):
                flow.elsewhere = 0.0
        self._elsewhere = {tenant: running for tenant, (_, _, running) in demand.items()}
        self.elsewhere = sum(self._elsewhere.values())
        self.weight_elsewhere = 0.0
        for tenant, (weight, _, running) in demand.items():
            flow = self._flows.get(tenant)
            if flow is not None:
                flow.elsewhere = running
            if flow is None or not flow.is_active:
                self.weight_elsewhere += weight

    def given(self) -> dict[str, float]:
        """What each tenant was given here since this was asked last, corrections included, by "<priority> <tenant>",
        or "<priority>*<weight> <tenant>" where its weight is not 1."""
        given = {}
        for flow in self._flows.values():
            if flow.given:
                weight = "" if flow.weight == 1.0 else f"*{flow.weight!r}"
                given[f"{self.priority}{weight} {flow.tenant}"] = flow.given
                flow.given = 0.0
        return given

    def merge(self, tenant: str, weight: float, cost: float, at_most: float) -> None:
        """Another gateway gave this; what puts it more than `at_most` before virtual time is let go. `weight` is what
        the other knows, for a tenant that has asked nothing here."""
        flow = self._flows.get(tenant) or self.flow(tenant, weight)
        room = max(0.0, self._now() + at_most / flow.weight - flow.counter)
        self.move(flow, min(cost / flow.weight, room))

    def _now(self) -> float:
        """Virtual time. While nobody is active it is the counter of the one dispatched last."""
        if self.waiting:
            return max(self._virtual_time, self.waiting[0][0])
        if not self._active and self._last is not None:
            return max(self._virtual_time, self._last.counter)
        return self._virtual_time

    def _lifted(self, flow: Flow) -> float:
        now = self._now()
        return max(flow.counter, now - self.credit_tokens / flow.weight if flow.is_active else now)

    def _lift(self, flow: Flow) -> None:
        if not flow.waiting:
            self._virtual_time = self._now()
        by = self._lifted(flow) - flow.counter
        if by > 0.0:
            self.move(flow, by)

    def _take_place(self, flow: Flow) -> None:
        del self.waiting[bisect_left(self.waiting, (flow.counter, flow.order, flow))]

    def _activate(self, flow: Flow) -> None:
        if not flow.is_active:
            self._active += 1
            self.active_weight += flow.weight

    def _deactivate(self, flow: Flow) -> None:
        if not flow.is_active:
            self._active -= 1
            self.active_weight = self.active_weight - flow.weight if self._active else 0.0

    def _forget(self) -> None:
        """An idle tenant's counter below virtual time says nothing: it would be lifted."""
        now = self._now()
        self._flows = {
            tenant: flow for tenant, flow in self._flows.items() if flow.is_active or flow.given or flow.counter > now
        }
        self._forget_at = max(_FORGET_FROM, 2 * len(self._flows))
