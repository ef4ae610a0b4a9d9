"""The live price: what a fleet really cost, spread over what it really produced.

    W = output + r_in x uncached input + r_cached x cached input
    output $/Mtok = GPU cost x overhead / W x 1e6

A floor and a ceiling keep an idle hour from pricing itself to infinity, and a largest step keeps a price from jumping;
what they leave unrecovered is the platform's idle cost.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Literal, Protocol

from msgspec import Struct

from ._money import usd_of_nanousd
from ._quote import usd_per_mtok

Bound = Literal["", "no tokens", "floor", "ceiling", "step"]

PLACES = Decimal("0.000001")
"""A live price is rounded once, half to even, to a millionth of a dollar per million tokens: a picodollar a token."""

_WIDE = Context(prec=60)
_ROUNDING = Context(prec=60, rounding=ROUND_HALF_EVEN)


class Tokens(Protocol):
    """Tokens by kind; `input_tokens` is without cached ones."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class Measured(Struct, frozen=True, kw_only=True):
    """What a window cost in GPU time and how many tokens were billed in it. `input_tokens` is without cached ones."""

    cost_nanousd: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class LiveTerms(Protocol):
    """The rules of a live price; dollars are per million output tokens, the step is a share of the price before."""

    @property
    def input_ratio(self) -> Decimal: ...
    @property
    def cached_ratio(self) -> Decimal: ...
    @property
    def overhead(self) -> Decimal: ...
    @property
    def floor_usd_per_mtok(self) -> Decimal | None: ...
    @property
    def ceiling_usd_per_mtok(self) -> Decimal | None: ...
    @property
    def max_step(self) -> Decimal | None: ...


class LivePrice(Struct, frozen=True, kw_only=True):
    """A price and why it is that: `measured_usd_per_mtok` is before the bounds, `bound` names the one that decided."""

    output_usd_per_mtok: Decimal
    measured_usd_per_mtok: Decimal | None
    bound: Bound


def weighted_tokens(tokens: Tokens, *, input_ratio: Decimal, cached_ratio: Decimal) -> Decimal:
    """W: all tokens in output tokens' worth."""
    of_input = _WIDE.multiply(input_ratio, Decimal(tokens.input_tokens))
    of_cached = _WIDE.multiply(cached_ratio, Decimal(tokens.cached_tokens))
    return _WIDE.add(_WIDE.add(of_input, of_cached), Decimal(tokens.output_tokens))


def measured_usd_per_mtok(measured: Measured, terms: LiveTerms) -> Decimal | None:
    """The price at which the window's tokens pay for its GPUs; None when there were no tokens to pay."""
    weight = weighted_tokens(measured, input_ratio=terms.input_ratio, cached_ratio=terms.cached_ratio)
    if weight <= 0:
        return None
    spent = _WIDE.multiply(usd_of_nanousd(measured.cost_nanousd), terms.overhead)
    return usd_per_mtok(spent, weight)


def live_price(before_usd_per_mtok: Decimal, measured: Measured, terms: LiveTerms) -> LivePrice:
    """The price of the next epoch, after one of `before_usd_per_mtok`.

    Without tokens nothing was learnt of what they cost, so the price stays, within floor and ceiling as they are now.
    The largest step is taken last: no bound makes a price jump.
    """
    wanted = found = measured_usd_per_mtok(measured, terms)
    bound: Bound = ""
    if wanted is None:
        wanted, bound = before_usd_per_mtok, "no tokens"
    if terms.floor_usd_per_mtok is not None and wanted < terms.floor_usd_per_mtok:
        wanted, bound = terms.floor_usd_per_mtok, "floor"
    if terms.ceiling_usd_per_mtok is not None and wanted > terms.ceiling_usd_per_mtok:
        wanted, bound = terms.ceiling_usd_per_mtok, "ceiling"
    if terms.max_step is not None:
        step = _WIDE.multiply(before_usd_per_mtok, terms.max_step)
        nearest = min(max(wanted, before_usd_per_mtok - step), before_usd_per_mtok + step)
        if nearest != wanted:
            wanted, bound = nearest, "step"
    return LivePrice(output_usd_per_mtok=_ROUNDING.quantize(wanted, PLACES), measured_usd_per_mtok=found, bound=bound)


def opencost_input_ratio(
    *, prefill_s: Decimal, decode_s: Decimal, input_tokens: int, output_tokens: int
) -> Decimal | None:
    """What an input token costs of an output token, from where the engines' time went: OpenCost's split of inference
    cost by `vllm:request_prefill_time_seconds_sum` and the time of decoding, input divided by delivered prompt tokens,
    cached included. None where one of the four is 0."""
    if min(prefill_s, decode_s, Decimal(input_tokens), Decimal(output_tokens)) <= 0:
        return None
    of_input = _WIDE.divide(prefill_s, Decimal(input_tokens))
    return _WIDE.divide(of_input, _WIDE.divide(decode_s, Decimal(output_tokens)))
