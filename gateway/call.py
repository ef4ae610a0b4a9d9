"""One request on its way, how it ended, and what it holds meanwhile."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from msgspec import Struct

from gateway import refusals
from gateway.admission import Ask, Denial, Lease, ratelimit_headers, refusal
from gateway.clock import Clock
from gateway.errors import Refused, RefusedBy
from gateway.meter import NOTHING, Meter, Metered
from gateway.metering import FailedAttempt, JournalUnavailable, Ledger, Status, UsageEvent
from gateway.policy import Scopes, TenantSpec
from gateway.pricing import Price
from gateway.relay import Headers
from gateway.store import StoreUnavailable
from gateway.telemetry import Telemetry
from gateway.wire import Endpoint

log = logging.getLogger(__name__)

POLICY = b"x-mtok-policy"
"""The header by which every answer says which policies decided on it: their version."""


@dataclass(slots=True)
class Call:
    """What is known of a request so far. `headers` are those its answer will carry, whatever the answer is. `policy` is
    the version of the policies that decide on it, `queued_ms` how long it has waited for a replica with room."""

    id: str
    endpoint: Endpoint
    arrived_ms: int
    policy: str = ""
    tenant: str = ""
    key: str = ""
    model: str = ""
    replica: str = ""
    admitted_ms: int = 0
    first_token_ms: int = 0
    queued_ms: int = 0
    asked_input_tokens: int = 0
    asked_output_tokens: int = 0
    traceparent: str = ""
    user: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    failed_attempts: tuple[FailedAttempt, ...] = ()
    headers: Headers = field(default_factory=list)

    def permitted(self, model: str, policy: str, input_tokens: int, output_tokens: int | None) -> None:
        """It is for a model its tenant may use, by the policies of this version, with about such a prompt and an answer
        no longer than that."""
        self.model, self.policy = model, policy
        self.asked_input_tokens, self.asked_output_tokens = input_tokens, output_tokens or 0

    def answer_headers(self) -> Headers:
        """What every answer to this call carries. Anthropic's SDK looks for its own name of the request id."""
        request_id, policy = self.id.encode(), self.policy.encode()
        if self.endpoint is Endpoint.MESSAGES:
            return [(b"x-request-id", request_id), (b"request-id", request_id), (POLICY, policy), *self.headers]
        return [(b"x-request-id", request_id), (POLICY, policy), *self.headers]

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
        )


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
        ask: Ask,
        price: Price | None,
        *,
        meter: Meter,
        ledger: Ledger,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self.meter = meter
        self._call = call
        self._tenant = tenant
        self._scopes = scopes
        self._ask = ask
        self._price = price
        self._ledger = ledger
        self._telemetry = telemetry
        self._clock = clock
        self._lease: Lease | None = None

    async def __aenter__(self) -> Reservation:
        """Raises `Refused`: 429 for a limit, 503 while limits cannot be checked."""
        try:
            decision = await self._ledger.reserve(self._tenant, self._ask, self._scopes)
        except StoreUnavailable as error:
            log.warning("nothing can be reserved: %s", error)
            raise Refused(refusals.STORE_AWAY) from error
        except JournalUnavailable as error:
            log.warning("nothing can be booked: %s", error)
            raise Refused(refusals.JOURNAL_AWAY) from error
        self._call.headers += ratelimit_headers(decision)
        if isinstance(decision, Denial):
            self._telemetry.metrics.count_denial(self._call.tenant, decision.scope_kind, decision.dimension)
            raise Refused(refusal(decision))
        self._lease = decision.lease
        self._call.admitted_ms = self._clock.now_ms()
        self._ledger.watch(self._lease, self.snapshot)
        self._telemetry.metrics.running += 1
        return self

    async def settle(self, outcome: Outcome) -> None:
        """Books what was used and gives back the rest. A caller cancelled while it waits has booked all the same.

        Raises `JournalUnavailable` when that cannot be written to disk: then the answer may not end as if it were.
        """
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        event = self._event(outcome)
        self._telemetry.count(event, self._call.traceparent)
        await self._ledger.settle(event, lease)

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
