"""What would happen to a request, rule by rule: for operators who ask before a client does.

Everything is decided by the functions that decide on real requests; what is read of an account is given. The queue is
not decided: how long a request waits depends on what else is on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from gateway import refusals
from gateway.context import PromptSize, bounded, check, estimate, granted, limits_for, surely_fits
from gateway.errors import Refusal
from gateway.policy import ClassSpec, ModelSpec, Policies, TenantSpec
from gateway.wire import Endpoint, RequestView

from ._holding import HELD, Holding
from ._left import Left, denial
from ._refusal import refusal
from ._values import Denial
from ._words import later, otherwise

Step = Literal["permit", "measure", "reserve", "queue", "cost"]

TOKENS_MAX: Final = 2**24
"""Where the longest answer that would pass is looked for: no model's context is longer."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """The request that is asked about: a chat of so many tokens; `max_tokens` None is a client that names none. `model`
    may be an alias; `key` is a public id. `now_ms` is the moment (Unix), `context_tokens` what the engines say of the
    model where the policies do not. A prompt that no limit is near to is not counted but bounded by its bytes, so what
    is reserved of days and dollars depends on `bytes_per_token`: 4 is English."""

    tenant: str
    model: str
    prompt_tokens: int
    now_ms: int
    max_tokens: int | None = None
    key: str = ""
    context_tokens: int | None = None
    bytes_per_token: int = 4
    stream: bool = False


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of the policies and its numbers for this request, in the dimension's unit: requests, tokens,
    nano-dollars, milliseconds. None: there is no such number. `scope` is whose rule it is, empty the tenant's own.
    `passes` None is a rule that decides nothing by itself. `reserved` is held by running requests beside what
    `remaining` is left; `retry_after_ms` is when the rule would let the request pass, None where it does now or waiting
    does not help. `text` is what is no number.
    """

    step: Step
    dimension: str
    scope: str
    passes: bool | None = None
    limit: int | None = None
    asked: int | None = None
    remaining: int | None = None
    reserved: int = 0
    retry_after_ms: int | None = None
    resets_at_s: int | None = None
    text: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All rules in the order of a request's life, and what they come to. `code` and `message` are what the client would
    read, empty if it is served; `decided_by` is the rule that refuses. `would_pass` are ways in which it would be
    served, each by itself: each was tried, but for what other policies would have to say."""

    policy: str
    served: bool
    code: str
    message: str
    decided_by: Rule | None
    rules: list[Rule]
    would_pass: list[str]


def explain(policies: Policies, question: Question, left: Sequence[Left]) -> Explanation:
    """What happens to the request; `left` is how the limits of its tenant and key stand. The tenant has to exist."""
    tenant = policies.tenants[question.tenant]
    model = policies.model_named(question.model)
    if model is None or not tenant.may_use(model):
        refused = refusals.model_not_found(question.model)
        usable = ", ".join(spec.name for spec in policies.models_of(tenant)) or "none"
        scope = f"tenant {tenant.name}"
        rule = Rule(step="permit", dimension="models", scope=scope, passes=False, text=f"may use {usable}")
        return _explanation(policies, [rule], rule, refused, [f"one of its models: {usable}"])
    request = _Request(policies, tenant, model, question, left)
    refused_or_none = request.refusal
    rules = request.rules()
    if refused_or_none is None:
        return _explanation(policies, rules, None, None, [])
    decided_by = next((rule for rule in rules if _is_of(rule, refused_or_none)), None)
    return _explanation(policies, rules, decided_by, refused_or_none, request.ways(refused_or_none))


def _explanation(
    policies: Policies, rules: list[Rule], decided_by: Rule | None, refused: Refusal | None, ways: list[str]
) -> Explanation:
    return Explanation(
        policy=policies.version,
        served=refused is None,
        code="" if refused is None else refused.code,
        message="" if refused is None else refused.message,
        decided_by=decided_by,
        rules=rules,
        would_pass=ways,
    )


def _is_of(rule: Rule, refused: Refusal) -> bool:
    by = refused.refused_by
    return rule.passes is False and by is not None and (rule.dimension, rule.scope) == (by.dimension, by.scope)


class _Request:
    """One request on its way through the rules."""

    def __init__(
        self, policies: Policies, tenant: TenantSpec, model: ModelSpec, question: Question, left: Sequence[Left]
    ) -> None:
        self._policies = policies
        self._tenant = tenant
        self._model = model
        self._question = question
        self._left = left
        self._service = policies.class_of(tenant)
        self._price, self._cover = policies.prices.get(model.name), policies.covers.get(model.name)
        self._view = RequestView(
            endpoint=Endpoint.CHAT,
            model=question.model,
            prompt=bytes(question.prompt_tokens * question.bytes_per_token),
            output_tokens=question.max_tokens,
            stream=question.stream,
        )
        self._limits = limits_for(
            tenant,
            question.key,
            service=self._service,
            model=model,
            context_tokens=question.context_tokens if model.context_tokens is None else model.context_tokens,
        )
        counted = PromptSize(total=question.prompt_tokens, longest=question.prompt_tokens, exact=True)
        self._size = estimate(self._view) if surely_fits(self._view, self._limits) else counted
        self._too_long = check(self._view, self._size, self._limits)
        self._bound = granted(self._view, self._size, self._limits)
        self._holding, self._denied = self._reserve(counted)
        self._ask = self._holding.ask("explained")

    @property
    def refusal(self) -> Refusal | None:
        """What the client would read."""
        if self._too_long is not None:
            return self._too_long
        return None if self._denied is None else refusal(self._denied)

    def rules(self) -> list[Rule]:
        """Each of them, whether or not one before it refuses."""
        permitted = Rule(step="permit", dimension="models", scope=f"tenant {self._tenant.name}", passes=True)
        return [
            replace(permitted, text=f"may use {self._model.name}"),
            *self._lengths(),
            *(self._limit(one) for one in self._left),
            *self._sliced(),
            *_queue(self._service),
            self._cost(),
        ]

    def ways(self, refused: Refusal) -> list[str]:
        """What would let it pass."""
        by = refused.refused_by
        assert by is not None, "every rule says that it was the one"
        ways = [later(by)]
        asked = self._question.max_tokens or self._holding.output_most or TOKENS_MAX
        if (fits := self._longest("max_tokens", asked)) is not None:
            ways.append(f"max_tokens of at most {fits}")
        if (fits := self._longest("prompt_tokens", self._question.prompt_tokens)) is not None:
            ways.append(f"a prompt of at most {fits} tokens")
        ways.append(otherwise(by))
        return [way for way in ways if way]

    def _longest(self, name: str, most: int) -> int | None:
        """The largest number below `most` with which the request would be served; None: not even with 1."""

        def passes(number: int) -> bool:
            question = replace(self._question, **{name: number})
            return _Request(self._policies, self._tenant, self._model, question, self._left).refusal is None

        if most <= 1 or not passes(1):
            return None
        good, bad = 1, most
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if passes(middle) else (good, middle)
        return good

    def _reserve(self, counted: PromptSize) -> tuple[Holding, Denial | None]:
        """What it holds in the end, and what refuses that: as `call.Reservation` asks, with a prompt that is counted
        where that decides, and for a shorter answer where the policy wants that."""
        view, limits = bounded(self._view, self._limits, self._bound)
        holding = Holding.of(
            view,
            self._size,
            limits,
            price=self._cover,
            tenant=self._tenant.limits,
            scopes=self._policies.scopes_of(self._tenant, self._question.key, self._model.name),
        )
        denied = self._denial(holding)
        if denied is not None and denied.dimension in HELD and holding.is_worth_counting(denied):
            holding = holding.counted(counted)
            denied = self._denial(holding)
        while denied is not None and (shorter := holding.affordable(denied)) is not None:
            holding = shorter
            denied = self._denial(holding)
        return holding, denied

    def _denial(self, holding: Holding) -> Denial | None:
        return denial(self._left, holding.ask("explained"), self._question.now_ms)

    def _sliced(self) -> list[Rule]:
        """What a policy that reserves as little as will do makes of the answer."""
        holding = self._holding
        if not holding.is_sliced:
            return []
        cap = holding.output_cap
        text = "sliced: all of the answer is held"
        if holding.extends:
            text = f"sliced: {holding.output_held} tokens of the answer are held, more as it grows"
        elif cap is not None:
            text = f"sliced: no more could be held, so the engine is told to answer with at most {cap} tokens"
        return [Rule(step="reserve", dimension="reserve", scope="", text=text)]

    def _lengths(self) -> list[Rule]:
        """The limits of one request's length, each by itself."""
        limits, prompt, output = self._limits, self._question.prompt_tokens, self._question.max_tokens
        kept = limits.output_max if limits.output_caps else None
        alone = replace(limits, context=None, input_max=None, output_max=kept, total_max=None)
        whole = prompt + max(1, output or 0 if kept is None else min(output or 0, kept))
        of_model = f"model {self._question.model}"
        lengths = (
            ("max_output_tokens", limits.output_of, output, replace(alone, output_max=limits.output_max)),
            ("max_input_tokens", limits.input_of, prompt, replace(alone, input_max=limits.input_max)),
            ("max_total_tokens", limits.total_of, whole, replace(alone, total_max=limits.total_max)),
            ("context_tokens", of_model, whole, replace(alone, context=limits.context)),
        )
        most = (limits.output_max, limits.input_max, limits.total_max, limits.context)
        rules = [
            Rule(
                step="measure",
                dimension=dimension,
                scope=scope,
                passes=check(self._view, self._size, only) is None,
                limit=limit,
                asked=asked,
            )
            for (dimension, scope, asked, only), limit in zip(lengths, most, strict=True)
            if limit is not None
        ]
        if limits.context is None:
            rules.append(
                Rule(step="measure", dimension="context_tokens", scope=of_model, text="not known: the engine will say")
            )
        if self._bound is not None and self._too_long is None:
            text = f"the engine is told to answer with at most {self._bound} tokens"
            rules.append(Rule(step="measure", dimension="max_tokens", scope="", limit=self._bound, text=text))
        return rules

    def _limit(self, one: Left) -> Rule:
        wait_ms = one.wait_ms(self._ask, self._question.now_ms)
        return Rule(
            step="reserve",
            dimension=one.dimension,
            scope=one.scope,
            passes=wait_ms == 0 if one.mode == "enforce" else None,
            limit=one.limit,
            asked=one.asked(self._ask),
            remaining=one.remaining,
            reserved=one.reserved,
            retry_after_ms=(wait_ms or None) if one.mode == "enforce" else None,
            resets_at_s=one.resets_at_s or None,
            text=", ".join(text for text in (one.period, _unenforced(one, wait_ms)) if text),
        )

    def _cost(self) -> Rule:
        scope = f"model {self._model.name}"
        if self._price is None or self._cover is None:
            return Rule(
                step="cost", dimension="price_usd", scope=scope, text="the model has no price: it costs nothing"
            )
        price = self._price
        dollars = (price.input_usd_per_mtok, price.cached_usd_per_mtok, price.output_usd_per_mtok)
        per_mtok = "input {:f}, cached {:f}, output {:f} $/Mtok".format(*dollars)
        most = self._cover.ceiling_nanousd(self._holding.input_most, self._holding.output_most)
        return Rule(step="cost", dimension="price_usd", scope=scope, asked=most, text=f"at most; {per_mtok}")


