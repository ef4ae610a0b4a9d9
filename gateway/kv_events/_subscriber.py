"""Reads one engine's KV events off its ZMQ sockets: live ones, and those that were missed."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from typing import TYPE_CHECKING

from ._decode import read_batch
from ._follower import Follower
from ._stream import Next

if TYPE_CHECKING:
    from zmq.asyncio import Context, Socket

log = logging.getLogger(__name__)

NUMBER_BYTES = 8
END = (-1).to_bytes(NUMBER_BYTES, "big", signed=True)
"""The number that ends a replay."""
REPLAY_TIMEOUT_S = 2.0
"""Between two batches of a replay."""
QUEUED_MOST = 100_000
"""Batches that may wait to be read, as many as vLLM lets wait to be sent."""
LARGE_BYTES = 65_536
"""A batch that takes some milliseconds to decode is decoded in a thread."""


class NoZmq(Exception):
    """Events cannot be read, since pyzmq is not installed."""


def zmq_context() -> Context:
    """For all subscribers of a worker. Raises `NoZmq`."""
    try:
        from zmq.asyncio import Context  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise NoZmq("KV events need pyzmq: pip install 'mtok-gateway[kv-events]'") from error
    return Context()


class Subscriber:
    """One replica's. `run` it as a task; cancelling it closes its sockets."""

    def __init__(self, context: Context, follower: Follower, replica: str, *, events: str, replay: str | None) -> None:
        """`events` and `replay` are ZMQ addresses of the engine's PUB and ROUTER sockets."""
        self._context = context
        self._follower = follower
        self._replica = replica
        self._events = events
        self._replay_at = replay
        self._unread = False

    async def run(self) -> None:
        """Until cancelled."""
        import zmq  # noqa: PLC0415 - an optional extra

        with closing(self._context.socket(zmq.SUB)) as socket:
            socket.linger = 0
            socket.rcvhwm = QUEUED_MOST
            socket.subscribe(b"")
            socket.connect(self._events)
            if self._replay_at is not None:
                await self._replay(0)
            while True:
                frames = await socket.recv_multipart()
                if len(frames) < 2 or len(frames[-2]) != NUMBER_BYTES:
                    self._complain("it is no batch with a number")
                    continue
                await self.came(int.from_bytes(frames[-2], "big"), frames[-1])

    async def came(self, number: int, payload: bytes) -> None:
        """A live batch."""
        stream = self._follower.replicas[self._replica].stream
        while True:
            match stream.came(number):
                case Next.TAKE:
                    await self._take(payload)
                    return
                case Next.SKIP:
                    return
                case Next.RESET:
                    log.info("replica %s: its KV events begin again", self._replica)
                    self._follower.reset(self._replica)
                case Next.REPLAY:
                    if self._replay_at is not None:
                        await self._replay(number)
                    if stream.expected < number:
                        self._miss(number)

    def _miss(self, number: int) -> None:
        stream = self._follower.replicas[self._replica].stream
        log.warning(
            "replica %s: KV events %d to %d are lost, so its cache is estimated until it is cleared or restarted",
            *(self._replica, stream.expected, number - 1),
        )
        stream.missed(number)

    async def _replay(self, until: int) -> None:
        """Asks for what is missing, and takes what is still there."""
        import zmq  # noqa: PLC0415 - an optional extra

        assert self._replay_at is not None
        stream = self._follower.replicas[self._replica].stream
        with closing(self._context.socket(zmq.DEALER)) as socket:
            socket.linger = 0
            socket.connect(self._replay_at)
            await socket.send_multipart([b"", stream.expected.to_bytes(NUMBER_BYTES, "big")])
            try:
                await self._take_replayed(socket)
            except TimeoutError:
                log.warning("replica %s does not replay its KV events at %s", self._replica, self._replay_at)

    async def _take_replayed(self, socket: Socket) -> None:
        stream = self._follower.replicas[self._replica].stream
        while True:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                frames = await socket.recv_multipart()
            if len(frames) < 2 or len(frames[-2]) != NUMBER_BYTES or frames[-2] == END:
                return
            number = int.from_bytes(frames[-2], "big")
            if number > stream.expected:  # what came before has been kept no longer
                self._miss(number)
            if number == stream.expected:
                stream.replayed(number + 1)
                await self._take(frames[-1])

    async def _take(self, payload: bytes) -> None:
        followed = self._follower.replicas[self._replica]
        try:
            if len(payload) > LARGE_BYTES:
                batch = await asyncio.to_thread(read_batch, payload)
            else:
                batch = read_batch(payload)
        except ValueError as error:
            followed.undecodable += 1
            followed.stream.trusted = False
            self._complain(str(error))
            return
        if batch.undecodable:
            followed.undecodable += batch.undecodable
            followed.stream.trusted = False
            self._complain(f"{batch.undecodable} events are of a kind that is not known")
        self._follower.apply(self._replica, batch.events)

    def _complain(self, of: str) -> None:
        if not self._unread:
            log.warning("replica %s: KV events cannot be read: %s", self._replica, of)
        self._unread = True
