"""The paths the gateway answers: the relayed ones, and pages of its own. Raw ASGI, on Starlette routes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis

from gateway import refusals
from gateway.errors import Refusal, Refused
from gateway.lifecycle import Lifecycle, request_id
from gateway.metering import wall_clock_ms
from gateway.policy import TenantSpec
from gateway.relay import Message, Outgoing, Receive, Send
from gateway.store import StoreUnavailable
from gateway.tenants import key_of_header
from gateway.usage import (
    Kind,
    kept_days,
    organization_page,
    parse_organization_query,
    parse_query,
    replica_alias,
    report,
)
from gateway.wire import Endpoint

log = logging.getLogger(__name__)

SETTLED_S = 3600
"""After that long, what a time holds of usage rarely changes: only by corrections, and by a backlog after an outage."""


class Relayed:
    """A path whose requests go to an engine."""

    def __init__(self, lifecycle: Lifecycle, endpoint: Endpoint) -> None:
        self._lifecycle = lifecycle
        self._endpoint = endpoint

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _refuse_method("POST", scope, send)
            return
        await self._lifecycle.serve(self._endpoint, scope, receive, send)


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows. With `cache_control` a client may keep it, and asks by its tag whether it still holds."""

    body: bytes
    content_type: bytes = b"application/json"
    status: int = 200
    cache_control: bytes = b""


class Page:
    """A path the gateway answers itself: GET, and every failure in OpenAI's shape."""

    def __init__(self, show: Callable[[Message], Awaitable[Content]]) -> None:
        self._show = show

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _refuse_method("GET", scope, send)
            return
        try:
            content = await self._show(scope)
        except Refused as refused:
            await _refuse(refused.refusal, scope, send)
        except Exception:
            log.exception("unexpected failure on %s", scope["path"])
            await _refuse(refusals.INTERNAL, scope, send)
        else:
            await _show(content, scope, send)


async def unknown(scope: Message, receive: Receive, send: Send) -> None:
    """Every other path."""
    if scope["type"] == "http":
        await _refuse(refusals.unknown_path(scope["method"], scope["path"]), scope, send)


