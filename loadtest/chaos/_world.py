"""The processes: one Valkey, two engines, two gateways of two workers; struck as scheduled, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml
from redis.asyncio import Redis

from gateway.store import client
from gateway.tenants import hash_key, new_key

from ..processes import free_port, mtok
from ..services import START_TIMEOUT_S, Service, Valkey, WebService
from ._clients import MODEL
from ._schedule import Strike

WORKERS = 2
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
