"""HTTP spoken by hand: a test sends any bytes, and reads what comes back, with a deadline on everything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

DEADLINE_S = 10.0


@dataclass(frozen=True)
class Answer:
    """A whole answer, the transfer encoding removed. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True
    """False: the connection ended before the answer did."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, whose four keys are all there and are all there is."""
        content = self.json
        assert list(content) == ["error"], content
        error: dict[str, Any] = content["error"]
        assert sorted(error) == ["code", "message", "param", "type"], error
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        assert isinstance(error["code"], str)
        assert self.headers["content-type"] == "application/json"
        assert "x-request-id" in self.headers
        return error


class Connection:
    """A client's connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, path: str, body: Any, *, key: str, **headers: str) -> None:
        """Sends a POST with JSON (or these bytes)."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {key}"]
        lines += [f"content-length: {len(content)}", "content-type: application/json"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Reads the next answer's status and headers."""
        async with asyncio.timeout(DEADLINE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        return int(status.split()[1]), {name.lower(): value for name, value in pairs}

    async def chunk(self) -> bytes:
        """Reads the next chunk of the transfer encoding; empty is its end."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> Answer:
        """Reads the next answer to its end."""
        status, headers = await self.head()
        body = b""
        try:
            if headers.get("transfer-encoding") == "chunked":
                while part := await self.chunk():
                    body += part
            else:
                async with asyncio.timeout(DEADLINE_S):
                    body = await self.reader.readexactly(0 if status == 304 else int(headers["content-length"]))
        except asyncio.IncompleteReadError:
            return Answer(status, headers, body, complete=False)
        return Answer(status, headers, body)

    async def ended(self) -> bytes:
        """Waits until the gateway has closed the connection; returns what it sent before."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def leave(self) -> None:
        """Hangs up as a killed client does."""
        self.writer.transport.abort()


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """A connection that is closed when the block ends."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
