"""What a request holds: the most it can use, or a slice of it; what is left is used as far as it goes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.admission import SLICE_TOKENS, Denial, Dimension, Holding, Standing
from gateway.context import ContextLimits, estimate
from gateway.policy import LimitsSpec, PriceSpec, Scopes
from gateway.pricing import Price
from gateway.wire import Endpoint, parse

PRICE = Price.of(PriceSpec(output_usd_per_mtok=Decimal(1), input_ratio=Decimal("0.5")), epoch="e")
LIMITS = ContextLimits(context=8192, input_max=None, output_max=None)
BUDGETED = Scopes((), is_budgeted=True, holds_tokens=False)
FREE = Scopes((), is_budgeted=False, holds_tokens=False)


def holding(tenant: LimitsSpec, scopes: Scopes = BUDGETED, **body: Any) -> Holding:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body}
    view = parse(Endpoint.CHAT, json.dumps(asked).encode())
    return Holding.of(view, estimate(view), LIMITS, price=PRICE, tenant=tenant, scopes=scopes)


def denial(dimension: Dimension, remaining: int) -> Denial:
    standing = Standing(None, 0, 0, None, 0, 0)
    return Denial(
        dimension=dimension, limit=10**9, asked=10**9, remaining=remaining, retry_after_ms=1000, standing=standing
    )


SLICED = LimitsSpec(reserve="sliced", tokens_per_minute=10_000)


def test_the_worst_case_is_all_that_the_request_can_use() -> None:
    """Without a bound of its own: the rest of the context."""
    held = holding(LimitsSpec(), stream=True)
    assert (held.extends, held.output_held, held.output_cap) == (False, 8192, None)
    assert held.ask("r").nanousd == PRICE.ceiling_nanousd(held.input_most, 8192)
    assert holding(LimitsSpec(), max_tokens=100).ask("r").most_tokens == held.input_most + 100


def test_a_stream_holds_its_prompt_and_a_slice() -> None:
    """Of dollars, of tokens, and of tokens/min, which need no extension but are held in slices too."""
    held = holding(SLICED, stream=True, max_tokens=4000)
    ask = held.ask("r")
    assert held.extends
    assert (ask.output_tokens, ask.most_tokens) == (SLICE_TOKENS, held.input_most + SLICE_TOKENS)
    assert ask.nanousd == PRICE.ceiling_nanousd(held.input_most, SLICE_TOKENS)
    assert holding(SLICED, stream=True, max_tokens=9).ask("r").output_tokens == 9
    unpaid = holding(SLICED, FREE, stream=True, max_tokens=4000)
    assert (unpaid.extends, unpaid.ask("r").tokens) == (False, unpaid.size.total + SLICE_TOKENS)


@pytest.mark.parametrize("body", [{"stream": False}, {"stream": True, "n": 2}])
def test_what_cannot_be_extended_is_cut_to_what_is_left(body: dict[str, Any]) -> None:
    """Each of its answers gets the same share; the engine is told."""
    held = holding(SLICED, max_tokens=4000, **body)
    assert (held.extends, held.output_cap) == (False, None)
    left = PRICE.ceiling_nanousd(held.input_most, 1001)
    shorter = held.affordable(denial("usd_per_day", left))
    assert shorter is not None
    answers = body.get("n", 1)
    assert shorter.output_cap == 1001 // answers
    assert shorter.ask("r").nanousd <= left
    by_tokens = held.affordable(denial("tokens_per_day", held.input_most + 50))
    assert by_tokens is not None
    assert by_tokens.output_cap == 50 // answers


def test_nothing_is_cut_where_nothing_is_left_or_another_limit_refuses() -> None:
    """Less than a token for each answer is a refusal; so is a limit that shorter answers do not help with, and every
    refusal where the policy is to hold the most."""
    held = holding(SLICED, max_tokens=4000)
    assert held.affordable(denial("budget_usd", PRICE.ceiling_nanousd(held.input_most, 0))) is None
    assert held.affordable(denial("requests_per_minute", 0)) is None
    worst = holding(LimitsSpec(), max_tokens=4000)
    assert worst.affordable(denial("budget_usd", PRICE.ceiling_nanousd(worst.input_most, 100))) is None


def test_waiting_helps_where_others_hold_what_a_shorter_answer_would_do_with() -> None:
    """All that it can use is more than the budget; what is unspent would do for a part, once nobody holds it."""
    held = holding(SLICED, max_tokens=4000)
    least = PRICE.ceiling_nanousd(held.input_most, 1)
    all_held = replace(denial("budget_usd", 0), retry_after_ms=None, limit=least + 5, spent_nanousd=5)
    told = held.least_denied(replace(all_held, reserved_nanousd=least))
    assert (told.retry_after_ms, told.asked) == (1000, least)
    assert held.least_denied(all_held) is all_held, "nobody holds anything that could come back"
    spent = replace(all_held, reserved_nanousd=least, spent_nanousd=6)
    assert held.least_denied(spent) is spent, "what is unspent would not do"
    worst = holding(LimitsSpec(), max_tokens=4000)
    assert worst.least_denied(told) is told


def test_a_prompt_is_counted_only_where_that_can_let_it_in() -> None:
    """A flood of requests that no count would help asks no tokenizer."""
    worst = holding(LimitsSpec(), max_tokens=100)
    needed = PRICE.ceiling_nanousd(worst.size.total, 100)
    assert worst.is_worth_counting(denial("budget_usd", needed))
    assert not worst.is_worth_counting(denial("budget_usd", needed - 1))
    assert not worst.is_worth_counting(denial("requests_per_minute", 0))
