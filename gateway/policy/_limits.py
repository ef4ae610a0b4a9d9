"""Limits as values: what a tenant, a key, a group, a model or the fleet may use."""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Final, Literal

BudgetPeriod = Literal["hour", "day", "month"]
RuleMode = Literal["enforce", "soft", "audit"]
Reserve = Literal["worst_case", "sliced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """A limit as it is written: what it does, and a `candidate` that is only tried beside it."""

    limit: int | Decimal
    mode: RuleMode = "enforce"
    candidate: int | Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesSpec:
    """Limits that anything may have: a tenant, a key, a group, a model, the fleet. None means no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    concurrent_tokens: int | None = None
    usd_per_hour: Decimal | None = None
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None

    @property
    def limits_anything(self) -> bool:
        return any(getattr(self, name) is not None for name in RULE_NAMES)

    @property
    def holds_tokens(self) -> bool:
        """Whether the most tokens that a request can use are held for it."""
        return self.tokens_per_day is not None or self.concurrent_tokens is not None

    @property
    def budgets(self) -> dict[str, Decimal]:
        """All budgets in dollars, by the name of their field."""
        names = ("usd_per_hour", "usd_per_day", "usd_per_month")
        return {name: usd for name in names if (usd := getattr(self, name)) is not None}


RULE_NAMES: Final = tuple(rule.name for rule in fields(RulesSpec))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeLimitsSpec(RulesSpec):
    """Limits that refuse; `soft` ones only tell how much is used, `audit` ones only that they would have refused."""

    soft: RulesSpec | None = None
    audit: RulesSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSpec(ScopeLimitsSpec):
    """A tenant's limits; None means unlimited. Days and months begin at midnight in `time_zone`. `reserve` says what a
    stream holds of dollars and tokens: the most it can use, or what it will use soon, extended as it goes."""

    budget_usd: Decimal | None = None
    budget_period: BudgetPeriod = "month"
    reserve: Reserve = "worst_case"
    time_zone: str = "UTC"
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None

    @property
    def budgets(self) -> dict[str, Decimal]:
        """All budgets in dollars, by the name of their field."""
        budgets = RulesSpec.budgets.fget(self)  # type: ignore[attr-defined]  # super() does not work with slots
        return budgets if self.budget_usd is None else {"budget_usd": self.budget_usd, **budgets}
