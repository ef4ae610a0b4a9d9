"""An engine's KV events, published on real ZMQ sockets as vLLM does it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import zmq
from zmq.asyncio import Context

from gateway.kv_events._subscriber import END


class Publisher:
    """Publishes as vLLM's ZmqEventPublisher: PUB, and a ROUTER that replays the last so many batches."""

    def __init__(
        self,
        context: Context,
        token_ids: Sequence[int],
        *,
        block_size: int = 2,
        kept: int = 100,
        ports: tuple[int, int] = (0, 0),
    ) -> None:
        self.number = 0
        self._token_ids = token_ids
        self._size = block_size
        self._kept = kept
        self._buffer: list[tuple[int, bytes]] = []
        self._pub = context.socket(zmq.PUB)
        self._router = context.socket(zmq.ROUTER)
        for socket, port in ((self._pub, ports[0]), (self._router, ports[1])):
            socket.linger = 0
            socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.events, self.replay = [socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (self._pub, self._router)]
        self.asked: list[int] = []
        self._serving = asyncio.create_task(self._serve())

    @property
    def ports(self) -> tuple[int, int]:
        return int(self.events.rpartition(":")[2]), int(self.replay.rpartition(":")[2])

    async def publish(self, *events: object, lost: bool = False) -> None:
        payload = msgspec.msgpack.encode([0.0, list(events), 0])
        self._buffer = [*self._buffer, (self.number, payload)][-self._kept :]
        if not lost:
            await self._pub.send_multipart([b"kv@pod@tiny", self.number.to_bytes(8, "big"), payload])
        self.number += 1

    async def stored(self, *blocks: int, lost: bool = False) -> None:
        """Blocks of its tokens, by their places, which are their hashes too."""
        for block in blocks:
            parent = block - 1 if block else None
            tokens = self._token_ids[self._size * block : self._size * (block + 1)]
            event = ["BlockStored", [block], parent, list(tokens), self._size]
            await self.publish(event, lost=lost)

    async def _serve(self) -> None:
        while True:
            client, _, start = await self._router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.asked.append(first)
            for number, payload in self._buffer:
                if number >= first:
                    await self._router.send_multipart([client, b"", b"kv@pod@tiny", number.to_bytes(8, "big"), payload])
            await self._router.send_multipart([client, b"", b"", END, b""])

    def close(self) -> None:
        self._serving.cancel()
        self._pub.close()
        self._router.close()
