"""The ledger: reserve before a request runs, settle when it has ended; on disk before the answer ends, in Redis once.

    reserve   asks the tenant's account in Redis, with whatever else waits there
    watch     while it runs, about once a second its usage so far goes to the journal
    settle    the event goes to the journal; when that commit returns, the answer may end
    ship      outboxes send what is on disk to Redis, in order, with the next call or within 20 ms

Redis away at reserve: `StoreUnavailable`, and the request is refused. Redis away at settle: nothing waits for it. A
journal whose worker died is adopted by another one of the same directory: what was open there is billed at its last
checkpoint, and what was not shipped is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import Ask, Denial, Grant, Lease
from gateway.policy import NO_SCOPES, LimitsSpec, Scopes, TenantSpec
from gateway.store import EXACT_MAX, SHARED_DUE, Coalescer, StoreUnavailable, end_tasks, load_script

from ._account import RefusedLately, TenantAccount
from ._books import Books
from ._degraded import Degraded
from ._event import UsageEvent
from ._floods import Floods
from ._journal import JournalUnavailable
from ._open import OpenRequests, Snapshot
from ._record import Record
from ._settings import LedgerSettings

log = logging.getLogger(__name__)

ASK_TOKENS_MAX = 10**10
"""More is refused by any limit there can be; keeps the script's arithmetic exact."""


SWEPT_AT_ONCE = 100
"""Tenants whose killed workers' leases are freed in one round."""

FLOOD_BOOKED_S = 1.0
"""What a killed gateway forgets of refusals that it only counted."""

READ_WAIT_S = 0.25
"""The longest that a reader waits for what was booked before it asked."""

UNLIMITED = LimitsSpec()


class LedgerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of this worker: asks waiting for Redis, leases held, events on disk and not yet in Redis, events that
    Redis lost and got again, events given up, journals adopted, and failures of Redis in a row (0: it is there).
    `journal_failure` is why the disk cannot be written; empty when it can."""

    waiting: int
    leases: int
    unbooked: int
    replayed: int
    given_up: int
    adopted: int
    store_failures: int
    journal_failure: str


def wall_clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Ledger:
    """One worker's way to the accounts. `async with` opens its journal, and ships what is left at the end.

    Made inside the event loop it is used from. `now_ms` is Unix time: gateways' clocks have to agree within the time
    between two renewals of a lease, or one takes another's for dead. `limits_of` tells a tenant's limits by its name.
    """

    def __init__(
        self,
        redis: Redis,
        directory: Path,
        *,
        settings: LedgerSettings | None = None,
        limits_of: Callable[[str], LimitsSpec] = lambda _: UNLIMITED,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._settings = settings or LedgerSettings()
        self._loop = asyncio.get_running_loop()
        self._limits_of = limits_of
        self._redis = redis
        self._now_ms = now_ms
        self._coalescer = Coalescer(
            redis,
            load_script("account"),
            now_ms=now_ms,
            timeout_s=self._settings.call_timeout_s,
            random=random.random,
            on_connected=self._on_connected,
        )
        self._worker = secrets.token_hex(6)
        self._accounts: dict[str, TenantAccount] = {}
        self._books = Books(
            redis,
            directory,
            worker=self._worker,
            settings=self._settings,
            account_of=self._account,
            now_ms=now_ms,
        )
        self._open = OpenRequests(self._books.checkpoint)
        degrades = self._settings.on_store_failure == "degrade"
        self._degraded = Degraded(self._settings.degraded_share, now_ms) if degrades else None
        self._floods = Floods()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Ledger:
        await self._books.open()
        running = {
            "leases": self._renew_leases(),
            "open requests": self._open.keep_noting(self._settings.checkpoint_s),
            "adoption": self._books.adopt(),
            "durability": self._books.keep_durable(),
            "floods": self._keep_booking_floods(),
        }
        self._tasks += [self._loop.create_task(run, name=f"ledger: {name}") for name, run in running.items()]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def admits(self) -> bool:
        """Whether what a request uses can be written down, or the policy is to serve on without."""
        return not self._books.failure or self._settings.on_journal_failure == "serve"

    async def reserve(self, tenant: TenantSpec, ask: Ask, scopes: Scopes = NO_SCOPES) -> Grant | Denial:
        """May this request run, by its tenant's limits and those of `scopes`? Either all that it asks for is taken, or
        nothing.

        A caller that is cancelled while it waits holds nothing: what was granted meanwhile is given back.

        Raises:
            StoreUnavailable: Redis did not answer, or too much waits for it. Nothing is held for longer than
                `lease_ttl_s`.
            JournalUnavailable: what it would use could not be written down.
        """
        assert ask.lease_id.isascii(), "request ids are plain"
        assert ask.tokens >= 0
        assert 0 <= ask.nanousd <= EXACT_MAX
        if self._closed:
            raise StoreUnavailable("The gateway is shutting down")
        if not self.admits:
            raise JournalUnavailable(self._books.failure)
        if self._degraded is not None:
            return await self._reserve_or_degrade(self._degraded, tenant, ask, scopes)
        return await self._ask(tenant, ask, scopes)

    def refused_lately(self, tenant: str) -> RefusedLately | None:
        """What `reserve` refuses without asking Redis, while it does."""
        account = self._accounts.get(tenant)
        if account is None or account.refused is None or self._closed or not self.admits:
            return None
        is_degraded = self._degraded is not None and self._coalescer.failures
        return None if is_degraded else account.refused

    async def extend(self, tenant: TenantSpec, lease: Lease, ask: Ask, scopes: Scopes = NO_SCOPES) -> Grant | Denial:
        """May the request of `lease` use this as well? What is granted is a slice of the lease: it pays from the same
        periods, takes no place among the running ones, and has to be settled with it, in its `slices`.

        Raises:
            StoreUnavailable: as `reserve` does.
        """
        if self._closed:
            raise StoreUnavailable("The gateway is shutting down")
        return await self._ask(tenant, ask, scopes, slice_of=lease)

    async def _reserve_or_degrade(
        self, degraded: Degraded, tenant: TenantSpec, ask: Ask, scopes: Scopes
    ) -> Grant | Denial:
        """Redis decides while it is there, and this worker's share of the limits while it is away. During an outage
        nobody waits for Redis unless the share is used up: whoever asks then may find it back."""
        if self._coalescer.failures and (grant := degraded.take(tenant, ask, scopes)) is not None:
            return grant
        try:
            decision = await self._ask(tenant, ask, scopes)
        except StoreUnavailable:
            grant = degraded.take(tenant, ask, scopes)
            if grant is None:
                raise
            return grant
        degraded.heard(tenant.name, decision)
        return decision

    async def _ask(
        self, tenant: TenantSpec, ask: Ask, scopes: Scopes, *, slice_of: Lease | None = None
    ) -> Grant | Denial:
        account = self._account(tenant.name)
        if (
            slice_of is None
            and (denial := account.refuses(tenant.limits, ask, scopes.others, self._now_ms())) is not None
        ):
            return denial
        if account.waiting >= self._settings.waiting_max:
            raise StoreUnavailable(f"{account.waiting} requests of {tenant.name} already wait for Redis")
        if max(ask.tokens, ask.input_tokens, ask.output_tokens, ask.most_tokens) > ASK_TOKENS_MAX:
            ask = msgspec.structs.replace(
                ask,
                tokens=min(ask.tokens, ASK_TOKENS_MAX),
                input_tokens=min(ask.input_tokens, ASK_TOKENS_MAX),
                output_tokens=min(ask.output_tokens, ASK_TOKENS_MAX),
                most_tokens=min(ask.most_tokens, ASK_TOKENS_MAX),
            )
        decided = account.ask(tenant.limits, ask, scopes.others, slice_of)
        try:
            return await decided
        except asyncio.CancelledError:
            account.withdraw(decided)
            raise

    def watch(self, lease: Lease, snapshot: Snapshot) -> None:
        """While the request of `lease` runs, `snapshot` is asked for the event as it would be if this worker died."""
        self._open.add(lease, snapshot)

    async def settle(self, event: UsageEvent, lease: Lease) -> None:
        """Ends `lease` and books `event`: what it did not use goes back, its cost is spent in the period it was
        reserved in, the event joins the tenant's stream and usage sums. An event that was refused after all also gives
        back its place in requests/min.

        Returns when it is on disk; whoever is cancelled while waiting has settled all the same.

        Raises:
            JournalUnavailable: the disk has failed for longer than `commit_wait_s`. The event is kept in memory, and
                written when the disk is back.
        """
        assert event.tenant == lease.tenant
        self._open.remove(lease)
        if not self._holds(lease):
            log.error("Request %s of %s was settled twice; the second changes nothing", event.id, event.tenant)
            return
        await self._books.book(Record(event, lease))

    async def record(self, event: UsageEvent, *, period: str = "") -> None:
        """Books the event of a request that held no lease; its cost, if it has one, in the budget of `period`. Returns
        and raises as `settle` does, except that an event is not kept in memory while the disk is known to fail."""
        if not self.admits:
            raise JournalUnavailable(self._books.failure)
        await self._books.book(Record(event, Lease("", event.tenant, period, 0, 0, 0) if period else None))

    def counts(self, like: UsageEvent, request_id: str, now_ms: int) -> bool:
        """Whether the refusal of this request, like that of `like` but for its numbers and times, is counted with
        others that come in the same second; their event is booked when that is over. If not, it is to be recorded by
        itself."""
        return self._floods.counts(like, request_id, now_ms)

    async def booked(self, tenant: str) -> None:
        """Returns when Redis has what this worker has booked of `tenant`, so that who reads after an answer finds it;
        or after `READ_WAIT_S`, or when Redis is away."""
        account = self._accounts.get(tenant)
        if account is None or not account.unbooked or self._coalescer.failures:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_WAIT_S):
                await account.booked()

    async def shipped(self, timeout_s: float) -> bool:
        """Whether Redis has everything that is on disk, waiting for it for at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._unbooked():  # noqa: ASYNC110 - by commands and at the end, never for a request
                    await asyncio.sleep(0.005)
        return not self._unbooked()

    async def sweep(self) -> None:
        """Frees what killed workers hold of limits that tenants share, as happens from time to time by itself: their
        own tenants may never ask again."""
        with contextlib.suppress(RedisError, OSError):  # while Redis is away nothing is shared, nor freed
            due = await self._redis.zrange(SHARED_DUE, 0, self._now_ms(), byscore=True, offset=0, num=SWEPT_AT_ONCE)
            for tenant in cast(list[bytes], due):
                self._account(tenant.decode()).sweep()

    def renew(self) -> None:
        """Renews all leases now, as happens from time to time by itself."""
        for account in self._accounts.values():
            account.renew()

    async def prune(self) -> None:
        """Lets go now of what the journals need not keep any more, as happens from time to time by itself.

        Raises:
            StoreUnavailable: what Redis has on its disk is not known.
        """
        await self._books.prune()

    async def close(self, timeout_s: float = 5.0) -> int:
        """Ships what is left, for at most `timeout_s`; returns how many events are left to the next worker."""
        if self._closed:
            return 0
        self._closed = True
        await end_tasks(self._tasks)
        await self._book_floods()
        self._open.close()
        await self._books.finish()
        await self.shipped(0.0 if self._coalescer.failures else timeout_s)
        self._coalescer.close()
        await self._books.close()
        return self._unbooked()

    def statistics(self) -> LedgerStatistics:
        """Counts for metrics and for `/readyz`."""
        accounts = self._accounts.values()
        return LedgerStatistics(
            waiting=sum(account.waiting for account in accounts),
            leases=sum(account.leases for account in accounts),
            unbooked=self._unbooked(),
            replayed=self._books.replayed,
            given_up=self._books.given_up,
            adopted=self._books.adopted,
            store_failures=self._coalescer.failures,
            journal_failure=self._books.failure,
        )

    async def _keep_booking_floods(self) -> None:
        while True:
            await asyncio.sleep(FLOOD_BOOKED_S)
            await self._book_floods()

    async def _book_floods(self) -> None:
        for event in self._floods.due():
            with contextlib.suppress(JournalUnavailable):  # as with those that are recorded by themselves
                await self.record(event)

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_renew_s)
            self.renew()
            await self.sweep()

    def _on_connected(self, away_s: float) -> None:
        for account in self._accounts.values():
            account.reconnected(int(away_s * 1000))

    def _holds(self, lease: Lease) -> bool:
        """Whether this worker holds the lease and has not settled it yet; from now on it has."""
        if self._degraded is not None and self._degraded.ended(lease):
            return True
        return self._account(lease.tenant).settles(lease)

    def _unbooked(self) -> int:
        return sum(account.unbooked for account in self._accounts.values())

    def _account(self, tenant: str) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = TenantAccount(
                tenant,
                worker=self._worker,
                settings=self._settings,
                limits=self._limits_of(tenant),
                wake=self._coalescer.wake,
                load=self._books.load,
                create_future=self._loop.create_future,
            )
        return account
