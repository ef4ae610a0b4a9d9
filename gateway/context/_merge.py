"""Whose limit binds a request: the smallest of its key's, its tenant's, its class's and its model's."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.policy import ClassSpec, ContextSpec, ModelSpec, TenantSpec

from ._limits import ContextLimits

_Limit = tuple[int | None, str, bool]


def limits_for(
    tenant: TenantSpec, key: str, *, service: ClassSpec, model: ModelSpec, context_tokens: int | None
) -> ContextLimits:
    """The limits of a request with this key for this model, whose engines serve a context of `context_tokens`."""
    of_key = tenant.context_of_key(key)
    if of_key is None and tenant.context is None and service.context is None and model.context is None:
        return ContextLimits(
            context=context_tokens,
            input_max=tenant.limits.max_input_tokens,
            output_max=tenant.limits.max_output_tokens,
        )
    of_tenant = tenant.context or ContextSpec()
    by = tenant.limits
    blocks = (
        (of_key, f"key {key}"),
        (of_tenant, ""),
        (
            ContextSpec(
                max_input_tokens=by.max_input_tokens,
                max_output_tokens=by.max_output_tokens,
                on_excess=of_tenant.on_excess,
            ),
            "",
        ),
        (service.context, f"class {service.name}"),
        (model.context, f"model {model.name}"),
    )
    named = [(block, whose, block.on_excess == "cap") for block, whose in blocks if block is not None]
    input_max, input_of, _ = _smallest((block.max_input_tokens, whose, caps) for block, whose, caps in named)
    output_max, output_of, output_caps = _smallest(
        (block.max_output_tokens, whose, caps) for block, whose, caps in named
    )
    total_max, total_of, total_caps = _smallest((block.max_total_tokens, whose, caps) for block, whose, caps in named)
    if total_max is not None and context_tokens is not None and context_tokens <= total_max:
        total_max = None
    return ContextLimits(
        context=context_tokens,
        input_max=input_max,
        output_max=output_max,
        total_max=total_max,
        input_of=input_of,
        output_of=output_of,
        total_of=total_of,
        context_caps=model.context is not None and model.context.on_excess == "cap",
        output_caps=output_caps,
        total_caps=total_caps,
    )


def _smallest(limits: Iterable[_Limit]) -> _Limit:
    """The smallest, the first of equals; unlimited when none is set."""
    smallest: _Limit = (None, "", False)
    for limit in limits:
        if limit[0] is not None and (smallest[0] is None or limit[0] < smallest[0]):
            smallest = limit
    return smallest
