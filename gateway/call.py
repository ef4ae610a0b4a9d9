"""One request on its way, how it ended, and what it holds meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from gateway import refusals
from gateway.admission import (
    HELD,
    SLICE_TOKENS,
    Ask,
    Denial,
    Grant,
    Holding,
    Lease,
    output_left,
    ratelimit_headers,
    refusal,
    soft_limit_headers,
)
from gateway.alerts import Alerts
from gateway.clock import Clock
from gateway.context import PromptSize
from gateway.errors import Refused, RefusedBy
from gateway.meter import NOTHING, Meter, Metered
from gateway.metering import FailedAttempt, JournalUnavailable, Ledger, Status, UsageEvent
from gateway.policy import Scopes, TenantSpec
from gateway.pricing import Price, usd_of_nanousd
from gateway.relay import Headers
from gateway.routing import Expected
from gateway.store import StoreUnavailable
from gateway.telemetry import Telemetry
from gateway.wire import Endpoint, StreamScanner, Usage

log = logging.getLogger(__name__)

SHORTER_TRIES = 4
"""Between two of them others may take what was left: then there is less."""
HOLD_WAIT_S = 2.0
"""How long a stream stands still in all for money that others hold and may not use, before it ends."""
HOLD_AGAIN_S = 0.1

REPLICA = b"x-mtok-replica"
"""The header that says where an answer is from, for tenants who may see that: host:port, and the pool if there are
any."""
POLICY = b"x-mtok-policy"
"""The header by which every answer says which policies decided on it: their version."""
PRICE_EPOCH = b"x-mtok-price-epoch"
"""Answers to requests that cost something say which epoch's price they pay, refusals too."""
COST = b"x-mtok-cost-usd"
"""A request that carries it is told in its answer what that cost: by a header, or at the end of the stream."""


@dataclass(slots=True)
class Call:
    """What is known of a request so far. `headers` are those its answer will carry, whatever the answer is. `policy` is
    the version of the policies that decide on it, `queued_ms` how long it has waited for a replica with room. Where
    `shows_replica`, they say at which replica it is."""

    id: str
    endpoint: Endpoint
    arrived_ms: int
    policy: str = ""
    tenant: str = ""
    key: str = ""
    model: str = ""
    replica: str = ""
    pool: str = ""
    shows_replica: bool = False
    admitted_ms: int = 0
    first_token_ms: int = 0
    queued_ms: int = 0
    asked_input_tokens: int = 0
    asked_output_tokens: int = 0
    traceparent: str = ""
    user: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    failed_attempts: tuple[FailedAttempt, ...] = ()
    continued: int = 0
    replayed_input_tokens: int = 0
    placed: tuple[Expected, ...] = ()
    headers: Headers = field(default_factory=list)
    wants_cost: bool = False

    def permitted(
        self, model: str, policy: str, input_tokens: int, output_tokens: int | None, *, shows_replica: bool
    ) -> None:
        """It is for a model its tenant may use, by the policies of this version, with about such a prompt and an answer
        no longer than that."""
        self.model, self.policy, self.shows_replica = model, policy, shows_replica
        self.asked_input_tokens, self.asked_output_tokens = input_tokens, output_tokens or 0

    def answer_headers(self) -> Headers:
        """What every answer to this call carries. Anthropic's SDK looks for its own name of the request id."""
        request_id, policy = self.id.encode(), self.policy.encode()
        headers = [(b"x-request-id", request_id), (POLICY, policy), *self.headers]
        if self.endpoint is Endpoint.MESSAGES:
            headers.insert(1, (b"request-id", request_id))
        if self.shows_replica and self.replica:
            pool = f"; pool={self.pool}" if self.pool else ""
            headers.append((REPLICA, f"{self.replica}{pool}".encode()))
        return headers

    def event(self, outcome: Outcome, *, now_ms: int, cost_nanousd: int = 0, price_epoch: str = "") -> UsageEvent:
        """The usage event of this call, ended so, now."""
        metered = outcome.metered
        return UsageEvent(
            id=self.id,
            tenant=self.tenant,
            key=self.key,
            model=self.model,
            endpoint=self.endpoint.path,
            status=outcome.status,
            replica=self.replica,
            pool=self.pool,
            code=outcome.code,
            usage=metered.usage,
            estimated=metered.estimated,
            cached_predicted=metered.cached_predicted,
            cost_nanousd=cost_nanousd,
            price_epoch=price_epoch,
            arrived_ms=self.arrived_ms,
            admitted_ms=self.admitted_ms,
            first_token_ms=self.first_token_ms,
            ended_ms=now_ms,
            user=self.user,
            tags=self.tags,
            samples=metered.samples,
            undelivered_input_max=metered.undelivered_input_max,
            undelivered_output_max=metered.undelivered_output_max,
            failed_attempts=self.failed_attempts,
            policy=self.policy,
            queued_ms=self.queued_ms,
            refused_by=outcome.refused_by,
            asked_input_tokens=0 if metered.usage.input_tokens else self.asked_input_tokens,
            asked_output_tokens=self.asked_output_tokens,
            continued=self.continued,
            replayed_input_tokens=self.replayed_input_tokens,
            placed=self.placed,
        )


