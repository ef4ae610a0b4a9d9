"""What a tenant's request asks of the limits, from what the ledger kept of it."""

from __future__ import annotations

import msgspec

from gateway.admission import Holding
from gateway.context import ContextLimits, PromptSize, bounded, check, granted, limits_for, surely_fits
from gateway.policy import ModelSpec, Policies, Scopes, TenantSpec
from gateway.pricing import Price
from gateway.wire import Endpoint, RequestView

from ._arrivals import Arrival

BYTES_PER_TOKEN = 4
"""Of a prompt, which bound it before it is counted: English text. How many it had is not kept."""

_ENDPOINTS = {endpoint.path: endpoint for endpoint in Endpoint}


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one tenant's requests with one key for one model. Where it is not `bounded` nothing waits."""

    tenant: TenantSpec
    scopes: Scopes
    model: ModelSpec
    endpoint: Endpoint
    price: Price | None
    cover: Price | None
    limits: ContextLimits
    bounded: bool
    ttft_ms: int | None
    itl_ms: int | None
    priority: int
    weight: float
    max_wait_ms: int
    max_share: float
    shortest_first: bool

    def holding(self, arrival: Arrival) -> Holding | str:
        """What it wants to hold, or the code that refuses it for its length: the steps of `Lifecycle.serve`. A prompt
        that its bytes do not let pass is counted."""
        limits, tokens = self.limits, arrival.input_tokens
        view = RequestView(
            endpoint=self.endpoint,
            model="",
            prompt=b"",
            added_bytes=BYTES_PER_TOKEN * tokens,
            stream=True,
            output_tokens=arrival.asked_output_tokens or None,
        )
        is_far = not self.endpoint.computes or surely_fits(view, limits)
        size = PromptSize(total=tokens, longest=tokens, exact=not is_far)
        if not is_far and (refusal := check(view, size, limits)) is not None:
            return refusal.code
        view, limits = bounded(view, limits, granted(view, size, limits))
        return Holding.of(view, size, limits, price=self.cover, tenant=self.tenant.limits, scopes=self.scopes)


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
    return Terms(
        tenant=tenant,
        scopes=policies.scopes_of(tenant, arrival.key, model.name),
        model=model,
        endpoint=_ENDPOINTS.get(arrival.endpoint, Endpoint.CHAT),
        price=policies.prices.get(model.name),
        cover=policies.covers.get(model.name),
        limits=limits_for(
            tenant,
            arrival.key,
            service=service,
            model=model,
            context_tokens=model.context_tokens or context_tokens,
        ),
        bounded=service.slo.bounds,
        ttft_ms=service.slo.ttft_p99_ms,
        itl_ms=service.slo.itl_p99_ms,
        priority=service.priority,
        weight=float(service.weight),
        max_wait_ms=int(service.max_wait_s * 1000),
        max_share=float(service.max_share),
        shortest_first=service.order == "shortest",
    )