async def _show(content: Content, scope: Message, send: Send) -> None:
    status, body = content.status, content.body
    head = [_request_id_header(scope)]
    if content.cache_control:
        tag = b'"%b"' % hashlib.blake2b(body, digest_size=16).hexdigest().encode()
        head += [(b"etag", tag), (b"cache-control", content.cache_control), (b"vary", b"authorization, x-api-key")]
        known = dict(scope["headers"]).get(b"if-none-match", b"")
        if known == b"*" or tag in (name.strip().removeprefix(b"W/") for name in known.split(b",")):
            status, body = 304, b""
    if status != 304:
        head += [(b"content-type", content.content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _refuse(refusal: Refusal, scope: Message, send: Send) -> None:
    await Outgoing(send).refuse(refusal, [_request_id_header(scope)])


async def _refuse_method(allowed: str, scope: Message, send: Send) -> None:
    refusal = refusals.wrong_method(scope["method"], scope["path"], allowed)
    await Outgoing(send).refuse(refusal, [_request_id_header(scope), (b"allow", allowed.encode())])


def _request_id_header(scope: Message) -> tuple[bytes, bytes]:
    return b"x-request-id", request_id(dict(scope["headers"]), wall_clock_ms()).encode()


class _ModelCard(msgspec.Struct):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "mtok"
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]
    object: str = "list"


class Pages:
    """The gateway's own pages, each a method that takes a scope and returns what to show."""

    def __init__(self, lifecycle: Lifecycle, redis: Redis) -> None:
        self._lifecycle = lifecycle
        self._redis = redis

    async def models(self, scope: Message) -> Content:
        """`GET /v1/models`: what the tenant may use, aliases included."""
        return Content(msgspec.json.encode(_ModelList(await self._cards(scope))))

    async def model(self, scope: Message) -> Content:
        """`GET /v1/models/{name}`."""
        wanted = scope["path_params"]["name"]
        for card in await self._cards(scope):
            if card.id == wanted:
                return Content(msgspec.json.encode(card))
        raise Refused(refusals.model_not_found(wanted))

    async def usage(self, scope: Message) -> Content:
        """`GET /v1/usage`: a tenant's own numbers; with the admin key anyone's (`?tenant=`)."""
        policies, now_s = self._lifecycle.policies, self._lifecycle.clock.now_ms() // 1000
        query = parse_query(scope["query_string"], now_s, kept_days(policies.ledger))
        if isinstance(query, Refusal):
            raise Refused(query)
        reader = await self._reader(dict(scope["headers"]))
        tenant = self._tenant(reader, query.tenant)
        usable = policies.models_of(tenant)
        prices = {m.name: self._lifecycle.prices[m.name] for m in usable if m.name in self._lifecycle.prices}
        try:
            answer = await report(
                self._redis,
                tenant.name,
                query,
                now_s=now_s,
                limits=tenant.limits,
                prices=prices,
                replica_name=str if reader is None else replica_alias,
            )
        except StoreUnavailable as error:
            log.warning("usage cannot be read: %s", error)
            raise Refused(refusals.STORE_AWAY) from error
        return Content(msgspec.json.encode(answer), cache_control=_cache_control(query.end_s, now_s))

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
        policies, now_s = self._lifecycle.policies, self._lifecycle.clock.now_ms() // 1000
        query = parse_organization_query(kind, scope["query_string"], now_s, kept_days(policies.ledger))
        if isinstance(query, Refusal):
            raise Refused(query)
        reader = await self._reader(dict(scope["headers"]))
        everyone = policies.tenants if reader is None else [reader.name]
        tenants = [self._tenant(reader, name).name for name in query.projects or everyone]
        try:
            answer = await organization_page(self._redis, tenants, query)
        except StoreUnavailable as error:
            log.warning("usage cannot be read: %s", error)
            raise Refused(refusals.STORE_AWAY) from error
        return Content(msgspec.json.encode(answer), cache_control=_cache_control(query.end_s, now_s))

    async def healthz(self, scope: Message) -> Content:
        """Whether this process serves at all."""
        return Content(b'{"status":"ok"}')

    async def readyz(self, scope: Message) -> Content:
        """Whether requests should come here: a replica is healthy, and the gateway is not stopping."""
        if self._lifecycle.draining:
            return Content(b'{"status":"draining"}', status=503)
        if not self._lifecycle.fleet.ready():
            return Content(b'{"status":"no healthy replica"}', status=503)
        return Content(b'{"status":"ok"}')

    async def metrics(self, scope: Message) -> Content:
        """Prometheus' text format, for all workers."""
        text = self._lifecycle.telemetry.metrics.exposition()
        return Content(text, b"text/plain; version=0.0.4; charset=utf-8")

    async def _cards(self, scope: Message) -> list[_ModelCard]:
        identity = await self._lifecycle.authenticate(dict(scope["headers"]))
        fleet = self._lifecycle.fleet
        return [
            _ModelCard(id=name, max_model_len=fleet.models[spec.name].context_tokens)
            for spec in self._lifecycle.policies.models.values()
            if identity.tenant.may_use(spec)
            for name in (spec.name, *spec.aliases)
        ]

    async def _reader(self, headers: dict[bytes, bytes]) -> TenantSpec | None:
        """The tenant who reads; None is the administrator. Raises `Refused`: 401, or 503."""
        key = key_of_header(headers.get(b"authorization", headers.get(b"x-api-key", b"")))
        if self._lifecycle.settings.is_admin(key):
            return None
        return (await self._lifecycle.authenticate(headers)).tenant

    def _tenant(self, reader: TenantSpec | None, asked: str | None) -> TenantSpec:
        """Whose usage is read: one's own, or the one the administrator names. Raises `Refused`: 400, 403 or 404."""
        if reader is None:
            tenant = self._lifecycle.policies.tenants.get(asked or "")
            if tenant is None:
                raise Refused(refusals.tenant_not_found(asked))
            return tenant
        if asked not in (None, reader.name):
            raise Refused(refusals.NOT_ADMIN)
        return reader


def _cache_control(end_s: int, now_s: int) -> bytes:
    """A time that has passed is booked but for what a gateway could not yet deliver; the present is asked for anew."""
    return b"private, max-age=300" if end_s < now_s - SETTLED_S else b"private, no-cache"
