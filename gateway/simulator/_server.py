"""The replica as a server: routes, error shapes, headers, and the engine's life beside the application's."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from ._chat import Chat
from ._completions import Completions
from ._errors import ApiError, Invalid
from ._faults import Fault, Faults, FaultyExchange
from ._http import ClientGone, Exchange, HttpMetrics, Message, Receive, Send
from ._json import dumps
from ._messages import CountTokens, Messages, error_of
from ._params import Body, load_body
from ._plain import Plain
from ._profiles import PROFILES, Profile
from ._replica import Replica
from ._responses import Responses

STOP_S = 1
"""An open stream does not hold a stopping replica for longer; vLLM aborts what runs at once."""

BodyHandler = Callable[[Exchange, Body], Awaitable[None]]


class _Get:
    """A route without a body."""

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._handle(Exchange(scope, receive, send))


class _Post:
    """A route with a JSON body: reads it, and turns refusals into vLLM's answers."""

    def __init__(self, path: str, function: str, handle: BodyHandler) -> None:
        self._path, self._function, self._answer = path, function, handle

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        # A client that goes, or a fault that plays one, leaves nobody to answer.
        with suppress(ClientGone):
            await self.handle(Exchange(scope, receive, send))

    async def handle(self, exchange: Exchange) -> None:
        """Answer one exchange."""
        try:
            await self._answer(exchange, load_body(await exchange.read_body()))
        except Invalid as invalid:
            await _refuse(exchange, invalid.as_error(self._path, self._function))
        except ApiError as error:
            await _refuse(exchange, error, anthropic=self._path.startswith("/v1/messages"))


async def _refuse(exchange: Exchange, error: ApiError, *, anthropic: bool = False) -> None:
    exchange.scope["simulator.late"] = error.late
    body = error.as_json()
    await exchange.answer_json(error_of(body) if anthropic else body, status=error.status)


class _Generation(_Post):
    """A route that generates: counted for `/load`, and struck by faults."""

    def __init__(self, replica: Replica, faults: Faults, endpoint: Chat | Completions | Responses | Messages) -> None:
        super().__init__(endpoint.path, endpoint.function, endpoint)
        self._replica, self._faults = replica, faults

    async def handle(self, exchange: Exchange) -> None:
        fault = self._faults.next()
        if fault is not None:
            exchange = FaultyExchange(exchange, fault)
            if await exchange.strike():
                return
        self._replica.driver.in_api += 1
        try:
            await super().handle(exchange)
        finally:
            self._replica.driver.in_api -= 1


class _Server:
    """The outermost layer: starts and stops the engine, adds `vary`, and observes every exchange."""

    def __init__(self, app: ASGIApp, replica: Replica, http: HttpMetrics, known: frozenset[str]) -> None:
        self._app, self._replica, self._http, self._known = app, replica, http, known

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        started = time.perf_counter()
        status = answered = 0

        async def observed(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                answered = next((int(value) for name, value in headers if name == b"content-length"), 0)
                if not scope.get("simulator.late"):
                    message["headers"] = [*headers, (b"vary", b"Origin")]
            await send(message)

        await self._app(scope, receive, observed)
        handler = scope["path"] if scope["path"] in self._known and status not in (404, 405) else "none"
        asked = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        self._http.observe(
            handler,
            scope["method"],
            500 if scope.get("simulator.late") else status,
            asked=asked,
            answered=answered,
            seconds=time.perf_counter() - started,
        )

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._replica.driver.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._replica.driver.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _not_served(_: StarletteRequest, error: Exception) -> Response:
    """FastAPI's shape for 404 and 405."""
    assert isinstance(error, HTTPException)
    response = Response(dumps({"detail": error.detail}), error.status_code, error.headers)
    response.headers["content-type"] = "application/json"
    return response


def build_app(
    profile: Profile | None = None, *, embeddings: bool = False, fault: Fault | None = None, control: bool = False
) -> ASGIApp:
    """The replica as an ASGI application; its lifespan runs the engine.

    `embeddings` makes `/v1/embeddings` answer, which vLLM serving a generating model does not. `fault` is one to begin
    with; `control` adds `POST /simulator/faults`, by which a test changes it.
    """
    replica = Replica(profile or PROFILES["h200-llama-8b"])
    http = HttpMetrics(replica.started_s)
    plain = Plain(replica, http)
    routes: list[BaseRoute] = [
        Route(path, _Get(handle), methods=["GET"])
        for path, handle in {
            "/v1/models": plain.models,
            "/health": plain.health,
            "/ping": plain.health,
            "/version": plain.version,
            "/load": plain.load,
            "/metrics": plain.metrics,
        }.items()
    ]
    switch = Faults(fault)
    for endpoint in (Chat(replica), Completions(replica), Responses(replica), Messages(replica)):
        routes.append(Route(endpoint.path, _Generation(replica, switch, endpoint), methods=["POST"]))
    posts: list[tuple[str, str, BodyHandler]] = [
        (CountTokens.path, CountTokens.function, CountTokens(replica)),
        ("/tokenize", "tokenize", plain.tokenize),
        ("/detokenize", "detokenize", plain.detokenize),
    ]
    if replica.profile.embeddings or embeddings:
        posts.append(("/v1/embeddings", "create_embedding", plain.embeddings))
    routes += [Route(path, _Post(path, name, handle), methods=["POST"]) for path, name, handle in posts]
    if control:
        routes.append(Route("/simulator/faults", _Get(switch.control), methods=["POST"]))
    for route in routes:
        if isinstance(route, Route) and route.methods:
            route.methods.discard("HEAD")  # FastAPI does not add it, and answers 405
    app = Starlette(routes=routes, exception_handlers={404: _not_served, 405: _not_served})
    app.router.redirect_slashes = False
    known = frozenset(route.path for route in routes if isinstance(route, Route))
    return _Server(app, replica, http, known)


def run(
    *,
    host: str = "127.0.0.1",
    port: int = 9001,
    profile: Profile | None = None,
    model: str | None = None,
    context: int | None = None,
    max_num_seqs: int | None = None,
    kv_blocks: int | None = None,
    speed: float | None = None,
    long_prefill_token_threshold: int | None = None,
    max_num_batched_tokens: int | None = None,
    embeddings: bool = False,
    control: bool = False,
    log_level: str = "warning",
) -> None:
    """Serve one replica until it is told to stop; what is None comes from the profile. OSError if the port is taken."""
    chosen = (profile or PROFILES["h200-llama-8b"]).override(
        model=model,
        context=context,
        max_num_seqs=max_num_seqs,
        kv_blocks=kv_blocks,
        speed=speed,
        long_prefill_token_threshold=long_prefill_token_threshold,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    app = build_app(chosen, embeddings=embeddings, control=control)
    config = uvicorn.Config(
        app, host=host, port=port, log_level=log_level, access_log=False, timeout_graceful_shutdown=STOP_S
    )
    with _listener(host, port) as listener:
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """Bound here, so that a taken port is the caller's OSError and not an exit from inside the server."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio turns Nagle's algorithm off on what it accepts.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
