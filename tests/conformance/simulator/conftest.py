"""A simulated replica on a real socket, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn

from gateway.simulator import PROFILES, Profile, build_app

PROFILE = replace(PROFILES["instant"], model="llama-8b")


class ServerThread:
    """uvicorn on an ephemeral port of the loopback interface."""

    def __init__(self, app: object) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False)  # type: ignore[arg-type]
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self.server.started:
            assert time.monotonic() < deadline, "the server did not start within 10 s"
            time.sleep(0.002)

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)


@contextmanager
def serving(profile: Profile, **options: bool) -> Iterator[int]:
    """The port of a replica with that profile."""
    thread = ServerThread(build_app(profile, **options))
    thread.start()
    try:
        yield thread.port
    finally:
        thread.stop()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A replica that takes no time, served as `llama-8b`."""
    with serving(PROFILE) as port:
        yield port
