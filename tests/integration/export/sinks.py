"""A sink on a real socket: it keeps what it is sent, and misbehaves as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HANG = -1
HANG_UP = -2

Event = dict[str, Any]


@dataclass
class FakeSink:
    """`faults` are answered first, one a request: a status, `HANG` (keeps the events and never answers) or `HANG_UP`.
    Then `judge` says the status of each request's events."""

    faults: list[int] = field(default_factory=list)
    judge: Callable[[list[Event]], int] = lambda events: 204
    body: bytes = b""
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    received: list[Event] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def requests(self, tenant: str = "acme") -> list[str]:
        """The request ids that were taken, in order."""
        return [event["data"]["id"] for event in self.received if event["subject"] == tenant]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                events = body if isinstance(body, list) else body["events"]
                status = self.faults.pop(0) if self.faults else self.judge(events)
                self.headers.append(headers)
                self.batches.append(len(events))
                self.statuses.append(status)
                if status in (HANG, 200, 204):
                    self.received += events
                if status == HANG:
                    await asyncio.sleep(60)
                if status == HANG_UP:
                    return
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(self.body), self.body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(sink: FakeSink) -> AsyncIterator[FakeSink]:
    """The sink on an ephemeral port; `sink.url` is its address."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(sink._serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1/events?x=1"
    try:
        yield sink
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
