"""What a request asks of its tenant's account before it runs."""

from __future__ import annotations

from gateway.context import ContextLimits, PromptSize, least, output_most, prompt_most
from gateway.policy import Scopes, TenantSpec
from gateway.pricing import NANOUSD_MAX, Price
from gateway.wire import RequestView

from ._values import Ask

DEFAULT_OUTPUT_TOKENS = 512
"""Tokens/min held for an answer whose client named no bound; the difference is settled when it is known."""


def ask_for(
    view: RequestView,
    size: PromptSize,
    limits: ContextLimits,
    *,
    tenant: TenantSpec,
    scopes: Scopes,
    price: Price | None,
    lease_id: str,
) -> Ask:
    """What to hold: for dollars the most the request can cost, for tokens/min what it will probably use."""
    if not view.endpoint.computes:
        return Ask(lease_id=lease_id, tokens=0, nanousd=0)
    input_most, answers_most = most_tokens(view, size, limits)
    tokens = _likely_tokens(view, size, answers_most, tenant.limits.tokens_per_minute)
    nanousd = 0
    if price is not None and scopes.is_budgeted:
        # An absurd `n` multiplies to more than the ledger's numbers hold; no budget holds that much either.
        nanousd = min(NANOUSD_MAX, price.ceiling_nanousd(input_most, answers_most))
    return Ask(
        lease_id=lease_id,
        tokens=tokens,
        nanousd=nanousd,
        input_tokens=size.total,
        output_tokens=_likely_output(view, tokens - size.total, tenant.limits.output_tokens_per_minute),
        most_tokens=input_most + answers_most,
    )


def most_tokens(view: RequestView, size: PromptSize, limits: ContextLimits) -> tuple[int, int]:
    """The most input and output tokens that all prompts and answers of a request can have."""
    answers_most = output_most(view, least(view).longest, limits) * view.answers
    return prompt_most(view, size, limits), answers_most


def _likely_tokens(view: RequestView, size: PromptSize, answers_most: int, per_minute: int | None) -> int:
    """Tokens/min to hold: the client's own bound; a usual answer where it named none, cut to what can ever fit."""
    if view.output_tokens is not None or not view.endpoint.generates:
        return size.total + answers_most
    likely = min(answers_most or DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS * view.answers)
    return size.total + (likely if per_minute is None else max(0, min(likely, per_minute - size.total)))


def _likely_output(view: RequestView, likely: int, per_minute: int | None) -> int:
    """Output tokens/min to hold, of `likely` ones: cut as above where the client named no bound."""
    if per_minute is None or view.output_tokens is not None or not view.endpoint.generates:
        return likely
    return min(likely, per_minute)
