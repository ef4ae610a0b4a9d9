"""The paths the gateway answers: the relayed ones, and pages of its own. Raw ASGI, on Starlette routes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway import refusals
from gateway.errors import Refusal, Refused
from gateway.lifecycle import Lifecycle, request_id
from gateway.metering import wall_clock_ms
from gateway.policy import TenantSpec
from gateway.relay import Message, Outgoing, Receive, Send
from gateway.tenants import key_of_header
from gateway.usage import parse_query, report
from gateway.wire import Endpoint

log = logging.getLogger(__name__)


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
    """What a page shows."""

    body: bytes
    content_type: bytes = b"application/json"
    status: int = 200


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
            head = [
                (b"content-type", content.content_type),
                (b"content-length", b"%d" % len(content.body)),
                _request_id_header(scope),
            ]
            await send({"type": "http.response.start", "status": content.status, "headers": head})
            await send({"type": "http.response.body", "body": content.body})


async def unknown(scope: Message, receive: Receive, send: Send) -> None:
    """Every other path."""
    if scope["type"] == "http":
        await _refuse(refusals.unknown_path(scope["method"], scope["path"]), scope, send)


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
        now_s = self._lifecycle.clock.now_ms() // 1000
        query = parse_query(scope["query_string"], now_s)
        if isinstance(query, Refusal):
            raise Refused(query)
        tenant = await self._whose_usage(dict(scope["headers"]), query.tenant)
        usable = self._lifecycle.policies.models_of(tenant)
        prices = {m.name: self._lifecycle.prices[m.name] for m in usable if m.name in self._lifecycle.prices}
        try:
            answer = await report(
                self._redis,
                tenant.name,
                start_s=query.start_s,
                end_s=query.end_s,
                bucket=query.bucket,
                group_by=query.group_by,
                now_s=now_s,
                limits=tenant.limits,
                prices=prices,
            )
        except RedisError as error:
            log.warning("usage cannot be read: %s", error)
            raise Refused(refusals.STORE_AWAY) from error
        return Content(msgspec.json.encode(answer))

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

    async def _whose_usage(self, headers: dict[bytes, bytes], asked: str | None) -> TenantSpec:
        key = key_of_header(headers.get(b"authorization", headers.get(b"x-api-key", b"")))
        if self._lifecycle.settings.is_admin(key):
            tenant = self._lifecycle.policies.tenants.get(asked or "")
            if tenant is None:
                raise Refused(refusals.tenant_not_found(asked))
            return tenant
        identity = await self._lifecycle.authenticate(headers)
        if asked not in (None, identity.tenant.name):
            raise Refused(refusals.NOT_ADMIN)
        return identity.tenant
