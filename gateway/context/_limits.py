"""May this prompt and this answer be that long? Cheap bounds first; an exact count only where it decides."""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import Refusal
from gateway.wire import Endpoint, RequestView

TEMPLATE_TOKENS = 256
"""Room for what a chat template adds to a prompt's own bytes: roles, separators, a default system text."""
RAW_BYTES_PER_TOKEN_MAX = 768
"""JSON spends at most 6 bytes on one byte of text (`\\u0041`), and no known vocabulary has tokens over 128 bytes."""
BYTES_PER_TOKEN = 4
"""English text in a vocabulary of 32k to 128k: the usual estimate, where nothing hangs on it."""

_PROMPT_PARAM = {Endpoint.COMPLETIONS: "prompt", Endpoint.RESPONSES: "input", Endpoint.EMBEDDINGS: "input"}


class ContextLimits(Struct, frozen=True, kw_only=True, gc=False):
    """What a request must stay below, in tokens; None: unlimited. `context` binds each prompt with its answer."""

    context: int | None
    input_max: int | None
    output_max: int | None


class PromptSize(Struct, frozen=True, kw_only=True, gc=False):
    """Prompt tokens of one request: all prompts together, and the longest of them. `exact`: counted by the engine."""

    total: int
    longest: int
    exact: bool


def least(view: RequestView) -> PromptSize:
    """A lower bound."""
    if view.prompt_tokens is not None:
        return _known(view)
    total = len(view.prompt) // RAW_BYTES_PER_TOKEN_MAX
    return PromptSize(total=total, longest=total // view.prompts, exact=False)


def most(view: RequestView) -> PromptSize:
    """An upper bound: a token is at least one byte of the prompt's JSON, or of the template."""
    if view.prompt_tokens is not None:
        return _known(view)
    total = len(view.prompt) + TEMPLATE_TOKENS
    return PromptSize(total=total, longest=total, exact=False)


def prompt_most(view: RequestView, size: PromptSize, limits: ContextLimits) -> int:
    """The most tokens all prompts together can have, given what is known of their size; the context binds each."""
    total = size.total if size.exact else most(view).total
    return total if limits.context is None else min(total, limits.context * view.prompts)


def estimate(view: RequestView) -> PromptSize:
    """What it probably is."""
    if view.prompt_tokens is not None:
        return _known(view)
    total = max(1, len(view.prompt) // BYTES_PER_TOKEN)
    return PromptSize(total=total, longest=max(1, total // view.prompts), exact=False)


def surely_fits(view: RequestView, limits: ContextLimits) -> bool:
    """Whether even the most the prompt can have passes `check`: most requests are far from any limit."""
    output = view.output_tokens or 0
    if limits.output_max is not None and output > limits.output_max:
        return False
    if view.prompt_tokens is None:
        prompt = longest = len(view.prompt) + TEMPLATE_TOKENS
    else:
        prompt, longest = view.prompt_tokens, view.longest_tokens or 0
    if limits.input_max is not None and prompt > limits.input_max:
        return False
    needed = max(output, 1) if view.endpoint.generates else 0
    return limits.context is None or longest + needed <= limits.context


def check(view: RequestView, size: PromptSize, limits: ContextLimits) -> Refusal | None:
    """What refuses a prompt of this size, if anything does. The output limit needs no size and is checked too."""
    output = view.output_tokens or 0
    if limits.output_max is not None and output > limits.output_max:
        return _refusal(
            f"You asked for {output} output tokens ('{view.output_field}'), but your limit is {limits.output_max}. "
            f"Set '{view.output_field}' to at most {limits.output_max}.",
            view.output_field,
        )
    if limits.input_max is not None and size.total > limits.input_max:
        counted = f"{'' if size.exact else 'at least '}{size.total} tokens"
        return _refusal(
            f"Your prompt has {counted}, but your limit is {limits.input_max} input tokens. Shorten the prompt.",
            _prompt_param(view),
        )
    if limits.context is None:
        return None
    needed = max(output, 1) if view.endpoint.generates else 0
    if size.longest + needed > limits.context:
        prompt = f"{'' if size.exact else 'at least '}{size.longest} tokens"
        if output and size.longest < limits.context:
            return _refusal(
                f"This model's context length is {limits.context} tokens. Your prompt has {prompt} and you asked for "
                f"{output} output tokens, {size.longest + output} in all. Shorten the prompt, or set "
                f"'{view.output_field}' to at most {limits.context - size.longest}.",
                view.output_field,
            )
        return _refusal(
            f"This model's context length is {limits.context} tokens, but your prompt has {prompt}. "
            "Shorten the prompt.",
            _prompt_param(view),
        )
    return None


def output_most(view: RequestView, prompt_least: int, limits: ContextLimits) -> int:
    """The most output tokens one answer may get, by its own bound, the tenant's limit and the context."""
    if not view.endpoint.generates:
        return 0
    tokens = view.output_tokens
    if limits.output_max is not None and (tokens is None or limits.output_max < tokens):
        tokens = limits.output_max
    if limits.context is not None:
        room = limits.context - prompt_least
        if tokens is None or room < tokens:
            tokens = room if room > 0 else 1
    return tokens or 0


def _known(view: RequestView) -> PromptSize:
    assert view.prompt_tokens is not None
    assert view.longest_tokens is not None
    return PromptSize(total=view.prompt_tokens, longest=view.longest_tokens, exact=True)


def _prompt_param(view: RequestView) -> str:
    return _PROMPT_PARAM.get(view.endpoint, "messages")


def _refusal(message: str, param: str) -> Refusal:
    return Refusal(status=400, code="context_length_exceeded", message=message, param=param)
