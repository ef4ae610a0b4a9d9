"""One worker: a uvicorn server that drains before it stops."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
from types import FrameType

import uvicorn

from gateway.app import Gateway
from gateway.settings import Settings

from ._protocol import BoundedProtocol

log = logging.getLogger(__name__)

GC_THRESHOLD = 50_000


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT it keeps listening and answers 503 until running answers are done, or the deadline has come.

    A second signal cuts what still runs; it is metered all the same. The exit status is 0: being asked to stop is no
    failure. Where it owns its process it sets the garbage collector as a gateway wants it.
    """

    def __init__(
        self, config: uvicorn.Config, gateway: Gateway, drain_timeout_s: float, *, owns_process: bool = True
    ) -> None:
        super().__init__(config)
        self._owns_process = owns_process
        self._gateway = gateway
        self._drain_timeout_s = drain_timeout_s
        self._stop_at_s: float | None = None
        self._parent_pid = os.getppid() if multiprocessing.parent_process() is not None else None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self._parent_pid is not None:
            return  # a terminal's Ctrl-C reaches the whole group; the parent passes it on as one SIGTERM
        if self._gateway.draining:
            self._gateway.interrupt_all()
            self.should_exit = True
        self._gateway.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self._owns_process:
            return
        # What has been made so far stays: the collector need not look at it again. Requests make no cycles worth
        # collecting often; with Python's own threshold of 700 a full collection stops every stream for 20 ms and more.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)

    async def on_tick(self, counter: int) -> bool:
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            self._gateway.drain()
        if self._gateway.draining:
            now_s = self._gateway.clock.monotonic_s()
            if self._stop_at_s is None:
                log.info("draining: no new requests, running answers have %g s", self._drain_timeout_s)
                self._stop_at_s = now_s + self._drain_timeout_s
            if self._gateway.idle:
                self.should_exit = True
            elif now_s >= self._stop_at_s:
                log.warning("drain deadline: cutting what still runs")
                self._gateway.interrupt_all()
                self.should_exit = True
        return await super().on_tick(counter)


def run_worker(gateway: Gateway, sock: socket.socket, settings: Settings) -> None:
    """Serves `gateway` on a listening socket until it is told to stop."""
    protocol = type("Protocol", (BoundedProtocol,), {"read_timeout_s": settings.read_timeout_s})
    config = uvicorn.Config(
        gateway.asgi,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        backlog=4096,
    )
    DrainingServer(config, gateway, settings.drain_timeout_s).run(sockets=[sock])
