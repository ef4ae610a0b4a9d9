"""What a request holds of its limits while it runs: the most it can use, or less where the policy reserves in slices.

Pure: sizes and prices in, an `Ask` out.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.context import ContextLimits, PromptSize, least, output_most, prompt_most
from gateway.policy import LimitsSpec, Scopes
from gateway.pricing import NANOUSD_MAX, Price
from gateway.wire import Endpoint, RequestView

from ._values import Ask, Denial, Dimension

DEFAULT_OUTPUT_TOKENS: Final = 512
"""Tokens/min held for an answer whose client named no bound; the difference is settled when it is known."""

SLICE_TOKENS: Final = 256
"""What a stream holds ahead: some seconds of an answer, so that Redis is asked less than once a second for each."""

RETRY_SOON_MS: Final = 1000
"""As account.lua has it: when a running request will end is not known."""

_DOLLARS: Final[frozenset[Dimension]] = frozenset({"budget_usd", "usd_per_hour", "usd_per_day", "usd_per_month"})
_TOKENS_HELD: Final[frozenset[Dimension]] = frozenset({"tokens_per_day", "concurrent_tokens"})
HELD: Final = _DOLLARS | _TOKENS_HELD
"""What is held to the most a request can use, and so may refuse one that would use less."""


class Holding(Struct, frozen=True, kw_only=True, gc=False):
    """One request's. `price` is None where no budget pays for it. `output_most` is the most that all its answers can
    have, in tokens, `output_held` what of it is held now. `is_sliced`: the policy wants as little held as will do;
    `extends`: more is held as the answer grows."""

    view: RequestView
    size: PromptSize
    limits: ContextLimits
    price: Price | None
    tokens_per_minute: int | None
    output_tokens_per_minute: int | None
    is_sliced: bool
    extends: bool
    output_most: int
    output_held: int

    @classmethod
    def of(
        cls,
        view: RequestView,
        size: PromptSize,
        limits: ContextLimits,
        *,
        price: Price | None,
        tenant: LimitsSpec,
        scopes: Scopes,
    ) -> Holding:
        """What to begin with. `price` is the model's."""
        most = output_most(view, least(view).longest, limits) * view.answers if view.endpoint.computes else 0
        is_sliced = tenant.reserve == "sliced" and view.endpoint.generates
        extends = is_sliced and _can_extend(view) and (scopes.is_budgeted or scopes.holds_tokens)
        return cls(
            view=view,
            size=size,
            limits=limits,
            price=price if scopes.is_budgeted else None,
            tokens_per_minute=tenant.tokens_per_minute,
            output_tokens_per_minute=tenant.output_tokens_per_minute,
            is_sliced=is_sliced,
            extends=extends,
            output_most=most,
            output_held=min(most, SLICE_TOKENS) if extends else most,
        )

    @property
    def output_cap(self) -> int | None:
        """What each answer has to be cut to, since no more could be held and no more will be."""
        if self.extends or self.output_held == self.output_most:
            return None
        return self.output_held // self.view.answers

    @property
    def input_most(self) -> int:
        """The most tokens its prompts can have."""
        return prompt_most(self.view, self.size, self.limits)

    def ask(self, lease_id: str) -> Ask:
        """What to take: of dollars and of what runs the most, of tokens/min what it will probably use."""
        view, price = self.view, self.price
        if not view.endpoint.computes:
            return Ask(lease_id, 0, 0)
        tokens = self._likely_tokens()
        input_most = self.input_most
        nanousd = 0
        if price is not None:
            # An absurd `n` multiplies to more than the ledger's numbers hold; no budget holds that much either.
            nanousd = min(NANOUSD_MAX, price.ceiling_nanousd(input_most, self.output_held))
        return Ask(
            lease_id,
            tokens,
            nanousd,
            input_tokens=self.size.total,
            output_tokens=self._likely_output(tokens - self.size.total),
            most_tokens=input_most + self.output_held,
        )

    def counted(self, size: PromptSize) -> Holding:
        """The same with a prompt whose size is known now."""
        return replace(self, size=size)

    def is_worth_counting(self, denial: Denial) -> bool:
        """Whether a prompt as long as it probably is would be let in where its bound was refused."""
        if self.size.exact:
            return False
        left = output_left(denial, self.size.total, self.price)
        return left is not None and left >= (self.view.answers if self.is_sliced else self.output_held)

    def affordable(self, denial: Denial) -> Holding | None:
        """The same with shorter answers, which what is left would hold; None where it would hold none, or the policy is
        to hold the most."""
        if not self.is_sliced:
            return None
        left = output_left(denial, self.input_most, self.price)
        if left is None or not self.view.answers <= left < self.output_held:
            return None
        return replace(self, output_held=left - left % self.view.answers)

    def least_denied(self, denial: Denial) -> Denial:
        """`denial` of the least that would do, where the policy is to hold no more than there is: that may come back
        when others end, though the most never fits."""
        if not self.is_sliced or self.price is None or denial.dimension not in _DOLLARS:
            return denial
        unspent, least_nanousd = denial.limit - denial.spent_nanousd, self._least_nanousd(self.price)
        if not denial.reserved_nanousd or not least_nanousd <= unspent < denial.asked:
            return denial
        return replace(denial, asked=least_nanousd, retry_after_ms=RETRY_SOON_MS)

    def _least_nanousd(self, price: Price) -> int:
        return price.ceiling_nanousd(self.input_most, self.view.answers)

    def _likely_tokens(self) -> int:
        """The client's own bound; a usual answer where it named none, cut to what can ever fit."""
        view, total, per_minute = self.view, self.size.total, self.tokens_per_minute
        if self.is_sliced and view.stream:
            return total + min(self.output_held, SLICE_TOKENS)
        if view.output_tokens is not None or not view.endpoint.generates:
            return total + self.output_held
        likely = min(self.output_held or DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS * view.answers)
        return total + (likely if per_minute is None else max(0, min(likely, per_minute - total)))

    def _likely_output(self, likely: int) -> int:
        """Output tokens/min, of `likely` ones: cut as above where the client named no bound."""
        per_minute, view = self.output_tokens_per_minute, self.view
        if per_minute is None or view.output_tokens is not None or not view.endpoint.generates:
            return likely
        return min(likely, per_minute)


def output_left(denial: Denial, input_tokens: int, price: Price | None) -> int | None:
    """How many output tokens, with a prompt of `input_tokens`, what is left would hold; None: the denial is about
    something else."""
    if denial.dimension in _DOLLARS and price is not None:
        return price.output_within(denial.remaining, input_tokens)
    return denial.remaining - input_tokens if denial.dimension in _TOKENS_HELD else None


def _can_extend(view: RequestView) -> bool:
    """Whether each event of its stream tells the tokens so far, and the stream can be ended properly before its end."""
    return view.stream and view.answers == 1 and view.endpoint in {Endpoint.CHAT, Endpoint.COMPLETIONS}
