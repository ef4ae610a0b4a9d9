"""What only the administrator sees: the state of everything, which `mtok top` draws."""

from __future__ import annotations

import logging

import msgspec
from redis.asyncio import Redis

from gateway import refusals
from gateway.endpoints import Content
from gateway.errors import Refused
from gateway.lifecycle import Lifecycle
from gateway.overview import LimitState, State, gather
from gateway.relay import Message
from gateway.store import StoreUnavailable
from gateway.tenants import key_of_header
from gateway.usage import BudgetLeft, Limits, read_limits, read_running

log = logging.getLogger(__name__)

LIMITS_SHOWN_MAX = 100
"""Tenants whose limits are read for one answer, those with the most requests: each takes an exchange with Redis."""


class AdminPages:
    """The pages, each a method that takes a scope and returns what to show."""

    def __init__(self, lifecycle: Lifecycle, redis: Redis) -> None:
        self._lifecycle = lifecycle
        self._redis = redis

    async def state(self, scope: Message) -> Content:
        """`GET /admin/state`: tenants, queues, limits, replicas and their knees, over all workers of this gateway."""
        self._admit(dict(scope["headers"]))
        lifecycle = self._lifecycle
        state = gather(
            lifecycle.telemetry.metrics.samples(),
            at_ms=lifecycle.clock.now_ms(),
            policies_sha256=lifecycle.policies.sha256,
            replicas=[replica.name for replica in lifecycle.fleet.replicas],
        )
        try:
            await self._add_limits(state)
        except StoreUnavailable as error:
            log.warning("limits cannot be read: %s", error)
            state.warnings.append("Redis does not answer: limits and running requests are not known")
        return Content(msgspec.json.encode(state), cache_control=b"private, no-cache")

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        key = key_of_header(headers.get(b"authorization", headers.get(b"x-api-key", b"")))
        if not key:
            raise Refused(refusals.NO_KEY)
        if not self._lifecycle.settings.is_admin(key):
            raise Refused(refusals.ADMIN_ONLY)

    async def _add_limits(self, state: State) -> None:
        policies = self._lifecycle.policies
        for tenant, count in (await read_running(self._redis, list(state.tenants), state.at_ms)).items():
            state.tenants[tenant].running = count
        busiest = sorted(state.tenants, key=lambda name: -state.tenants[name].requests)[:LIMITS_SHOWN_MAX]
        for tenant in busiest:
            limits = policies.limits_of(tenant)
            left = await read_limits(self._redis, tenant, limits, state.at_ms // 1000)
            state.tenants[tenant].limits = _shown(left)


def _shown(left: Limits) -> dict[str, LimitState]:
    return {
        name: LimitState(one.limit_usd, one.remaining_usd, is_usd=True, resets_at=one.resets_at)
        if isinstance(one, BudgetLeft)
        else LimitState(str(one.limit), str(one.remaining), resets_at=one.resets_at)
        for name, one in left.items()
    }