def _unenforced(one: Left, wait_ms: int | None) -> str:
    """What a limit that does not refuse would tell."""
    match one.mode:
        case "enforce":
            return ""
        case "audit":
            return "audited: it would pass" if wait_ms == 0 else "audited: it would refuse, and does not"
        case "soft":
            return "soft: it tells how much is used, and does not refuse"


def _queue(service: ClassSpec) -> list[Rule]:
    scope = f"class {service.name}"
    order = Rule(
        step="queue",
        dimension="priority",
        scope=scope,
        text=f"band {service.priority}, weight {service.weight} within it",
    )
    slo = service.slo
    if not slo.bounds:
        return [order, Rule(step="queue", dimension="slo", scope=scope, text="no targets: it never waits")]
    targets = ", ".join(
        f"{name} {target} ms"
        for name, target in (("ttft_p99_ms", slo.ttft_p99_ms), ("itl_p99_ms", slo.itl_p99_ms))
        if target is not None
    )
    wait_ms = int(service.max_wait_s * 1000)
    return [
        order,
        Rule(step="queue", dimension="slo", scope=scope, text=targets),
        Rule(
            step="queue",
            dimension="max_wait_s",
            scope=scope,
            limit=wait_ms,
            text="waits for a replica with room for at most this, then 429 overloaded",
        ),
    ]
