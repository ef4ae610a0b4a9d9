"""Arrivals through one set of policies: limits, queue, knees, replicas, one event after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf

import msgspec

from gateway.admission import HELD, Accounts, Held, Holding, Predictor, Refusing, Work
from gateway.context import PromptSize
from gateway.policy import Policies
from gateway.simulator import Profile
from gateway.wire import Usage

from ._arrivals import Arrival
from ._before import Before, UsedHour
from ._line import Line
from ._outcome import Outcome, Tally, outcome_of
from ._replica import Replica, Run, run_of
from ._terms import Terms, terms_of


class Request(msgspec.Struct, eq=False, gc=False):
    """One arrival that the limits have let in, of all arrivals the `number`th. `generates`: its answer holds tokens.
    Without a `work` nothing bounds it."""

    arrival: Arrival
    number: int
    arrived_ms: float
    terms: Terms
    held: Held
    tally: Tally
    line: Line
    run: Run
    generates: bool
    replica: Replica
    work: Work | None = None
    waited_ms: float = 0.0


def replay(
    arrivals: Sequence[Arrival],
    policies: Policies,
    profile_of: Callable[[str], Profile],
    used: Sequence[UsedHour] = (),
) -> Outcome:
    """What these policies do to these arrivals, which are in order. `profile_of` tells the engine of a model.

    The same arguments give the same outcome. When the first one comes, buckets are full, queues and caches empty, and
    of budgets is spent what was `used` before. Nobody comes back: a client that was refused is as in the arrivals.
    """
    before = Before(used, {tenant.name: tenant.group for tenant in policies.tenants.values()})
    world = _World(policies, profile_of, before, start_ms=arrivals[0].arrived_ms if arrivals else 0)
    for number, arrival in enumerate(arrivals):
        world.arrive(arrival, number)
    world.run(inf)
    return outcome_of(world.tallies)


class _World:
    """Times in floats are milliseconds since the first arrival; those in whole numbers Unix time."""

    def __init__(
        self, policies: Policies, profile_of: Callable[[str], Profile], before: Before, *, start_ms: int
    ) -> None:
        self.tallies: dict[str, Tally] = {}
        self._policies = policies
        self._profile_of = profile_of
        self._start_ms = start_ms
        self._predictor = Predictor()
        self._accounts = Accounts(before.used)
        self._terms: dict[tuple[str, str, str, str], Terms | str] = {}
        self._lines: dict[str, Line] = {}
        self._running: dict[Run, Request] = {}
        self._events: list[tuple[float, int, Replica | Callable[[float], None]]] = []
        self._pushed = 0
        self._now_ms = 0.0

    def arrive(self, arrival: Arrival, number: int) -> None:
        """Lets time pass until then, and decides."""
        at_ms = float(arrival.arrived_ms - self._start_ms)
        self.run(at_ms)
        self._now_ms = at_ms
        tally = self.tallies.get(arrival.tenant)
        if tally is None:
            tally = self.tallies[arrival.tenant] = Tally()
        terms = self._terms_of(arrival)
        if isinstance(terms, str):
            tally.refused[terms] += 1
            return
        holding = terms.holding(arrival)
        if isinstance(holding, str):
            tally.refused[holding] += 1
            return
        held = self._hold(terms, holding, arrival, number)
        if isinstance(held, Refusing):
            tally.refused[_named(held)] += 1
            return
        for would_refuse in held.audited:
            tally.audited[_named(would_refuse)] += 1
        line = self._line(terms)
        run = run_of(
            input_tokens=arrival.input_tokens,
            cached_tokens=arrival.input_cached_tokens,
            output_tokens=min(arrival.output_tokens, holding.output_most),
        )
        generates = holding.output_most > 0
        request = Request(arrival, number, at_ms, terms, held, tally, line, run, generates, replica=line.replicas[0])
        if terms.bounded and terms.endpoint.computes:
            self._queue(request)
        else:
            self._place(request, line.any_replica(number))

    def _hold(self, terms: Terms, holding: Holding, arrival: Arrival, number: int) -> Held | Refusing:
        """A prompt is counted where only its bound does not fit."""
        tenant, scopes, now_ms = terms.tenant, terms.scopes.others, arrival.arrived_ms
        held = self._accounts.ask(tenant, scopes, holding.ask(str(number)), now_ms)
        if isinstance(held, Refusing) and held.dimension in HELD and not holding.size.exact:
            size = PromptSize(total=arrival.input_tokens, longest=arrival.input_tokens, exact=True)
            held = self._accounts.ask(tenant, scopes, holding.counted(size).ask(str(number)), now_ms)
        return held

    def run(self, until_ms: float) -> None:
        """Everything that happens until then."""
        events, running = self._events, self._running
        while events and events[0][0] <= until_ms:
            at_ms, _, what = heappop(events)
            if not isinstance(what, Replica):
                self._now_ms = at_ms
                what(at_ms)
                continue
            if what.next_ms != at_ms:
                continue  # it has been told something since, and has another time
            self._now_ms = at_ms
            firsts, ended = what.advance()
            if what.next_ms < inf:
                self._at(what.next_ms, what)
            for run in firsts:
                request = running[run]
                request.tally.ttfts_ms.append(at_ms - request.arrived_ms)
                if request.work is not None:
                    request.line.first_token(request, request.work, at_ms)
            for run in ended:
                self._end(running.pop(run))

    def _queue(self, request: Request) -> None:
        arrival, terms, line, run = request.arrival, request.terms, request.line, request.run
        line.hold(terms.itl_ms)
        output_tokens = 0
        if request.generates:
            asked = arrival.asked_output_tokens or None
            output_tokens = self._predictor.output_tokens(arrival.tenant, line.model, asked)
        work = request.work = Work(
            id=str(request.number),
            tenant=arrival.tenant,
            band=terms.priority,
            weight=terms.weight,
            input_tokens=run.input_tokens,
            cached_tokens=run.cached_tokens,
            output_tokens=output_tokens,
            retry=False,
            arrived_ms=arrival.arrived_ms,
            deadline_ms=arrival.arrived_ms + terms.max_wait_ms,
            max_share=terms.max_share,
            shortest_first=terms.shortest_first,
        )
        line.offer(request, work, self._now_ms, ttft_ms=terms.ttft_ms)

    def _place(self, request: Request, replica: Replica) -> None:
        request.replica = replica
        request.waited_ms = self._now_ms - request.arrived_ms
        self._running[request.run] = request
        before_ms = replica.next_ms
        replica.submit(request.run, self._now_ms)
        if replica.next_ms != before_ms:
            self._at(replica.next_ms, replica)

    def _turn(self, request: Request) -> None:
        """The queue has refused it: it has used nothing."""
        request.tally.refused["overloaded"] += 1
        self._accounts.settle(
            request.held, input_tokens=0, output_tokens=0, nanousd=0, ran=False, now_ms=self._unix_ms()
        )

    def _end(self, request: Request) -> None:
        run, arrival, terms, tally = request.run, request.arrival, request.terms, request.tally
        output_tokens = run.output_tokens if request.generates else 0
        usage = Usage(
            input_tokens=arrival.input_tokens,
            input_cached_tokens=arrival.input_cached_tokens,
            output_tokens=output_tokens,
        )
        nanousd = 0 if terms.price is None else terms.price.cost_nanousd(usage)
        tally.waits_ms.append(request.waited_ms)
        if output_tokens > 1:
            tally.itls_ms.append((self._now_ms - run.first_ms) / (output_tokens - 1))
        tally.input_tokens += usage.input_tokens
        tally.input_cached_tokens += usage.input_cached_tokens
        tally.output_tokens += output_tokens
        tally.cost_nanousd += nanousd
        if request.work is not None:
            request.line.ended(request, request.work, output_tokens, self._now_ms)
        self._accounts.settle(
            request.held,
            input_tokens=usage.input_tokens,
            output_tokens=output_tokens,
            nanousd=nanousd,
            ran=True,
            now_ms=self._unix_ms(),
        )

    def _line(self, terms: Terms) -> Line:
        model = terms.model
        line = self._lines.get(model.name)
        if line is None:
            profile = self._profile_of(model.name)
            replicas = [Replica(replica.url, profile) for replica in model.replicas]
            line = self._lines[model.name] = Line(
                model.name,
                replicas,
                self._predictor,
                locality_tokens=model.locality_tokens,
                start_ms=self._start_ms,
                at=self._at,
                place=self._place,
                turn=self._turn,
            )
        return line

    def _terms_of(self, arrival: Arrival) -> Terms | str:
        like = (arrival.tenant, arrival.key, arrival.model, arrival.endpoint)
        terms = self._terms.get(like)
        if terms is None:
            context_tokens = self._profile_of(arrival.model).max_model_len
            terms = self._terms[like] = terms_of(self._policies, arrival, context_tokens)
        return terms

    def _at(self, at_ms: float, what: Replica | Callable[[float], None]) -> None:
        self._pushed += 1
        heappush(self._events, (at_ms, self._pushed, what))

    def _unix_ms(self) -> int:
        return self._start_ms + int(self._now_ms)


def _named(refusing: Refusing) -> str:
    """As an outcome names it: whose limit it is, where it is not the tenant's own."""
    return f"{refusing.dimension} of {refusing.scope}" if refusing.scope else refusing.dimension
