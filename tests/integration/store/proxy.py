"""A wire between a client and Valkey that a test can cut, mute or stall."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path


class Wire:
    """`lose_replies`, `stall`, `cut` and `refusal` (of every EVALSHA) hold until unset; `requests` counts reads."""

    def __init__(self, server_path: str) -> None:
        self._server_path = server_path
        self.lose_replies = False
        self.stall = False
        self.cut = False
        self.refusal = b""
        self.requests = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def break_off(self) -> None:
        """Ends all connections there are."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        self._writers.add(writer)
        server_reader, server_writer = await asyncio.open_unix_connection(self._server_path)

        async def answers() -> None:
            while data := await server_reader.read(65536):
                if self.stall:
                    continue
                if self.lose_replies:  # Valkey has done it, but nobody hears of it
                    writer.transport.abort()
                    return
                writer.write(data)

        answering = asyncio.ensure_future(answers())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.requests += 1
                if self.refusal and b"EVALSHA" in data:
                    writer.write(self.refusal * data.count(b"EVALSHA"))
                    continue
                server_writer.write(data)
        self._writers.discard(writer)
        answering.cancel()
        server_writer.close()
        writer.close()


@contextlib.asynccontextmanager
async def wire(valkey_url: str, path: Path) -> AsyncIterator[tuple[Wire, str]]:
    """A wire to the Valkey at `valkey_url`, and the URL of its other end."""
    between = Wire(valkey_url.removeprefix("unix://"))
    server = await asyncio.start_unix_server(between.serve, path)
    try:
        yield between, f"unix://{path}"
    finally:
        server.close()
