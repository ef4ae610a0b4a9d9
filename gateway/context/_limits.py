"""May this prompt and this answer be that long? Cheap bounds first; an exact count only where it decides."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import Refusal, RefusedBy
from gateway.wire import Endpoint, RequestView

TEMPLATE_TOKENS = 256
"""Room for what a chat template adds to a prompt's own bytes: roles, separators, a default system text."""
RAW_BYTES_PER_TOKEN_MAX = 768
"""JSON spends at most 6 bytes on one byte of text (`\\u0041`), and no known vocabulary has tokens over 128 bytes."""
BYTES_PER_TOKEN = 4
"""English text in a vocabulary of 32k to 128k: the usual estimate, where nothing hangs on it."""

UNBOUNDED_TOKENS = 2**24
"""More than any model's context, for prompts whose bytes bound nothing."""
ATTACHMENT_TOKENS = 1000
"""A picture of 900 x 900 in patches of 28 x 28 (Qwen-VL); again where nothing hangs on it."""

_PROMPT_PARAM = {Endpoint.COMPLETIONS: "prompt", Endpoint.RESPONSES: "input", Endpoint.EMBEDDINGS: "input"}


class ContextLimits(Struct, frozen=True, kw_only=True, gc=False):
    """What a request must stay below, in tokens; None: unlimited.

    `context` is the engine's and binds each prompt with its answer; so does `total_max`, which only the gateway knows.
    `input_of`, `output_of` and `total_of` say whose limit that is, for its refusal: empty is the tenant's own, else it
    is `key ID`, `class NAME` or `model NAME`. Where a limit caps, an answer that is asked to be longer is cut to what
    it allows, and only a prompt without room for a single token is refused.
    """

    context: int | None
    input_max: int | None
    output_max: int | None
    total_max: int | None = None
    input_of: str = ""
    output_of: str = ""
    total_of: str = ""
    context_caps: bool = False
    output_caps: bool = False
    total_caps: bool = False


class PromptSize(Struct, frozen=True, kw_only=True, gc=False):
    """Prompt tokens of one request: all prompts together, and the longest of them. `exact`: counted by the engine."""

    total: int
    longest: int
    exact: bool


