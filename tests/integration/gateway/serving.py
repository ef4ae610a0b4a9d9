"""A gateway in the test's own event loop: the real app behind the real server on a real socket, and what it booked."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from redis.asyncio import Redis

from gateway.app import Gateway
from gateway.clock import Clock, SystemClock
from gateway.policy import hash_key, load
from gateway.serving._protocol import BoundedProtocol
from gateway.serving._server import DrainingServer
from gateway.settings import Settings
from gateway.store import TenantKeys
from tests.integration.gateway.engine import Engine
from tests.integration.gateway.wire_client import DEADLINE_S, Answer, Connection, connect

ADMIN_KEY = "the-administrators-own-key"
CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
PRICE = {"output_usd_per_mtok": 1, "input_ratio": 0.5, "cached_ratio": 0.1}


def key_of(tenant: str) -> str:
    """The key that `policies` gives a tenant."""
    return f"mtok-{tenant}-{'k' * 43}"


def policies(
    *engines: Engine,
    limits: dict[str, Any] | None = None,
    ledger: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
    rival_uses: str = "other",
    discover: dict[str, Any] | None = None,
    tenant: dict[str, Any] | None = None,
    key: dict[str, Any] | None = None,
    rival: dict[str, Any] | None = None,
    model_limits: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A policy document: the model `tiny` on these engines, `acme` with these limits, and `rival`, who may not use it.

    `ledger` is that section, `service` the class of both tenants, `tenant` and `key` further fields of acme and of
    its key, `rival` of the other tenant; `changes` are made to the model.
    """
    plain: dict[str, Any] = {"replicas": [{"url": engine.url} for engine in engines]}
    if discover is not None:
        plain = {"discover": discover}
    if "pools" in changes:
        plain = {"replicas": changes["pools"][0]["replicas"]}
    model: dict[str, Any] = ({} if "pools" in changes else plain) | {"price": PRICE}
    model |= {"aliases": ["small"], **changes} | ({} if model_limits is None else {"limits": model_limits})
    classed = {} if service is None else {"class": "service"}
    keys = {name: [{"id": name, "sha256": hash_key(key_of(name))}] for name in ("acme", "rival")}
    keys["acme"][0] |= key or {}
    return {
        "ledger": ledger or {},
        "models": {"tiny": model, "other": plain},
        "tenants": {
            "acme": {"keys": keys["acme"], "models": ["tiny"], "limits": limits or {}} | (tenant or {}) | classed,
            "rival": {"keys": keys["rival"], "models": [rival_uses]} | (rival or {}) | classed,
        },
        "classes": {} if service is None else {"service": service},
    }


