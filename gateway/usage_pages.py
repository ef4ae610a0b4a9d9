"""The pages that tell what was used: Mtok's own, and OpenAI's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
from redis.asyncio import Redis

from gateway import refusals
from gateway.endpoints import Content, own_headers, refuse, refuse_method
from gateway.errors import Refusal, Refused
from gateway.lifecycle import Lifecycle
from gateway.policy import TenantSpec
from gateway.relay import CLIENT, Client, Message, Receive, Send
from gateway.store import StoreUnavailable
from gateway.tenants import key_of_header
from gateway.usage import (
    Kind,
    find_request,
    is_entry,
    kept_days,
    last_entry,
    list_requests,
    next_events,
    organization_page,
    parse_organization_query,
    parse_query,
    parse_request_query,
    parse_requests_query,
    parse_stream_query,
    replica_alias,
    report,
)

log = logging.getLogger(__name__)

SETTLED_S = 3600
"""After that long, what a time holds of usage rarely changes: only by corrections, and by a backlog after an outage."""

LOOK_MS = 1000
"""How long a live stream waits for news before it looks whether its client is there and the gateway goes on."""
HEARTBEAT_S = 15.0
"""So often a live stream says that it lives; proxies cut connections that are silent for a minute."""
STREAMS_MAX = 100
TENANT_STREAMS_MAX = 10
"""Live streams of one worker, and of one tenant in it: each holds a connection to Redis."""


class UsagePages:
    """The pages, each a method that takes a scope and returns what to show."""

    def __init__(self, lifecycle: Lifecycle, redis: Redis) -> None:
        self._lifecycle = lifecycle
        self._redis = redis

    async def usage(self, scope: Message) -> Content:
        """`GET /v1/usage`: a tenant's own numbers; with the admin key anyone's (`?tenant=`)."""
        policies, now_s = self._lifecycle.policies, self._now_s()
        query = parse_query(scope["query_string"], now_s, kept_days(policies.ledger))
        if isinstance(query, Refusal):
            raise Refused(query)
        reader = await self.reader(dict(scope["headers"]))
        tenant = self.tenant(reader, query.tenant)
        usable = policies.models_of(tenant)
        charged = ((model.name, self._lifecycle.tariffs.of(tenant, model.name)) for model in usable)
        prices = {name: price for name, price in charged if price is not None}
        await self._lifecycle.ledger.booked(tenant.name)
        with _store_away_refused():
            answer = await report(
                self._redis,
                tenant.name,
                query,
                now_s=now_s,
                limits=tenant.limits,
                prices=prices,
                replica_name=_replica_names(reader),
            )
        return Content(msgspec.json.encode(answer), cache_control=_cache_control(query.end_s, now_s))

    async def requests(self, scope: Message) -> Content:
        """`GET /v1/usage/requests`: single events, newest first."""
        query = parse_requests_query(scope["query_string"], self._now_s())
        if isinstance(query, Refusal):
            raise Refused(query)
        reader = await self.reader(dict(scope["headers"]))
        tenant = self.tenant(reader, query.tenant)
        await self._lifecycle.ledger.booked(tenant.name)
        with _store_away_refused():
            answer = await list_requests(self._redis, tenant.name, query, _replica_names(reader))
        return Content(msgspec.json.encode(answer), cache_control=b"private, no-cache")

    async def request(self, scope: Message) -> Content:
        """`GET /v1/usage/requests/{id}`: one event, and the corrections that refer to it."""
        now_s = self._now_s()
        query = parse_request_query(scope["query_string"], now_s)
        if isinstance(query, Refusal):
            raise Refused(query)
        reader = await self.reader(dict(scope["headers"]))
        tenant = self.tenant(reader, query.tenant)
        await self._lifecycle.ledger.booked(tenant.name)
        with _store_away_refused():
            found = await find_request(
                self._redis,
                tenant.name,
                scope["path_params"]["id"],
                query,
                now_s=now_s,
                replica_name=_replica_names(reader),
            )
        if isinstance(found, Refusal):
            raise Refused(found)
        return Content(msgspec.json.encode(found), cache_control=b"private, no-cache")

    async def organization_completions(self, scope: Message) -> Content:
        """`GET /v1/organization/usage/completions`, as OpenAI has it."""
        return await self._organization("completions", scope)

    async def organization_embeddings(self, scope: Message) -> Content:
        """`GET /v1/organization/usage/embeddings`, as OpenAI has it."""
        return await self._organization("embeddings", scope)

    async def organization_costs(self, scope: Message) -> Content:
        """`GET /v1/organization/costs`, as OpenAI has it."""
        return await self._organization("costs", scope)

    async def _organization(self, kind: Kind, scope: Message) -> Content:
        """A tenant is a project: its key sees itself, the admin key all of them."""
        policies, now_s = self._lifecycle.policies, self._now_s()
        query = parse_organization_query(kind, scope["query_string"], now_s, kept_days(policies.ledger))
        if isinstance(query, Refusal):
            raise Refused(query)
        reader = await self.reader(dict(scope["headers"]))
        everyone = policies.tenants if reader is None else [reader.name]
        tenants = [self.tenant(reader, name).name for name in query.projects or everyone]
        await asyncio.gather(*(self._lifecycle.ledger.booked(name) for name in tenants))
        with _store_away_refused():
            answer = await organization_page(self._redis, tenants, query)
        return Content(msgspec.json.encode(answer), cache_control=_cache_control(query.end_s, now_s))

    async def reader(self, headers: dict[bytes, bytes]) -> TenantSpec | None:
        """The tenant who reads; None is the administrator. Raises `Refused`: 401, or 503."""
        key = key_of_header(headers.get(b"authorization", headers.get(b"x-api-key", b"")))
        if self._lifecycle.settings.is_admin(key):
            return None
        return (await self._lifecycle.authenticate(headers)).tenant

    def tenant(self, reader: TenantSpec | None, asked: str | None) -> TenantSpec:
        """Whose usage is read: one's own, or the one the administrator names. Raises `Refused`: 400, 403 or 404."""
        if reader is None:
            tenant = self._lifecycle.policies.tenants.get(asked or "")
            if tenant is None:
                raise Refused(refusals.tenant_not_found(asked))
            return tenant
        if asked not in (None, reader.name):
            raise Refused(refusals.NOT_ADMIN)
        return reader

    def _now_s(self) -> int:
        return self._lifecycle.clock.now_ms() // 1000


