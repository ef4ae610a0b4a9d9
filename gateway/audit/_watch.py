"""What a running gateway does so that it can be audited: it writes down its tenants, and one worker of all holds
the ledger against the engines' counters every few minutes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.store import AUDIT_LEASE, StoreUnavailable, end_tasks

from ._events import remember_tenants
from ._span import Audit, audit

log = logging.getLogger(__name__)

AUDIT_INTERVAL_S = 300.0
WINDOW_S = 600
"""Each event is read by two audits: 6 µs of CPU each, in pieces of a millisecond."""
RETRY_S = 5.0


class Watch:
    """`async with` runs it. `show` gets every audit of this worker; None when another worker audits from now on.

    `now_ms` is Unix time.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        tenants: Collection[str],
        now_ms: Callable[[], int],
        show: Callable[[Audit | None], None],
        interval_s: float = AUDIT_INTERVAL_S,
    ) -> None:
        self._redis = redis
        self._tenants = tenants
        self._now_ms = now_ms
        self._show = show
        self._interval_s = interval_s
        self._me = secrets.token_hex(6)
        self._written = False
        self._task: asyncio.Task[None] | None = None

    def use(self, tenants: Collection[str]) -> None:
        """These are the tenants from now on; they are written down with the next audit."""
        self._tenants = tenants
        self._written = False

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._run(), name="audit")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await end_tasks([self._task])

    async def write_down(self) -> None:
        """The tenants. Raises `RedisError` and `OSError`."""
        await remember_tenants(self._redis, list(self._tenants))

    async def audit(self) -> None:
        """Holds the last minutes against the counters, if that is this worker's to do.

        Raises `RedisError`, `OSError`, `StoreUnavailable`.
        """
        ttl_ms = int(self._interval_s * 2500)
        await self._redis.set(AUDIT_LEASE, self._me, nx=True, px=ttl_ms)
        if await self._redis.get(AUDIT_LEASE) != self._me.encode():
            self._show(None)
            return
        await self._redis.pexpire(AUDIT_LEASE, ttl_ms)
        now_ms = self._now_ms()
        now_s = now_ms // 1000
        found = await audit(self._redis, start_s=now_s - WINDOW_S, end_s=now_s, now_ms=now_ms)
        self._show(found)
        for name, verdict in found.replicas.items():
            for span in verdict.spans:
                if span.unexplained:
                    log.error("the ledger and the counters of %s disagree: %s", name, span)

    async def _run(self) -> None:
        while True:
            try:
                if not self._written:
                    self._written = True
                    await self.write_down()
                await self.audit()
            except (RedisError, OSError, StoreUnavailable) as error:
                self._written = False
                log.warning("the audit waits for Redis: %s", error)
            await asyncio.sleep(self._interval_s if self._written else RETRY_S)
