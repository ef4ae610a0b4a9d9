"""The ledger: reserve before a request runs, settle when it has ended, and nothing booked twice or lost on the way.

Redis away at reserve: `StoreUnavailable`, and the request is refused. Redis away at settle: the event stays in memory
and in line, and is sent again until it is booked; it survives Redis, not this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import msgspec
from redis.asyncio import Redis

from gateway.admission import Ask, Denial, Grant, Lease
from gateway.policy import TenantSpec
from gateway.store import EXACT_MAX, Coalescer, StoreUnavailable, load_script

from ._account import TenantAccount
from ._event import UsageEvent
from ._settings import LedgerSettings

log = logging.getLogger(__name__)

ASK_TOKENS_MAX = 10**10
"""More is refused by any limit there can be; keeps the script's arithmetic exact."""


class LedgerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of this worker: asks waiting for Redis, leases held, events not yet booked, events given up (they are in
    the log), and failures of Redis in a row (0: it is there)."""

    waiting: int
    leases: int
    unbooked: int
    given_up: int
    store_failures: int


def wall_clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Ledger:
    """One worker's way to the accounts. `async with` renews its leases meanwhile and books what is left at the end.

    Made inside the event loop it is used from. `now_ms` is Unix time: gateways' clocks have to agree within the time
    between two renewals of a lease, or one takes another's for dead.
    """

    def __init__(
        self, redis: Redis, *, settings: LedgerSettings | None = None, now_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._settings = settings or LedgerSettings()
        self._loop = asyncio.get_running_loop()
        self._coalescer = Coalescer(
            redis,
            load_script("account"),
            now_ms=now_ms,
            timeout_s=self._settings.call_timeout_s,
            random=random.random,
        )
        self._producer = secrets.token_hex(6)
        self._accounts: dict[str, TenantAccount] = {}
        self._given_up = 0
        self._bookers: deque[tuple[float, asyncio.Future[None]]] = deque()  # until when each waits, soonest first
        self._patience: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Ledger:
        self._renewing = self._loop.create_task(self.run_renewals())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def reserve(self, tenant: TenantSpec, ask: Ask) -> Grant | Denial:
        """May this request run? Either everything it asks for is taken, or nothing.

        A caller that is cancelled while it waits holds nothing: what was granted meanwhile is given back.

        Raises:
            StoreUnavailable: Redis did not answer, or too much waits for it. Nothing is held for longer than
                `lease_ttl_s`.
        """
        assert ask.lease_id.isascii(), "request ids are plain"
        assert ask.tokens >= 0
        assert 0 <= ask.nanousd <= EXACT_MAX
        if self._closed:
            raise StoreUnavailable("The gateway is shutting down")
        account = self._account(tenant.name)
        if account.waiting >= self._settings.waiting_max:
            raise StoreUnavailable(f"{account.waiting} requests of {tenant.name} already wait for Redis")
        if ask.tokens > ASK_TOKENS_MAX:
            ask = Ask(ask.lease_id, ASK_TOKENS_MAX, ask.nanousd)
        decided = account.ask(tenant.limits, ask)
        try:
            return await decided
        except asyncio.CancelledError:
            account.withdraw(decided)
            raise

    async def settle(self, event: UsageEvent, lease: Lease) -> None:
        """Ends `lease` and books `event`: what it did not use goes back, its cost is spent in the period it was
        reserved in, the event joins the tenant's stream and usage sums. An event that was refused after all also gives
        back its place in requests/min.

        Returns when it is booked, or after `settle_wait_s`; then it is booked later. A lease is settled once: a second
        time changes nothing.
        """
        assert event.tenant == lease.tenant
        await self._book(event, lease)

    async def record(self, event: UsageEvent) -> None:
        """Books the event of a request that held no lease. Returns as `settle` does."""
        await self._book(event, None)

    async def run_renewals(self) -> None:
        """Renews this worker's leases until cancelled; `async with` does it by itself."""
        while True:
            await asyncio.sleep(self._settings.lease_renew_s)
            self.renew()

    def renew(self) -> None:
        """Renews all leases now, as `run_renewals` does from time to time."""
        for account in self._accounts.values():
            account.renew()

    async def close(self, timeout_s: float = 5.0) -> int:
        """Books what is left, for at most `timeout_s`; returns the number of events that could not be booked. Those
        are written to the log."""
        if self._closed:
            return 0
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while left := [account for account in self._accounts.values() if account.unbooked]:
                    await asyncio.gather(*(account.booked() for account in left))
                    if self._coalescer.failures:
                        await asyncio.sleep(0.02)
        self._closed = True
        self._coalescer.close()
        if self._patience is not None:
            self._patience.cancel()
        lost = 0
        for account in self._accounts.values():
            for packed in account.unbooked_events():
                lost += 1
                self._give_up(packed)
        return lost

    def statistics(self) -> LedgerStatistics:
        """Counts for metrics and for `/readyz`."""
        accounts = self._accounts.values()
        return LedgerStatistics(
            waiting=sum(account.waiting for account in accounts),
            leases=sum(account.leases for account in accounts),
            unbooked=sum(account.unbooked for account in accounts),
            given_up=self._given_up,
            store_failures=self._coalescer.failures,
        )

    async def _book(self, event: UsageEvent, lease: Lease | None) -> None:
        account = self._account(event.tenant)
        if self._closed or account.unbooked >= self._settings.unbooked_max:
            self._give_up(msgspec.json.encode(event))
            if lease is not None:
                account.forget(lease)
            return
        if not account.book(event, lease):
            log.error("Request %s of %s was settled twice; the second changes nothing", event.id, event.tenant)
            return
        if self._coalescer.failures:  # known to be away: the answer need not wait for it
            return
        booked = account.booked()
        until = self._loop.time() + self._settings.settle_wait_s
        self._bookers.append((until, booked))
        if self._patience is None:
            self._patience = self._loop.call_at(until, self._lose_patience)
        await booked

    def _lose_patience(self) -> None:
        """Lets those go who have waited long enough. One timer for all: most have their answer when it fires."""
        self._patience = None
        now = self._loop.time()
        while self._bookers:
            until, booked = self._bookers[0]
            if not booked.done():
                if until > now:
                    self._patience = self._loop.call_at(until, self._lose_patience)
                    return
                booked.set_result(None)
            self._bookers.popleft()

    def _give_up(self, packed: bytes) -> None:
        self._given_up += 1
        log.critical("A usage event could not be booked and leaves memory: %s", packed.decode())

    def _account(self, tenant: str) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = TenantAccount(
                tenant, producer=self._producer, settings=self._settings, wake=self._coalescer.wake
            )
        return account