class LiveUsage:
    """`GET /v1/usage/stream`: a tenant's events as they are booked, as server-sent events.

    An event's id is its entry in the tenant's stream, so a client that comes back with `Last-Event-ID`, as browsers do
    by themselves, gets what it missed.
    """

    def __init__(self, pages: UsagePages, lifecycle: Lifecycle, redis: Redis) -> None:
        self._pages = pages
        self._lifecycle = lifecycle
        self._redis = redis
        self._streams: Counter[str] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await refuse_method("GET", scope)
            return
        headers = dict(scope["headers"])
        try:
            reader = await self._pages.reader(headers)
            tenant = self._pages.tenant(reader, parse_stream_query(scope["query_string"])).name
            after = await self._begin(headers, tenant)
            self._take_place(tenant)
        except Refused as refused:
            await refuse(refused.refusal, scope)
            return
        try:
            head = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
                *own_headers(scope),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            if scope["method"] == "GET":
                gone: list[bool] = []
                client: Client = scope["extensions"][CLIENT]
                client.call_when_gone(lambda: gone.append(True))
                async for part in self._parts(tenant, after, reader, headers):
                    if gone or self._lifecycle.draining:
                        break
                    if part:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._streams[tenant] -= 1

    async def _begin(self, headers: dict[bytes, bytes], tenant: str) -> str:
        """The entry after which to begin: the client's last one, or the newest there is."""
        last = headers.get(b"last-event-id", b"").decode("latin-1")
        if is_entry(last):
            return last
        with _store_away_refused():
            return await last_entry(self._redis, tenant)

    def _take_place(self, tenant: str) -> None:
        if self._streams.total() >= STREAMS_MAX or self._streams[tenant] >= TENANT_STREAMS_MAX:
            raise Refused(refusals.TOO_MANY_STREAMS)
        self._streams[tenant] += 1

    async def _parts(
        self, tenant: str, after: str, reader: TenantSpec | None, headers: dict[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """What to send, and at least every `LOOK_MS` something, if only nothing. Ends when the key is revoked."""
        now_s = self._lifecycle.clock.monotonic_s
        names = _replica_names(reader)
        yield b": live\n\n"
        spoke_s = now_s()
        while True:
            try:
                shown = await next_events(self._redis, tenant, after, wait_ms=LOOK_MS, replica_name=names)
            except StoreUnavailable as error:
                log.warning("a live stream waits for Redis: %s", error)
                await asyncio.sleep(LOOK_MS / 1000)
                shown = []
            if shown:
                after = shown[-1].entry
                yield b"".join(
                    b"id: %b\ndata: %b\n\n" % (one.entry.encode(), msgspec.json.encode(one)) for one in shown
                )
            elif now_s() - spoke_s < HEARTBEAT_S:
                yield b""
                continue
            elif await self._key_revoked(headers):
                return
            else:
                yield b": heartbeat\n\n"
            spoke_s = now_s()

    async def _key_revoked(self, headers: dict[bytes, bytes]) -> bool:
        """A stream outlives its key by one heartbeat at most; keys that cannot be looked up now are still good."""
        try:
            await self._pages.reader(headers)
        except Refused as refused:
            return refused.refusal.status == 401
        return False


@contextlib.contextmanager
def _store_away_refused() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        log.warning("usage cannot be read: %s", error)
        raise Refused(refusals.STORE_AWAY) from error


def _replica_names(reader: TenantSpec | None) -> Callable[[str], str]:
    """Addresses are for the administrator."""
    return str if reader is None else replica_alias


def _cache_control(end_s: int, now_s: int) -> bytes:
    """A time that has passed is booked but for what a gateway could not yet deliver; the present is asked for anew."""
    return b"private, max-age=300" if end_s < now_s - SETTLED_S else b"private, no-cache"
