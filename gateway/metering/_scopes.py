"""Limits as account.lua takes them: a tenant's own and those of its scopes, with the windows that hold at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from gateway.admission import Dimension, Period, PeriodKind, period_at
from gateway.policy import LimitsSpec, RulesSpec, Scope
from gateway.pricing import nanousd_of_usd
from gateway.store import EXACT_MAX, PER_MINUTE_MAX, AccountLimits, Mode, ScopeLimits, Window

QUARTER_MS = 900_000
"""Every period of every time zone begins at a quarter of an hour (IANA's offsets of today are multiples of it)."""


class CompiledLimits:
    """One tenant's, kept for as long as they are the same."""

    def __init__(self) -> None:
        self.period = Period("", 0, 0)
        self._limits: LimitsSpec | None = None
        self._quarter = -1
        self._of_tenant: AccountLimits | None = None
        self._of_scopes: dict[str, tuple[int, Scope, ScopeLimits]] = {}

    def of_tenant(self, limits: LimitsSpec, at_s: int) -> AccountLimits:
        """The tenant's own as they hold at `at_s` (Unix seconds); `period` is the budget's then."""
        quarter = at_s * 1000 // QUARTER_MS
        if self._of_tenant is None or self._limits is not limits or self._quarter != quarter:
            self._limits, self._quarter = limits, quarter
            self.period = period_at(limits.budget_period, at_s, limits.time_zone)
            make: Callable[..., AccountLimits] = AccountLimits
            self._of_tenant = make(
                budget_nanousd=-1 if limits.budget_usd is None else nanousd_of_usd(limits.budget_usd),
                period=self.period.name,
                windows=windows_at(limits, at_s, limits.time_zone),
                **_rates(limits),
            )
        return self._of_tenant

    def of_scope(self, scope: Scope, at_s: int) -> ScopeLimits:
        """A scope's as they hold at `at_s` (Unix seconds)."""
        quarter = at_s * 1000 // QUARTER_MS
        of_quarter, of_scope, compiled = self._of_scopes.get(scope.name, (-1, None, None))
        if compiled is None or of_quarter != quarter or of_scope is not scope:
            make: Callable[..., ScopeLimits] = ScopeLimits
            compiled = make(
                name=scope.name,
                mode=Mode[scope.mode.upper()],
                windows=windows_at(scope.limits, at_s, scope.time_zone, of=f"{scope.name}:"),
                **_rates(scope.limits),
            )
            self._of_scopes[scope.name] = quarter, scope, compiled
        return compiled


def windows_at(limits: RulesSpec, at_s: int, time_zone: str, *, of: str = "") -> tuple[Window, ...]:
    """The windows, beside the budget's period, that hold at `at_s` (Unix seconds); their names begin with `of`."""
    windows: list[Window] = []

    def add(dimension: Dimension, kind: PeriodKind, limit: int | None) -> None:
        if limit is not None:
            period = period_at(kind, at_s, time_zone)
            windows.append(Window(dimension=dimension, name=of + period.name, limit=limit, end_s=period.end_s))

    def nanousd(usd: Decimal | None) -> int | None:
        return None if usd is None else nanousd_of_usd(usd)

    tokens = limits.tokens_per_day
    add("tokens_per_day", "day", None if tokens is None else min(EXACT_MAX, tokens))
    add("usd_per_hour", "hour", nanousd(limits.usd_per_hour))
    add("usd_per_day", "day", nanousd(limits.usd_per_day))
    add("usd_per_month", "month", nanousd(limits.usd_per_month))
    return tuple(windows)


def _rates(limits: RulesSpec) -> dict[str, int]:
    """All but the windows, as the script wants it."""
    return {
        "requests_per_minute": min(PER_MINUTE_MAX, _or_unlimited(limits.requests_per_minute)),
        "tokens_per_minute": min(PER_MINUTE_MAX, _or_unlimited(limits.tokens_per_minute)),
        "concurrent_requests": _or_unlimited(limits.concurrent_requests),
        "input_tokens_per_minute": min(PER_MINUTE_MAX, _or_unlimited(limits.input_tokens_per_minute)),
        "output_tokens_per_minute": min(PER_MINUTE_MAX, _or_unlimited(limits.output_tokens_per_minute)),
        "concurrent_tokens": min(EXACT_MAX, _or_unlimited(limits.concurrent_tokens)),
    }


def or_none(limit: int) -> int | None:
    """Of a limit as the script has it."""
    return None if limit < 0 else limit


def _or_unlimited(limit: int | None) -> int:
    return -1 if limit is None else limit


def scopes_named(member: str) -> Sequence[str]:
    """The scopes a lease has taken from, beyond the tenant's own (see account.lua)."""
    parts = member.split("|")
    return parts[6].split(",") if len(parts) > 6 else ()


def windows_named(member: str) -> tuple[str, ...]:
    """The windows, beside the budget's period, that pay for a lease."""
    windows = member.split("|")[5]
    return tuple(windows.split(",")) if windows else ()


def period_of(window: str) -> str:
    """`day:2026-10-03` of a window of whatever scope."""
    return ":".join(window.rsplit(":", 2)[-2:])
