"""What a tenant's request asks of the limits: what `lifecycle` reckons, from what the ledger kept of the request."""

from __future__ import annotations

import msgspec

from gateway.admission import Ask
from gateway.context import (
    TEMPLATE_TOKENS,
    ContextLimits,
    check,
    estimate,
    granted,
    limits_for,
    output_most,
    surely_fits,
)
from gateway.policy import ModelSpec, Policies, Scopes, TenantSpec
from gateway.pricing import Price
from gateway.wire import Endpoint, RequestView

from ._arrivals import Arrival

LIKELY_OUTPUT_TOKENS = 512
"""Of an answer that its client did not bound; `lifecycle` holds as much of a limit per minute."""

PROMPT_BYTES_PER_TOKEN = 4
"""A prompt that nobody counted is held to at most a token for each byte: how many it had is not kept."""

_ENDPOINTS = {endpoint.path: endpoint for endpoint in Endpoint}


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one tenant's requests with one key for one model. Where it is not `bounded` nothing waits."""

    tenant: TenantSpec
    scopes: Scopes
    model: ModelSpec
    endpoint: Endpoint
    price: Price | None
    limits: ContextLimits
    context_tokens: int
    bounded: bool
    ttft_ms: int | None
    itl_ms: int | None
    priority: int
    weight: float
    max_wait_ms: int

    def answer_most(self, arrival: Arrival) -> int | str:
        """The longest answer it may get, in tokens, 0 where its endpoint gives none; or the code that refuses it for
        its length."""
        endpoint, limits = self.endpoint, self.limits
        if not endpoint.computes:
            return 0
        tokens = arrival.input_tokens
        view = RequestView(
            endpoint=endpoint,
            model="",
            prompt=b"",
            prompt_tokens=tokens,
            longest_tokens=tokens,
            output_tokens=arrival.asked_output_tokens or None,
        )
        size = estimate(view)
        if not surely_fits(view, limits) and (refusal := check(view, size, limits)) is not None:
            return refusal.code
        most = output_most(view, tokens, limits)
        bound = granted(view, size, limits)
        return most if bound is None else min(most, bound)

    def ask(self, arrival: Arrival, number: int, most: int) -> Ask:
        """What it asks of the accounts, where its answer may have `most` tokens."""
        if not self.endpoint.computes:
            return Ask(str(number), 0, 0)
        limits, tokens = self.tenant.limits, arrival.input_tokens
        likely = likely_output = most
        if not arrival.asked_output_tokens:
            likely = min(most, LIKELY_OUTPUT_TOKENS)
            if limits.tokens_per_minute is not None:
                likely = max(0, min(likely, limits.tokens_per_minute - tokens))
            likely_output = likely
            if limits.output_tokens_per_minute is not None:
                likely_output = min(likely, limits.output_tokens_per_minute)
        input_most = min(self.context_tokens, PROMPT_BYTES_PER_TOKEN * tokens + TEMPLATE_TOKENS)
        nanousd = 0
        if self.price is not None and self.scopes.is_budgeted:
            nanousd = self.price.ceiling_nanousd(input_most, most)
        return Ask(str(number), tokens + likely, nanousd, tokens, likely_output, input_most + most)


def terms_of(policies: Policies, arrival: Arrival, context_tokens: int) -> Terms | str:
    """The terms of all that come like `arrival`, or the code by which all of them are refused. `context_tokens` is the
    engine's."""
    tenant = policies.tenants.get(arrival.tenant)
    if tenant is None:
        return "invalid_api_key"
    model = policies.model_named(arrival.model)
    if model is None or not tenant.may_use(model):
        return "model_not_found"
    service = policies.class_of(tenant)
    context_tokens = model.context_tokens or context_tokens
    return Terms(
        tenant=tenant,
        scopes=policies.scopes_of(tenant, arrival.key, model.name),
        model=model,
        endpoint=_ENDPOINTS.get(arrival.endpoint, Endpoint.CHAT),
        price=policies.prices.get(model.name),
        limits=limits_for(tenant, arrival.key, service=service, model=model, context_tokens=context_tokens),
        context_tokens=context_tokens,
        bounded=service.slo.bounds,
        ttft_ms=service.slo.ttft_p99_ms,
        itl_ms=service.slo.itl_p99_ms,
        priority=service.priority,
        weight=float(service.weight),
        max_wait_ms=int(service.max_wait_s * 1000),
    )
