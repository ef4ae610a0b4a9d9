"""What only the administrator sees: the state of everything, which `mtok top` draws."""

from __future__ import annotations

import logging

import msgspec
from redis.asyncio import Redis

from gateway import refusals
from gateway.admission import Left, unit_of, usd
from gateway.draining import Draining, parse_drain_query
from gateway.endpoints import Content
from gateway.errors import Refusal, Refused
from gateway.lifecycle import Lifecycle
from gateway.overview import LimitState, State, gather
from gateway.policy import LimitsSpec, Policies, Scope
from gateway.relay import Message
from gateway.store import StoreUnavailable
from gateway.tenants import key_of_header
from gateway.usage import read_left, read_running

log = logging.getLogger(__name__)

SHARED_KINDS = ("group", "model", "fleet")
LIMITS_SHOWN_MAX = 100
"""Tenants whose limits are read for one answer, those with the most requests: each takes an exchange with Redis."""


class AdminPages:
    """The pages, each a method that takes a scope and returns what to show."""

    def __init__(self, lifecycle: Lifecycle, redis: Redis, draining: Draining) -> None:
        self._lifecycle = lifecycle
        self._redis = redis
        self._draining = draining
        self._scopes: tuple[Policies | None, list[Scope]] = None, []

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

    async def drain(self, scope: Message) -> Content:
        """`/admin/drain`: GET shows which replicas drain, and how far; POST lets `?replica=` drain, what runs there
        after `cut_after_s` is cut; DELETE undoes that."""
        self._admit(dict(scope["headers"]))
        asked = parse_drain_query(scope["query_string"])
        if isinstance(asked, Refusal):
            raise Refused(asked)
        try:
            replica = self._lifecycle.fleet.find(asked.replica)
            if replica is None and (asked.replica or scope["method"] in ("POST", "DELETE")):
                raise Refused(refusals.unknown_replica(asked.replica))
            if replica is not None and scope["method"] == "DELETE":
                await self._draining.undo(replica.name)
            elif replica is not None and scope["method"] == "POST":
                await self._draining.start(replica, cut_after_s=asked.cut_after_s)
            states = await self._draining.states(None if replica is None else replica.name)
        except StoreUnavailable as error:
            log.warning("what drains cannot be kept: %s", error)
            raise Refused(refusals.STORE_AWAY) from error
        return Content(msgspec.json.encode(states), cache_control=b"private, no-cache")

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
        for name in busiest:
            spec = policies.tenants.get(name)
            own = () if spec is None else policies.scopes_of(spec, "", "").others
            scopes = [scope for scope in own if scope.kind == "tenant"]
            left = await read_left(self._redis, name, policies.limits_of(name), state.at_ms, scopes=scopes)
            state.tenants[name].limits = {f"{one.dimension}{_mode(one)}": _shown(one) for one in left}
        if shared := self._shared_scopes(policies):
            any_tenant = next(iter(policies.tenants))
            for one in await read_left(self._redis, any_tenant, LimitsSpec(), state.at_ms, scopes=shared):
                state.shared.setdefault(f"{one.scope}{_mode(one)}", {})[one.dimension] = _shown(one)

    def _shared_scopes(self, policies: Policies) -> list[Scope]:
        """Those of groups, models and the fleet, kept until policies change."""
        known, scopes = self._scopes
        if known is not policies:
            met = {
                scope.name: scope
                for tenant in policies.tenants.values()
                for model in policies.models
                for scope in policies.scopes_of(tenant, "", model).others
                if scope.kind in SHARED_KINDS
            }
            scopes = [*met.values()]
            self._scopes = policies, scopes
        return scopes


def _mode(left: Left) -> str:
    return "" if left.mode == "enforce" else f" ({left.mode})"


def _shown(left: Left) -> LimitState:
    if unit_of(left.dimension) == "nanousd":
        return LimitState(usd(left.limit), usd(left.remaining), is_usd=True, resets_at=left.resets_at_s)
    return LimitState(str(left.limit), str(left.remaining), resets_at=left.resets_at_s or None)
