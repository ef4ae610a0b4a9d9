"""The price of one model, ready to be charged: exact decimals in, integer nano-dollars out.

A dollar per million tokens is 1,000 nano-dollars per token. The three prices of a model are decimals, so they have one
common denominator, a power of ten; with integer numerators over it the cost of a request is three multiplications, two
additions and one rounding, exact and without a `Decimal` on the hot path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Protocol

from gateway.wire import Usage

_EXACT = Context(prec=200)
"""Products of policy numbers stay exact in it; policies bound the digits of each number far below (30)."""

NANOUSD_PER_TOKEN_AT_1_USD_PER_MTOK = 1000


class PriceTerms(Protocol):
    """What a price is made of; the policies' `PriceSpec` is one."""

    @property
    def output_usd_per_mtok(self) -> Decimal: ...
    @property
    def input_ratio(self) -> Decimal: ...
    @property
    def cached_ratio(self) -> Decimal: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a million tokens cost in US dollars, in one epoch. Make one with `Price.of`.

    `epoch` names the price in every event, so that a bill can be recomputed from events and the price book.
    """

    epoch: str
    output_usd_per_mtok: Decimal
    input_usd_per_mtok: Decimal
    cached_usd_per_mtok: Decimal
    _output: int
    _input: int
    _cached: int
    _dearest_input: int
    _denominator: int

    @classmethod
    def of(cls, terms: PriceTerms, *, epoch: str) -> Price:
        """The price that these terms make: input and cached input cost their ratio of an output token, exactly."""
        output = terms.output_usd_per_mtok
        input_ = _EXACT.multiply(output, terms.input_ratio)
        cached = _EXACT.multiply(output, terms.cached_ratio)
        return cls.in_usd(epoch=epoch, output=output, input=input_, cached=cached)

    @classmethod
    def in_usd(cls, *, epoch: str, output: Decimal, input: Decimal, cached: Decimal) -> Price:  # noqa: A002
        """The price of these dollars per million tokens."""
        prices = (output, input, cached)
        assert all(price >= 0 for price in prices), "policies refuse negative prices"
        places = max(max(0, -_exponent(price)) for price in prices)
        numerators = [int(_EXACT.scaleb(price, places)) * NANOUSD_PER_TOKEN_AT_1_USD_PER_MTOK for price in prices]
        return cls(
            epoch=epoch,
            output_usd_per_mtok=output,
            input_usd_per_mtok=input,
            cached_usd_per_mtok=cached,
            _output=numerators[0],
            _input=numerators[1],
            _cached=numerators[2],
            _dearest_input=max(numerators[1], numerators[2]),
            _denominator=10**places,
        )

    @classmethod
    def dearest(cls, prices: Sequence[Price]) -> Price:
        """What no usage costs more than at any of these: the dearest output, input and cached input among them, in the
        first one's epoch."""
        return cls.in_usd(
            epoch=prices[0].epoch,
            output=max(price.output_usd_per_mtok for price in prices),
            input=max(price.input_usd_per_mtok for price in prices),
            cached=max(price.cached_usd_per_mtok for price in prices),
        )

    def cost_nanousd(self, usage: Usage) -> int:
        """What this usage costs in nano-dollars: exact, then rounded once, half to even.

        Cached input beyond the input itself, which only a confused engine reports, is not charged.
        """
        input_tokens = usage.input_tokens
        cached = min(usage.input_cached_tokens, input_tokens)
        exact = (input_tokens - cached) * self._input + cached * self._cached + usage.output_tokens * self._output
        whole, rest = divmod(exact, self._denominator)
        twice = 2 * rest
        if twice > self._denominator or (twice == self._denominator and whole & 1):
            whole += 1
        return whole

    def ceiling_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """The most a request of these sizes can cost in nano-dollars, rounded up: what a budget must reserve for it.

        No usage within these sizes costs more, whatever part of the input turns out to be cached.
        """
        return -(-(input_tokens * self._dearest_input + output_tokens * self._output) // self._denominator)

    def output_within(self, nanousd: int, input_tokens: int) -> int | None:
        """The most output tokens that a request with `input_tokens` can have so that `ceiling_nanousd` is within
        `nanousd`; less than 0 if even its input is not. None: output costs nothing."""
        if not self._output:
            return None
        return (nanousd * self._denominator - input_tokens * self._dearest_input) // self._output


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "a price is a finite number"
    return exponent
