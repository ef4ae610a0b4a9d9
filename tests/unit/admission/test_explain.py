"""Each rule in the order of a request's life, what decides, and ways past it that are ways past it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.admission import UNIT, Explanation, Left, Question, Rule, explain
from gateway.policy import (
    ClassSpec,
    ContextSpec,
    KeySpec,
    LimitsSpec,
    ModelSpec,
    Policies,
    PriceSpec,
    SloSpec,
    TenantSpec,
)

NOW_MS = 1_790_000_000_000
MIDNIGHT_S = 1_790_035_200
TINY = ModelSpec(
    name="tiny",
    replicas=(),
    aliases=("small",),
    context_tokens=4096,
    price=PriceSpec(output_usd_per_mtok=Decimal(1), input_ratio=Decimal("0.5")),
)
SERVICE = ClassSpec(name="interactive", priority=10, max_wait_s=Decimal(2), slo=SloSpec(ttft_p99_ms=600))


def explained(
    *left: Left, limits: LimitsSpec | None = None, model: ModelSpec = TINY, named: str = "tiny", **question: Any
) -> Explanation:
    tenant = TenantSpec(
        name="acme",
        keys=(KeySpec(id="ci", sha256="0" * 64, context=ContextSpec(max_input_tokens=50)),),
        models=("tiny",),
        class_name="interactive",
        limits=limits or LimitsSpec(),
    )
    policies = Policies(
        models={"tiny": model, "other": ModelSpec(name="other", replicas=())},
        tenants={"acme": tenant},
        classes={"interactive": SERVICE},
        sha256="ab" * 32,
    )
    asked = Question(tenant="acme", model=named, now_ms=NOW_MS, **({"prompt_tokens": 100} | question))
    return explain(policies, asked, left)


def rule(found: Explanation, dimension: str) -> Rule:
    [one] = [one for one in found.rules if one.dimension == dimension]
    return one


def per_minute(limit: int, left: int) -> Left:
    return Left(dimension="tokens_per_minute", limit=limit, level=left * UNIT)


def test_the_rules_of_a_request_that_is_served_come_in_the_order_of_its_life() -> None:
    found = explained(
        per_minute(1000, 700),
        Left(
            dimension="usd_per_day",
            limit=10**9,
            used=300,
            reserved=200,
            period="day:2026-09-21",
            resets_at_s=MIDNIGHT_S,
        ),
        limits=LimitsSpec(tokens_per_minute=1000, usd_per_day=Decimal(1), max_output_tokens=200),
        max_tokens=150,
    )
    assert (found.served, found.code, found.message, found.decided_by, found.would_pass) == (True, "", "", None, [])
    assert found.policy == "ab" * 6
    assert [(one.step, one.dimension, one.scope) for one in found.rules] == [
        ("permit", "models", "tenant acme"),
        ("measure", "max_output_tokens", ""),
        ("measure", "context_tokens", "model tiny"),
        ("reserve", "tokens_per_minute", ""),
        ("reserve", "usd_per_day", ""),
        ("queue", "priority", "class interactive"),
        ("queue", "slo", "class interactive"),
        ("queue", "max_wait_s", "class interactive"),
        ("cost", "price_usd", "model tiny"),
    ]
    assert all(one.passes is not False for one in found.rules)
    tokens, dollars, context = (rule(found, name) for name in ("tokens_per_minute", "usd_per_day", "context_tokens"))
    assert (tokens.limit, tokens.remaining, tokens.asked) == (1000, 700, 250)
    assert (context.limit, context.asked) == (4096, 250)
    assert (dollars.remaining, dollars.reserved, dollars.resets_at_s) == (10**9 - 500, 200, MIDNIGHT_S)


def test_dollars_are_the_most_it_can_cost() -> None:
    """Far from any limit a prompt is bounded by its bytes, 4 for a token and 256 tokens of a template; near one it is
    counted. 0.5 dollars a million tokens of the prompt, 1 of the answer."""
    near = LimitsSpec(max_input_tokens=200, budget_usd=Decimal(1))
    left = Left(dimension="budget_usd", limit=10**9, period="month:2026-09")
    far = explained(left, limits=LimitsSpec(budget_usd=Decimal(1)), max_tokens=150)
    assert rule(far, "budget_usd").asked == rule(far, "price_usd").asked == (400 + 256) * 500 + 150 * 1000
    counted = explained(left, limits=near, max_tokens=150)
    assert rule(counted, "budget_usd").asked == 100 * 500 + 150 * 1000
    assert rule(explained(max_tokens=150, bytes_per_token=2), "price_usd").asked == (200 + 256) * 500 + 150 * 1000


def test_a_model_that_the_tenant_may_not_use_ends_it_there() -> None:
    for named in ("other", "nonesuch"):
        found = explained(named=named)
        assert (found.served, found.code) == (False, "model_not_found")
        assert [one.dimension for one in found.rules] == ["models"]
        assert found.decided_by is found.rules[0]
        assert found.would_pass == ["one of its models: tiny"]
    assert explained(named="small").served, "an alias is the model"


@pytest.mark.parametrize(
    ("question", "decided_by", "ways"),
    [
        (
            {"prompt_tokens": 4000, "max_tokens": 150},
            ("context_tokens", "model tiny", 4096, 4150),
            ["max_tokens of at most 96", "a prompt of at most 3946 tokens", "context_tokens of at least 4150 tokens"],
        ),
        (
            {"max_tokens": 201},
            ("max_output_tokens", "", 200, 201),
            ["max_tokens of at most 200", "max_output_tokens of at least 201 tokens"],
        ),
        (
            {"key": "ci", "prompt_tokens": 51},
            ("max_input_tokens", "key ci", 50, 51),
            ["a prompt of at most 50 tokens", "max_input_tokens of at least 51 tokens"],
        ),
    ],
)
def test_too_long_says_what_would_be_short_enough(
    question: dict[str, Any], decided_by: tuple[str, str, int, int], ways: list[str]
) -> None:
    found = explained(limits=LimitsSpec(max_output_tokens=200), **question)
    assert found.code == "context_length_exceeded"
    by = found.decided_by
    assert by is not None
    assert (by.dimension, by.scope, by.limit, by.asked) == decided_by
    assert found.would_pass == ways


def test_a_limit_that_refills_says_when_and_what_fits_now() -> None:
    limits = LimitsSpec(tokens_per_minute=1000)
    found = explained(per_minute(1000, 200), limits=limits, max_tokens=150)
    assert found.message.startswith("Rate limit reached: 1000 tokens per minute, 200 left, and this request may use up")
    assert found.decided_by is rule(found, "tokens_per_minute")
    assert found.decided_by.retry_after_ms == 50 * 60
    assert found.would_pass == [
        "the same request 3 s later",
        "max_tokens of at most 100",
        "a prompt of at most 50 tokens",
        "tokens_per_minute of at least 1050 tokens",
    ]
    assert explained(per_minute(1000, 200), limits=limits, max_tokens=100).served
    assert explained(per_minute(1000, 200), limits=limits, max_tokens=150, prompt_tokens=50).served
    assert not explained(per_minute(1000, 200), limits=limits, max_tokens=101).served


def test_of_several_rules_that_refuse_the_longest_decides_and_ways_pass_all() -> None:
    """30 tokens are missing of one limit, 50 of the other: what is said to fit, fits both."""
    limits = LimitsSpec(tokens_per_minute=1000, concurrent_tokens=4000)
    held = Left(dimension="concurrent_tokens", limit=2000, reserved=2000 - (400 + 256 + 150) + 30)
    found = explained(per_minute(1000, 200), held, limits=limits, max_tokens=150)
    assert [one.dimension for one in found.rules if one.passes is False] == ["tokens_per_minute", "concurrent_tokens"]
    assert found.decided_by is rule(found, "tokens_per_minute")
    assert "max_tokens of at most 100" in found.would_pass
    assert explained(per_minute(1000, 200), held, limits=limits, max_tokens=100).served


def test_spent_money_is_not_helped_by_waiting_and_nothing_smaller_fits() -> None:
    spent = Left(dimension="budget_usd", limit=10**9, used=10**9, period="month:2026-09", resets_at_s=MIDNIGHT_S)
    found = explained(spent, limits=LimitsSpec(budget_usd=Decimal(1)), max_tokens=150)
    assert found.code == "insufficient_quota"
    assert found.decided_by is not None
    assert found.decided_by.retry_after_ms is None
    assert found.would_pass == ["budget_usd of at least $1.000478"]


def test_a_client_that_names_no_bound_gets_what_the_policies_put_in() -> None:
    capped = TINY.__class__(
        name="tiny", replicas=(), context_tokens=4096, context=ContextSpec(max_total_tokens=300, on_excess="cap")
    )
    found = explained(model=capped)
    assert rule(found, "max_tokens").limit == 200
    cut = explained(model=capped, max_tokens=1000)
    assert cut.served
    assert rule(cut, "max_tokens").limit == 200


def test_what_the_engine_alone_knows_is_said_to_be_unknown() -> None:
    unknown = ModelSpec(name="tiny", replicas=())
    found = explained(model=unknown, prompt_tokens=100_000)
    assert found.served
    assert (rule(found, "context_tokens").passes, rule(found, "context_tokens").limit) == (None, None)
    assert not explained(model=unknown, prompt_tokens=100_000, context_tokens=32_768).served


def test_limits_of_other_scopes_are_named_and_those_that_only_tell_decide_nothing() -> None:
    """The fleet's limit refuses; a soft one of the group and an audited one of the tenant are shown beside it."""
    fleet = Left(dimension="requests_per_minute", scope="the fleet", limit=60, level=0)
    soft = Left(dimension="requests_per_minute", scope="group all", mode="soft", limit=60, level=0)
    audited = Left(dimension="tokens_per_minute", mode="audit", limit=100, level=100 * UNIT)
    found = explained(soft, audited, max_tokens=150)
    assert found.served
    assert [(one.scope, one.passes, one.text) for one in found.rules if one.step == "reserve"] == [
        ("group all", None, "soft: it tells how much is used, and does not refuse"),
        ("", None, "audited: it would refuse, and does not"),
    ]
    refused = explained(audited, soft, fleet, max_tokens=150)
    assert refused.decided_by is not None
    assert (refused.decided_by.scope, refused.decided_by.retry_after_ms) == ("the fleet", 1000)
    assert refused.would_pass == ["the same request 1 s later", "requests_per_minute of at least 61 requests"]


def test_a_prompt_is_counted_where_only_its_bound_does_not_fit() -> None:
    """As the gateway does: 656 tokens of a bound cost too much, the 100 that are counted do not."""
    limits = LimitsSpec(budget_usd=Decimal(1))
    exact = 100 * 500 + 150 * 1000
    fits = Left(dimension="budget_usd", limit=exact, period="month:2026-09")
    found = explained(fits, limits=limits, max_tokens=150)
    assert (found.served, rule(found, "budget_usd").asked) == (True, exact)
    tight = Left(dimension="budget_usd", limit=exact - 1, period="month:2026-09")
    assert not explained(tight, limits=limits, max_tokens=150).served
