"""Whoever takes posts of JSON on a real socket, and misbehaves as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

HANG = -1
HANG_UP = -2


@asynccontextmanager
async def posts_to(answer: Callable[[dict[str, str], Any], tuple[int, bytes]]) -> AsyncIterator[str]:
    """An ephemeral port, as an address without a path. `answer` gets each post's headers, by lower-case names, and its
    body, and says status and body; `HANG` never answers, `HANG_UP` closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                posted = json.loads(await reader.readexactly(int(headers["content-length"])))
                status, body = answer(headers, posted)
                if status == HANG:
                    await asyncio.sleep(60)
                if status == HANG_UP:
                    return
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
