"""A loud warning, once a day, for rules of the policies that nothing has matched for a day.

Every worker knows when it is time; one of all of them looks at what was used, and tells.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.policy import Match, Policies, RuleName, Unmatched
from gateway.store import RULES_TOLD, StoreUnavailable, end_tasks
from gateway.usage import matches_since_yesterday

log = logging.getLogger(__name__)

LOOK_S: Final = 300.0
TOLD_MS: Final = 23 * 3_600_000
"""Workers that began at different hours are due at different hours: for so long after one has told no other does."""


class RuleWatch:
    """`async with` runs it. `show` gets what this worker has found; nothing when another one has told instead.

    `now_ms` is Unix time.
    """

    def __init__(
        self,
        redis: Redis,
        policies: Policies,
        *,
        now_ms: Callable[[], int],
        show: Callable[[Sequence[RuleName]], None],
    ) -> None:
        self._redis = redis
        self._now_ms = now_ms
        self._show = show
        self._unmatched = Unmatched(policies, now_ms())
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RuleWatch:
        self._task = asyncio.create_task(self._run(), name="unmatched rules")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            await end_tasks([self._task])

    def use(self, policies: Policies) -> None:
        """These policies are in force from now on."""
        self._unmatched.use(policies, self._now_ms())

    async def look(self) -> None:
        """Tells, if it is time and no other worker has.

        Raises `RedisError`, `OSError`, `StoreUnavailable`: the next look tries again.
        """
        now_ms = self._now_ms()
        if not self._unmatched.due(now_ms):
            return
        if not await self._redis.set(RULES_TOLD, str(now_ms), nx=True, px=TOLD_MS):
            self._unmatched.told_elsewhere(now_ms)
            self._show(())
            return
        try:
            found = self._unmatched.tell(await self._matches(now_ms), now_ms)
        except StoreUnavailable:
            await self._redis.delete(RULES_TOLD)
            raise
        self._show(found)
        if found:
            named = [f"{rule.kind} {rule.name}" for rule in found]
            log.warning(
                "nothing has matched these rules of the policies for a day; are they spelled as clients spell them? %s",
                ", ".join(named),
                extra={"data": {"unmatched": named}},
            )

    async def _matches(self, now_ms: int) -> set[Match]:
        found: set[Match] = set()
        for tenant in self._unmatched.tenants:
            found |= await matches_since_yesterday(self._redis, tenant, now_ms // 1000)
        return found

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except (RedisError, OSError, StoreUnavailable) as error:
                log.warning("which rules nothing matches cannot be looked at: %s", error)