@dataclass
class Served:
    """A gateway that runs."""

    gateway: Gateway
    server: DrainingServer
    port: int
    redis: Redis
    key: str = field(default_factory=lambda: key_of("acme"))

    async def post(self, body: Any = None, path: str = CHAT, *, key: str | None = None, **headers: str) -> Answer:
        """One POST on a connection of its own."""
        async with self.connect() as client:
            client.post(path, ASKED if body is None else body, key=self.key if key is None else key, **headers)
            return await client.answer()

    async def get(self, path: str, *, key: str | None = None, **headers: str) -> Answer:
        """One GET on a connection of its own."""
        lines = [f"GET {path} HTTP/1.1", "host: g", f"authorization: Bearer {key or self.key}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return await self.say("\r\n".join(lines) + "\r\n\r\n")

    async def say(self, request: str | bytes) -> Answer:
        """Any bytes on a connection of their own, and the first answer to them."""
        async with self.connect() as client:
            client.send(request.encode() if isinstance(request, str) else request)
            return await client.answer()

    def connect(self) -> Any:
        """A connection to the gateway, for a `with` block."""
        return connect(self.port)

    async def booked(self) -> None:
        """Waits until Redis has everything that is on disk."""
        assert await self.lifecycle.ledger.shipped(DEADLINE_S)

    async def usage(self) -> dict[str, Any]:
        """The tenant's own report over the last hours, this second included: `end` is exclusive."""
        answer = await self.get(f"/v1/usage?end={self.gateway.clock.now_ms() // 1000 + 1}")
        assert answer.status == 200, answer.body
        report: dict[str, Any] = answer.json
        return report

    async def events(self, tenant: str = "acme", *, at_least: int = 1) -> list[dict[str, Any]]:
        """The tenant's usage events, once there are so many."""

        async def enough() -> list[dict[str, Any]] | None:
            entries = await self.redis.xrange(TenantKeys(tenant).events)
            events = [_with_counts(json.loads(fields[b"event"])) for _, fields in entries]
            return events if len(events) >= at_least else None

        events: list[dict[str, Any]] = await eventually(enough)
        return events

    async def event(self) -> dict[str, Any]:
        """The only usage event there is."""
        events = await self.events()
        assert len(events) == 1, events
        return events[0]

    @property
    def lifecycle(self) -> Any:
        lifecycle = self.gateway._lifecycle
        assert lifecycle is not None
        return lifecycle

    def replica(self, engine: Engine) -> Any:
        """The gateway's own idea of an engine."""
        return next(replica for replica in self.lifecycle.fleet.replicas if replica.name == engine.name)


async def eventually(look: Callable[[], Any]) -> Any:
    """What `look` returns once that is true or a value; it may be a coroutine function."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            seen = look()
            if asyncio.iscoroutine(seen):
                seen = await seen
            if seen:
                return seen
            await asyncio.sleep(0.002)


def _with_counts(event: dict[str, Any]) -> dict[str, Any]:
    """An event with the three counts every usage has; its encoding leaves out what is 0."""
    counts = {"input_tokens": 0, "input_cached_tokens": 0, "output_tokens": 0}
    return {**event, "usage": counts | event.get("usage", {})}


class StoppedClock(SystemClock):
    """Wall time stands still, so that no limit refills while a test runs, however slowly."""

    def __init__(self) -> None:
        self._now_ms = super().now_ms()

    def now_ms(self) -> int:
        return self._now_ms


class MovedClock(StoppedClock):
    """Wall time goes on only where a test says so."""

    def advance_ms(self, by_ms: int) -> None:
        self._now_ms += by_ms


@asynccontextmanager
async def serve(
    document: dict[str, Any],
    directory: Path,
    redis: Redis,
    url: str,
    *,
    clock: Clock | None = None,
    reloads: bool = False,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serves these policies on an ephemeral port, as `mtok serve` does."""
    directory.mkdir(exist_ok=True)
    (directory / "policy.yaml").write_text(yaml.safe_dump(document))
    chosen = Settings(
        data_dir=directory / "data", admin_key_sha256=hash_digest(ADMIN_KEY), **{"read_timeout_s": 5.0, **settings}
    )
    gateway = Gateway(load(directory), chosen, url, clock=clock, directory=directory if reloads else None)
    protocol = type("Protocol", (BoundedProtocol,), {"read_timeout_s": chosen.read_timeout_s})
    config = uvicorn.Config(
        gateway.asgi,
        http=protocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    server = DrainingServer(config, gateway, chosen.drain_timeout_s, owns_process=False)
    config.load()
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        await server.startup(sockets=[sock])
        assert server.started, "the gateway did not start; its log says why"
        ticking = asyncio.create_task(server.main_loop())
        try:
            yield Served(gateway, server, sock.getsockname()[1], redis)
        finally:
            ticking.cancel()
            for listener in server.servers:
                listener.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            if tasks := list(server.server_state.tasks):
                _, left = await asyncio.wait(tasks, timeout=1)
                for task in left:
                    task.cancel()
            await server.lifespan.shutdown()


def hash_digest(key: str) -> bytes:
    return bytes.fromhex(hash_key(key))


__all__ = ["ADMIN_KEY", "ASKED", "CHAT", "Connection", "Served", "eventually", "key_of", "policies", "serve"]
