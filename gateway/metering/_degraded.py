"""Admission while Redis is away, where the policy wants that: each tenant's allowance, and what was granted from it."""

from __future__ import annotations

from collections.abc import Callable

from gateway.admission import Allowance, Ask, Denial, Grant, Lease, Standing, period_at
from gateway.policy import Scopes, TenantSpec


class Degraded:
    """One worker's own grants. An outage's allowances last until Redis has answered again."""

    def __init__(self, share: float, now_ms: Callable[[], int]) -> None:
        self._share = share
        self._now_ms = now_ms
        self._last: dict[str, Standing] = {}
        self._allowances: dict[str, Allowance] = {}
        self._holding: dict[str, Allowance] = {}
        self._granted = 0

    def heard(self, tenant: str, decision: Grant | Denial) -> None:
        """Redis has decided: this is how the tenant's limits stand, and an outage that was is over."""
        self._last[tenant] = decision.standing
        self._allowances.pop(tenant, None)

    def take(self, tenant: TenantSpec, ask: Ask, scopes: Scopes) -> Grant | None:
        """A grant from the tenant's allowance, or None when that is used up. Its lease holds nothing in Redis, so what
        the request uses is taken from the limits when it is booked. None too where limits hold that others share, or of
        its key: only Redis counts those."""
        if any(scope.mode == "enforce" for scope in scopes.others):
            return None
        now_ms = self._now_ms()
        last = self._last.get(tenant.name)
        allowance = self._allowances.get(tenant.name)
        if allowance is None or allowance.limits is not tenant.limits:
            allowance = Allowance(tenant.limits, share=self._share, last=last, now_ms=now_ms)
            self._allowances[tenant.name] = allowance
        if not allowance.take(ask, now_ms):
            return None
        self._granted += 1
        member = f"{ask.lease_id}|local.{self._granted}"
        self._holding[member] = allowance
        limits = tenant.limits
        period = period_at(limits.budget_period, now_ms // 1000, limits.time_zone).name
        lease = Lease(member=member, tenant=tenant.name, period=period, tokens=0, nanousd=0, reserved_ms=now_ms)
        return Grant(lease, last or Standing(None, 0, 0, None, 0, 0))

    def ended(self, lease: Lease) -> bool:
        """Whether the lease was one of these and had not ended before."""
        allowance = self._holding.pop(lease.member, None)
        if allowance is None:
            return False
        allowance.give_back()
        return True
