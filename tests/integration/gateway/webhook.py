"""A webhook on a real socket: it keeps what it is sent, and misbehaves as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HANG = -1


@dataclass
class Webhook:
    """`faults` are answered first, one a post: a status, or `HANG` for no answer; then everything is taken."""

    faults: list[int] = field(default_factory=list)
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)
    """All that were sent, also those that were not taken."""

    @property
    def told(self) -> list[tuple[str, int]]:
        """Dimension and threshold of each."""
        return [(post["dimension"], post["threshold"]) for post in self.posts]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                self.posts.append(json.loads(await reader.readexactly(int(headers["content-length"]))))
                self.headers.append(headers)
                status = self.faults.pop(0) if self.faults else 204
                if status == HANG:
                    await asyncio.sleep(60)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(webhook: Webhook) -> AsyncIterator[Webhook]:
    """The webhook on an ephemeral port; `webhook.url` is its address."""
    server = await asyncio.start_server(webhook.serve, "127.0.0.1", 0)
    webhook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?x=1"
    try:
        yield webhook
    finally:
        server.close()