def decided_headers(decision: Grant | Denial, price: Price | None) -> Headers:
    """How the limits stand, and which price holds."""
    headers = ratelimit_headers(decision)
    if price is not None:
        headers.append((PRICE_EPOCH, price.epoch.encode()))
    return headers


class Outcome(Struct, frozen=True):
    """How a request ended, and what is billed of it. `code` is the error's, if there was one; `refused_by` is the rule
    that refused it, if one did."""

    status: Status
    metered: Metered = NOTHING
    code: str = ""
    refused_by: RefusedBy | None = None


class Reservation:
    """What a request holds while it runs. `settle` turns it into what was used, once; leaving the block makes sure.

    `meter` knows what has been used so far.
    """

    def __init__(
        self,
        call: Call,
        tenant: TenantSpec,
        scopes: Scopes,
        holding: Holding,
        price: Price | None,
        *,
        count_prompt: Callable[[], Awaitable[PromptSize | None]],
        meter: Meter,
        ledger: Ledger,
        telemetry: Telemetry,
        alerts: Alerts,
        clock: Clock,
    ) -> None:
        self.meter = meter
        self._call = call
        self._tenant = tenant
        self._scopes = scopes
        self._holding = holding
        self._count_prompt = count_prompt
        self._price = price
        self._ledger = ledger
        self._telemetry = telemetry
        self._alerts = alerts
        self._clock = clock
        self._lease: Lease | None = None
        self._slices: list[Lease] = []
        self._held_nanousd = self._held_tokens = 0
        self._cost_nanousd: int | None = None
        self._stood_s = 0.0

    @property
    def price(self) -> Price | None:
        """What it is billed at; None: nothing."""
        return self._price

    def pay(self, price: Price | None) -> None:
        """It is billed at this price, which is not beyond what is held: see `Price.dearest`."""
        self._price = price
        headers = self._call.headers
        headers[:] = [header for header in headers if header[0] != PRICE_EPOCH]
        if price is not None:
            headers.append((PRICE_EPOCH, price.epoch.encode()))

    @property
    def extends(self) -> bool:
        """Whether it holds more as the answer grows: then nothing goes to the client before `cover` has said so."""
        return self._holding.extends

    @property
    def output_cap(self) -> int | None:
        """What each answer has to be cut to by its engine, since no more could be held for it; None: nothing."""
        return self._holding.output_cap

    async def __aenter__(self) -> Reservation:
        """Raises `Refused`: 429 for a limit, 503 while limits cannot be checked."""
        try:
            decision = await self._reserve()
        except StoreUnavailable as error:
            log.warning("nothing can be reserved: %s", error)
            raise Refused(refusals.STORE_AWAY) from error
        except JournalUnavailable as error:
            log.warning("nothing can be booked: %s", error)
            raise Refused(refusals.JOURNAL_AWAY) from error
        self._call.headers += decided_headers(decision, self._price)
        if decision.notes:
            self._tell(decision)
        if isinstance(decision, Denial):
            self._telemetry.metrics.count_denial(self._call.tenant, decision.scope_kind, decision.dimension)
            raise Refused(refusal(decision))
        self._lease = decision.lease
        self._call.admitted_ms = self._clock.now_ms()
        self._ledger.watch(self._lease, self.snapshot)
        self._telemetry.metrics.running += 1
        return self

    def _tell(self, decision: Grant | Denial) -> None:
        """What limits that do not refuse have to say: to the client, in metrics, to the webhook."""
        call, metrics, now_ms = self._call, self._telemetry.metrics, self._clock.now_ms()
        call.headers += soft_limit_headers(decision.notes)
        for note in decision.notes:
            if note.percent is not None:
                until_ms = note.holds_until_ms(now_ms)
                metrics.show_soft(note.kind, note.of, note.dimension, ratio=note.percent / 100, until_ms=until_ms)
            elif isinstance(decision, Grant):
                metrics.count_audited(call.tenant, note.kind, note.of, note.dimension)
        self._alerts.tell(call.tenant, decision.notes)
        log.debug("limits that do not refuse", extra={"data": {"request_id": call.id, "limits": decision.notes}})

    async def _reserve(self) -> Grant | Denial:
        """Asks for the most it can use. Where that is refused and a smaller hold is as safe, asks for that: once the
        prompt has been counted, and for a shorter answer where the policy wants that."""
        decision = await self._ask(self._holding)
        if not (isinstance(decision, Denial) and decision.dimension in HELD):
            return decision
        if self._holding.is_worth_counting(decision) and (size := await self._count_prompt()) is not None:
            self.meter.counted(size)
            decision = await self._ask(self._holding.counted(size))
        for _ in range(SHORTER_TRIES):
            shorter = self._holding.affordable(decision) if isinstance(decision, Denial) else None
            if shorter is None:
                break
            decision = await self._ask(shorter)
        return self._holding.least_denied(decision) if isinstance(decision, Denial) else decision

    async def _ask(self, holding: Holding) -> Grant | Denial:
        """Asks for this one, which is what it holds where that is granted."""
        self._holding, ask = holding, holding.ask(self._call.id)
        self._held_nanousd, self._held_tokens = ask.nanousd, ask.most_tokens
        return await self._ledger.reserve(self._tenant, ask, self._scopes)

    async def cover(self, scanner: StreamScanner) -> bool:
        """Whether what the stream has got to is held, so that it may go to the client; holds more for it if need be.

        Waits up to `HOLD_WAIT_S` for what others hold and may not use. Raises `StoreUnavailable`.
        """
        usage = scanner.usage() or Usage()
        # An engine that does not count as it goes may have generated anything by its first event.
        needed = usage.output_tokens if usage.input_tokens else self._holding.output_most * bool(scanner.output_events)
        while (allowed := self._output_held(usage.input_tokens or self._holding.input_most)) < needed:
            if not await self._extend(max(needed - allowed, min(SLICE_TOKENS, self._holding.output_most - allowed))):
                if self.meter.delivered is None:
                    self.meter.delivered = Usage(input_tokens=usage.input_tokens)
                return False
        self.meter.delivered = usage
        return True

    def _output_held(self, input_tokens: int) -> int:
        """Output tokens that are paid for, whatever part of the prompt turns out to be cached."""
        tokens = self._held_tokens - input_tokens
        price = self._holding.price
        paid = None if price is None else price.output_within(self._held_nanousd, input_tokens)
        return tokens if paid is None else min(tokens, paid)

    async def _extend(self, tokens: int) -> bool:
        """Holds so many more output tokens, or as many as there are; False when there is not one."""
        if self._lease is None:
            return False
        price = self._holding.price
        while True:
            nanousd = 0 if price is None else price.ceiling_nanousd(0, tokens)
            ask = Ask(self._call.id, tokens, nanousd, output_tokens=tokens, most_tokens=tokens)
            decision = await self._ledger.extend(self._tenant, self._lease, ask, self._scopes)
            if isinstance(decision, Grant):
                self._slices.append(decision.lease)
                self._held_nanousd += nanousd
                self._held_tokens += tokens
                return True
            left = output_left(decision, 0, price)
            if left is not None and 1 <= left < tokens:
                tokens = left
            elif decision.retry_after_ms is None or self._stood_s >= HOLD_WAIT_S:
                return False
            else:
                self._stood_s += HOLD_AGAIN_S
                await asyncio.sleep(HOLD_AGAIN_S)

    async def settle(self, outcome: Outcome) -> None:
        """Books what was used and gives back the rest. A caller cancelled while it waits has booked all the same.

        Raises `JournalUnavailable` when that cannot be written to disk: then the answer may not end as if it were.
        """
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        if self._slices:
            lease = replace(lease, slices=tuple(self._slices))
        event = self._event(outcome)
        self._cost_nanousd = event.cost_nanousd
        self._telemetry.count(event, self._call.traceparent)
        await self._ledger.settle(event, lease)

    def told_cost(self) -> tuple[str, str] | None:
        """What was settled, in dollars, and at which epoch's price, where the client asked; None: nothing to tell."""
        if not self._call.wants_cost or self._price is None or self._cost_nanousd is None:
            return None
        return f"{usd_of_nanousd(self._cost_nanousd):f}", self._price.epoch

    def snapshot(self) -> UsageEvent:
        """The event as it would be if this gateway died now: `gateway_lost`, what has been used so far and its cost.

        For the journal, which keeps the last one of every open request, taken about once a second: what a gateway that
        died bills. Pure, some 10 µs, and good at any time between admission and settlement; before the request has
        been placed it has used nothing. A Responses or Messages stream is at its least: a token for each event, and a
        responses prompt, which nobody has told yet, at the least it can have.
        """
        return self._event(Outcome("gateway_lost", self.meter.cut()))

    def _event(self, outcome: Outcome) -> UsageEvent:
        price = self._price
        return self._call.event(
            outcome,
            now_ms=self._clock.now_ms(),
            cost_nanousd=price.cost_nanousd(outcome.metered.usage) if price is not None else 0,
            price_epoch=price.epoch if price is not None else "",
        )

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._telemetry.metrics.running -= 1
        if self._lease is None:
            return
        code = "cancelled" if kind is asyncio.CancelledError else "internal_error"
        await self.settle(Outcome("upstream_lost", self.meter.cut(), code))
