"""Rules as they are written, told apart by what they do: refuse, tell how much is used, tell what would be refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final, TypeVar

from ._limits import RuleSpec, RulesSpec

_Limits = TypeVar("_Limits")

_USD_OF_PERIOD: Final = {"hour": "usd_per_hour", "day": "usd_per_day", "month": "usd_per_month"}


def limits_from(build: Callable[..., _Limits]) -> Callable[..., _Limits]:
    """Makes `build`, of a `ScopeLimitsSpec`, take rules as they are written. A candidate is an audited limit; a budget
    that does not refuse is one of dollars in its period."""

    @wraps(build, updated=())
    def built(**written: object) -> _Limits:
        by_mode: dict[str, dict[str, object]] = {"enforce": {}, "soft": {}, "audit": {}}
        for name, value in written.items():
            if not isinstance(value, RuleSpec):
                by_mode["enforce"][name] = value
                continue
            usual = name
            if name == "budget_usd":
                usual = _USD_OF_PERIOD[str(written.get("budget_period", "month"))]
            by_mode[value.mode][name if value.mode == "enforce" else usual] = value.limit
            if value.candidate is not None:
                by_mode["audit"][usual] = value.candidate
        rules = {mode: of_mode(**by_mode[mode]) for mode in ("soft", "audit") if by_mode[mode]}
        return build(**by_mode["enforce"], **rules)

    of_mode: Callable[..., RulesSpec] = RulesSpec
    return built
