"""What is refused again and again: a request that an account refuses without asking is answered as the one before was.

A client that does not wait sends as fast as it is refused, so that a refusal may cost next to nothing: no reservation,
no decision, no event. What does not hold for all of a flood goes the way of every other request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from gateway.admission import Holding, refusal
from gateway.call import Call, Outcome, decided_headers
from gateway.errors import Refusal
from gateway.metering import JournalUnavailable, Ledger, RefusedLately, UsageEvent
from gateway.policy import Scopes, TenantSpec
from gateway.pricing import Price
from gateway.relay import Headers, Outgoing, json_head
from gateway.telemetry import Telemetry

FRESH_MS: Final = 10
"""How old the times of an answer may be: who comes back that much too late has lost nothing."""
KINDS_MAX: Final = 1_000


class _Answer(Struct, frozen=True, gc=False):
    """What one was told, good until `until_ms` for others of its kind. `event` is that one's."""

    lately: RefusedLately
    until_ms: int
    refusal: Refusal
    event: UsageEvent
    scope_kind: str
    head: Headers
    decided: Headers
    content: bytes


class Floods:
    """One worker's."""

    def __init__(self, ledger: Ledger, telemetry: Telemetry, now_ms: Callable[[], int]) -> None:
        self._ledger = ledger
        self._telemetry = telemetry
        self._now_ms = now_ms
        self._answers: dict[tuple[str, ...], _Answer] = {}

    async def refuses(
        self,
        call: Call,
        tenant: TenantSpec,
        scopes: Scopes,
        price: Price | None,
        holding: Holding,
        *,
        outgoing: Outgoing,
    ) -> bool:
        """Whether the request would be refused like another a moment ago; then it has been: counted, and answered."""
        lately = self._ledger.refused_lately(tenant.name)
        if lately is None or call.tags or self._telemetry.tracing.enabled:
            return False
        now_ms = self._now_ms()
        if not lately.covers(tenant.limits, holding.ask(call.id), scopes.others, now_ms):
            return False
        kind = (call.tenant, call.key, call.model, call.endpoint.value, call.user)
        answer = self._answers.get(kind)
        if answer is None or answer.lately is not lately or now_ms >= answer.until_ms:
            if len(self._answers) >= KINDS_MAX:
                self._answers.clear()
            answer = self._answers[kind] = _answer(call, lately, price, now_ms)
        self._telemetry.metrics.count_denial(call.tenant, answer.scope_kind, lately.denial.dimension)
        self._telemetry.metrics.count(answer.event)
        if not self._ledger.counts(answer.event, call.id, now_ms):
            with contextlib.suppress(JournalUnavailable):  # the client hears why it was refused all the same
                await self._ledger.record(_event(call, answer.refusal, now_ms))
        outgoing.prepare(answer.refusal.status, [*answer.head, *call.answer_headers(), *answer.decided])
        await outgoing.end(answer.content)
        return True


def _answer(call: Call, lately: RefusedLately, price: Price | None, now_ms: int) -> _Answer:
    denial = lately.now(now_ms)
    told = refusal(denial)
    content = told.body()
    return _Answer(
        lately=lately,
        until_ms=now_ms + FRESH_MS,
        refusal=told,
        event=_event(call, told, now_ms),
        scope_kind=denial.scope_kind,
        head=[*json_head(content), *told.headers()],
        decided=decided_headers(denial, price),
        content=content,
    )


def _event(call: Call, told: Refusal, now_ms: int) -> UsageEvent:
    return call.event(Outcome("refused", code=told.code, refused_by=told.refused_by), now_ms=now_ms)