def least(view: RequestView) -> PromptSize:
    """A lower bound."""
    if view.prompt_tokens is not None:
        return _known(view)
    total = (len(view.prompt) - view.attachment_bytes) // RAW_BYTES_PER_TOKEN_MAX
    return PromptSize(total=total, longest=total // view.prompts, exact=False)


def most(view: RequestView) -> PromptSize:
    """An upper bound: a token is at least one byte of the prompt's JSON, or of the template. A picture can be more."""
    if view.prompt_tokens is not None:
        return _known(view)
    total = _text_most(view)
    return PromptSize(total=total, longest=total, exact=False)


def prompt_most(view: RequestView, size: PromptSize, limits: ContextLimits) -> int:
    """The most tokens all prompts together can have, given what is known of their size; the context binds each."""
    total = size.total if size.exact else most(view).total
    return total if limits.context is None else min(total, limits.context * view.prompts)


def estimate(view: RequestView) -> PromptSize:
    """What it probably is."""
    if view.prompt_tokens is not None:
        return _known(view)
    text = (len(view.prompt) - view.attachment_bytes) // BYTES_PER_TOKEN
    total = max(1, text + view.attachments * ATTACHMENT_TOKENS)
    return PromptSize(total=total, longest=max(1, total // view.prompts), exact=False)


def surely_fits(view: RequestView, limits: ContextLimits) -> bool:
    """Whether even the most the prompt can have passes `check`, and `granted` is the same whatever its size is: most
    requests are far from any limit."""
    output = view.output_tokens or 0
    output_max = limits.output_max
    if output_max is not None and output > output_max:
        if not limits.output_caps:
            return False
        output = output_max
    if view.prompt_tokens is None:
        prompt = longest = _text_most(view)
    else:
        prompt, longest = view.prompt_tokens, view.longest_tokens or 0
    if limits.input_max is not None and prompt > limits.input_max:
        return False
    if not view.endpoint.generates:
        return _within(longest, limits)
    if limits.total_max is not None:
        answer = output or output_max
        if answer is None or longest + answer > limits.total_max:
            return False
    return limits.context is None or longest + (output or 1) <= limits.context


def check(view: RequestView, size: PromptSize, limits: ContextLimits) -> Refusal | None:
    """What refuses a prompt of this size, if anything does. The output limit needs no size and is checked too."""
    output = view.output_tokens or 0
    if limits.output_max is not None and output > limits.output_max:
        if not limits.output_caps:
            return _refusal(
                f"You asked for {output} output tokens ('{view.output_field}'), but {_whose(limits.output_of)} is "
                f"{limits.output_max}. Set '{view.output_field}' to at most {limits.output_max}.",
                view.output_field,
                RefusedBy(dimension="max_output_tokens", scope=limits.output_of, limit=limits.output_max, asked=output),
            )
        output = limits.output_max
    if limits.input_max is not None and size.total > limits.input_max:
        return _refusal(
            f"Your prompt has {_counted(size, size.total)}, but {_whose(limits.input_of)} is {limits.input_max} input "
            "tokens. Shorten the prompt.",
            _prompt_param(view),
            RefusedBy(dimension="max_input_tokens", scope=limits.input_of, limit=limits.input_max, asked=size.total),
        )
    if limits.total_max is not None and (limits.context is None or limits.total_max < limits.context):
        whose = _whose(limits.total_of)
        caps, said = limits.total_caps, f"{whose[0].upper()}{whose[1:]} is {limits.total_max} tokens in all"
        rule = RefusedBy(dimension="max_total_tokens", scope=limits.total_of, limit=limits.total_max)
    elif limits.context is not None:
        caps, said = limits.context_caps, f"This model's context length is {limits.context} tokens"
        rule = RefusedBy(dimension="context_tokens", scope=f"model {view.model[:100]}", limit=limits.context)
    else:
        return None
    return _check_whole(view, size, rule, output=1 if caps else output, said=said)


def _check_whole(view: RequestView, size: PromptSize, rule: RefusedBy, *, output: int, said: str) -> Refusal | None:
    """What refuses a prompt with its answer. `said` begins the message: what the rule's limit is."""
    needed = max(output, 1) if view.endpoint.generates else 0
    bound = rule.limit
    if size.longest + needed <= bound:
        return None
    rule = replace(rule, asked=size.longest + needed)
    prompt = _counted(size, size.longest)
    if output > 1 and size.longest < bound:
        return _refusal(
            f"{said}. Your prompt has {prompt} and you asked for {output} output tokens, {size.longest + output} in "
            f"all. Shorten the prompt, or set '{view.output_field}' to at most {bound - size.longest}.",
            view.output_field,
            rule,
        )
    return _refusal(f"{said}, but your prompt has {prompt}. Shorten the prompt.", _prompt_param(view), rule)


def granted(view: RequestView, size: PromptSize, limits: ContextLimits) -> int | None:
    """The bound of each answer that the engine has to be told instead of the client's, for a request that passes
    `check`; None: what the client says may stay. Where nobody could count the prompt it is by the estimate."""
    if not view.endpoint.generates:
        return None
    asked, allowed = view.output_tokens, limits.output_max
    if limits.total_max is not None:
        allowed = _smaller(allowed, max(1, limits.total_max - size.longest))
    if asked is None:
        return allowed
    if limits.context is not None and limits.context_caps:
        allowed = _smaller(allowed, max(1, limits.context - size.longest))
    return allowed if allowed is not None and asked > allowed else None


def bounded(view: RequestView, limits: ContextLimits, bound: int | None) -> tuple[RequestView, ContextLimits]:
    """Both as they are once the engine is told this bound of each answer, which `granted` says; None: as they were."""
    if bound is None:
        return view, limits
    if view.output_tokens is None:
        return view, replace(limits, output_max=bound)
    return replace(view, output_tokens=bound), limits


def output_most(view: RequestView, prompt_least: int, limits: ContextLimits) -> int:
    """The most output tokens one answer may get, by its own bound, its limit and the context. What `granted` says is
    either of the first two by then."""
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


def _text_most(view: RequestView) -> int:
    if view.attachments or view.open_ended:
        return UNBOUNDED_TOKENS
    return len(view.prompt) + view.added_bytes + TEMPLATE_TOKENS


def _within(longest: int, limits: ContextLimits) -> bool:
    """Whether a prompt without an answer is short enough."""
    return (limits.context is None or longest <= limits.context) and (
        limits.total_max is None or longest <= limits.total_max
    )


def _smaller(one: int | None, other: int) -> int:
    return other if one is None or other < one else one


def _counted(size: PromptSize, tokens: int) -> str:
    return f"{'' if size.exact else 'at least '}{tokens} tokens"


def _known(view: RequestView) -> PromptSize:
    assert view.prompt_tokens is not None
    assert view.longest_tokens is not None
    return PromptSize(total=view.prompt_tokens, longest=view.longest_tokens, exact=True)


def _prompt_param(view: RequestView) -> str:
    return _PROMPT_PARAM.get(view.endpoint, "messages")


def _refusal(message: str, param: str, rule: RefusedBy) -> Refusal:
    return Refusal(status=400, code="context_length_exceeded", message=message, param=param, refused_by=rule)


def _whose(scope: str) -> str:
    """A limit as its client reads of it."""
    kind, _, name = scope.partition(" ")
    match kind:
        case "":
            return "your tenant's limit"
        case "key":
            return "your key's limit"
        case _:
            return f"the limit of {kind} '{name}'"
