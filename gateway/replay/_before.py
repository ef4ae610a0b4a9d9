"""What was used before the first arrival, in the hours, days and months that the arrivals begin in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gateway.admission import Period
from gateway.policy import Scope


class UsedHour(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one tenant's key used of one model in the hour from `start_s` (Unix) on: input and output tokens, and
    nano-dollars."""

    tenant: str
    key: str
    model: str
    start_s: int
    tokens: int
    nanousd: int


class Before:
    """`groups` are the tenants' by their names."""

    def __init__(self, used: Sequence[UsedHour], groups: Mapping[str, str | None]) -> None:
        self._used = used
        self._groups = groups
        self._last_s = max((hour.start_s for hour in used), default=0)

    def used(self, tenant: str, scope: Scope | None, period: Period) -> tuple[int, int]:
        """Tokens and nano-dollars that `scope`, or a tenant itself, had used in `period`."""
        tokens = nanousd = 0
        if period.start_s <= self._last_s:
            for hour in self._used:
                if period.start_s <= hour.start_s < period.end_s and self._is_of(hour, tenant, scope):
                    tokens += hour.tokens
                    nanousd += hour.nanousd
        return tokens, nanousd

    def _is_of(self, hour: UsedHour, tenant: str, scope: Scope | None) -> bool:
        match "tenant" if scope is None else scope.kind:
            case "tenant":
                return hour.tenant == tenant
            case "key":
                return hour.tenant == tenant and scope is not None and hour.key == scope.of
            case "group":
                return scope is not None and self._groups.get(hour.tenant) == scope.of
            case "model":
                return scope is not None and hour.model == scope.of
            case _:
                return True
