"""Asks one replica, over a connection of its own, whether it is well and what it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

import msgspec

from gateway.engines import About

from ._connection import Connection, UpstreamLost
from ._replica import ConnectFailed, Replica

log = logging.getLogger(__name__)

MODELS_INTERVAL_S = 30.0
"""How often a replica is asked which models it serves; while it does not serve what it should, at each probe."""
BODY_MOST_BYTES = 1 << 20
OK = 200


class Prober:
    """One replica's. `serves` are the models it is there for, as its engine calls them."""

    def __init__(self, replica: Replica, *, timeout_s: float) -> None:
        self.replica = replica
        self.serves: Collection[str] = ()
        self.joins = False
        """Whether it came to a fleet that serves already: then it starts slowly."""
        self.running: asyncio.Task[None] | None = None
        self.due_s = 0.0
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._models_due_s = 0.0

    async def probe(self) -> None:
        """One probe; its replica's health knows what came of it. Raises nothing for what the replica does."""
        replica, health = self.replica, self.replica.health
        path = replica.dialect.health_path
        try:
            async with asyncio.timeout(self._timeout_s):
                status = OK if path is None else (await self._get(path))[0]
                if status == OK:
                    await self._ask_models()
        except TimeoutError:
            self._hang_up()
            health.late(self._loop.time(), moved_s=replica.liveness.moved_s, busy=bool(replica.in_flight))
        except ConnectFailed as error:
            replica.refused(str(error))
        except UpstreamLost as error:
            health.out(self._loop.time(), "unhealthy", f"{path}: {error}")
        else:
            if status != OK:
                health.out(self._loop.time(), "unhealthy", f"{path} answers {status}")
        if not health.answers:
            self._models_due_s = 0.0

    async def _ask_models(self) -> None:
        """It is right if it serves what it should; what serves nothing else than asked for is not looked at twice."""
        replica, now_s = self.replica, self._loop.time()
        path = replica.dialect.about_path
        if path is None:
            await self._connect()
        elif now_s >= self._models_due_s:
            status, body = await self._get(path)
            about = _about(replica, status, body)
            if about is None:
                log.warning("replica %s answers %s with something else than it should", replica.name, path)
            else:
                replica.context_tokens = about.context_tokens
                listed = about.models
                if listed and self.serves and not any(name in listed for name in self.serves):
                    detail = f"it serves {', '.join(listed[:3])}, not {', '.join(sorted(self.serves)[:3])}"
                    replica.health.out(self._loop.time(), "model", detail)
                    return
            self._models_due_s = now_s + MODELS_INTERVAL_S
        replica.answered(joins=self.joins)

    async def _connect(self) -> None:
        """Where nothing can be asked, that it can be connected to is all there is to know. Raises `ConnectFailed`."""
        if self.replica.dialect.health_path is None and not self.replica.health.answers:
            (await self.replica.new_connection()).abort()

    async def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises `ConnectFailed` and `UpstreamLost`."""
        connection = self._connection
        if connection is not None and not connection.lost:
            try:
                return await self._get_over(connection, path)
            except UpstreamLost:
                log.debug("a probe's connection to %s was closed meanwhile", self.replica.name)
        connection = self._connection = await self.replica.new_connection()
        return await self._get_over(connection, path)

    async def _get_over(self, connection: Connection, path: str) -> tuple[int, bytes]:
        connection.send(self.replica.get_head(path), b"")
        body = b""
        while not connection.drained and len(body) < BODY_MOST_BYTES:
            body += await connection.read()
        if not (connection.drained and connection.reusable):
            self._hang_up()
        return connection.status, body

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def close(self) -> None:
        """Ends a probe that runs, and its connection."""
        if self.running is not None:
            self.running.cancel()
        self._hang_up()


def _about(replica: Replica, status: int, body: bytes) -> About | None:
    if status != OK:
        return None
    try:
        return replica.dialect.about(body)
    except msgspec.DecodeError:
        return None
