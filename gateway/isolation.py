"""The salts of tenants whose caches are their own, from the secret that all gateways have in common."""

from __future__ import annotations

import logging

from redis.asyncio import Redis

from gateway import refusals
from gateway.errors import Refused
from gateway.routing import tenant_salt
from gateway.store import StoreUnavailable, cache_secret

log = logging.getLogger(__name__)


class Salts:
    """One worker's. Where the environment gives no secret, Redis has it from the first request on that needs one."""

    def __init__(self, redis: Redis, secret: bytes | None) -> None:
        self._redis = redis
        self._secret = secret
        self._of: dict[str, str] = {}

    async def of(self, tenant: str, own: bytes) -> str:
        """The `cache_salt` of a tenant's request that came with this one, raw JSON, or none.

        Raises `Refused` (503) while the secret is not known: a request that is to be isolated never runs without.
        """
        if self._secret is None:
            try:
                self._secret = await cache_secret(self._redis)
            except StoreUnavailable as error:
                log.warning("tenants' caches cannot be kept apart: %s", error)
                raise Refused(refusals.STORE_AWAY) from error
        if own:
            return tenant_salt(self._secret, tenant, own)
        salt = self._of.get(tenant)
        if salt is None:
            salt = self._of[tenant] = tenant_salt(self._secret, tenant)
        return salt
