"""The paths the gateway answers: the relayed ones, and pages of its own. Raw ASGI, on Starlette routes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from gateway import refusals
from gateway.call import POLICY
from gateway.errors import Refusal, Refused
from gateway.lifecycle import Lifecycle, request_id
from gateway.metering import wall_clock_ms
from gateway.relay import CLIENT, Headers, Message, Outgoing, Receive, Send
from gateway.wire import Endpoint

log = logging.getLogger(__name__)

IN_FORCE = "mtok.policy"
"""The key of an ASGI scope under which the app says which policies are in force: their version."""


class Relayed:
    """A path whose requests go to an engine."""

    def __init__(self, lifecycle: Lifecycle, endpoint: Endpoint) -> None:
        self._lifecycle = lifecycle
        self._endpoint = endpoint

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["method"] != "POST":
            return refuse_method("POST", scope)
        return self._lifecycle.serve(self._endpoint, scope, receive)


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows. With `cache_control` a client may keep it, and asks by its tag whether it still holds."""

    body: bytes
    content_type: bytes = b"application/json"
    status: int = 200
    cache_control: bytes = b""


class Page:
    """A path the gateway answers itself: GET, and further methods where it says so; every failure in OpenAI's shape."""

    def __init__(self, show: Callable[[Message], Awaitable[Content]], *, also: Sequence[str] = ()) -> None:
        self._show = show
        self._also = also

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD", *self._also):
            await refuse_method(", ".join(("GET", *self._also)), scope)
            return
        try:
            content = await self._show(scope)
        except Refused as refused:
            await refuse(refused.refusal, scope)
        except Exception:
            log.exception("unexpected failure on %s", scope["path"])
            await refuse(refusals.INTERNAL, scope)
        else:
            await _show(content, scope, send)


async def unknown(scope: Message, receive: Receive, send: Send) -> None:
    """Every other path."""
    if scope["type"] == "http":
        await refuse(refusals.unknown_path(scope["method"], scope["path"]), scope)


async def _show(content: Content, scope: Message, send: Send) -> None:
    status, body = content.status, content.body
    head = own_headers(scope)
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


async def refuse(refusal: Refusal, scope: Message) -> None:
    """Answers with a refusal."""
    await Outgoing(scope["extensions"][CLIENT]).refuse(refusal, own_headers(scope))


async def refuse_method(allowed: str, scope: Message) -> None:
    """Answers another method than the one `allowed`."""
    refusal = refusals.wrong_method(scope["method"], scope["path"], allowed)
    await Outgoing(scope["extensions"][CLIENT]).refuse(refusal, [*own_headers(scope), (b"allow", allowed.encode())])


def own_headers(scope: Message) -> Headers:
    """What every answer to a request that is not relayed carries: its id, and the version of the policies in force."""
    identity = request_id(dict(scope["headers"]), wall_clock_ms()).encode()
    return [(b"x-request-id", identity), (POLICY, scope[IN_FORCE].encode())]


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

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

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

    async def healthz(self, scope: Message) -> Content:
        """Whether this process serves at all."""
        return Content(b'{"status":"ok"}')

    async def readyz(self, scope: Message) -> Content:
        """Whether requests should come here: a replica is healthy, usage can be booked, the gateway is not stopping;
        and the version of the policies in force."""
        lifecycle = self._lifecycle
        if lifecycle.draining:
            status = "draining"
        elif not lifecycle.fleet.ready():
            status = "no healthy replica"
        elif not lifecycle.ledger.admits:
            status = "journal unavailable"
        else:
            status = "ok"
        told = {"status": status, "policy": lifecycle.policies.version}
        return Content(msgspec.json.encode(told), status=200 if status == "ok" else 503)

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
