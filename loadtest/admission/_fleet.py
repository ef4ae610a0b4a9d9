"""The processes: one Valkey, replicas, and gateways of some workers each, over one set of policies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx
import yaml
from redis.asyncio import Redis

from gateway.store import client
from gateway.tenants import hash_key, new_key

from ..processes import free_port, mtok
from ..services import Valkey, WebService

Policy = Mapping[str, object]


class Fleet:
    """Everything that runs, for an `async with` block. `workers` has one number for each gateway.

    `tenants` are their policies without keys; `price` and `classes` are those of the policy document.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: Sequence[int],
        replicas: int,
        profile: str,
        tenants: Mapping[str, Policy],
        classes: Mapping[str, Policy] | None = None,
        price: Policy | None = None,
    ) -> None:
        self.directory = directory
        self.keys = {tenant: new_key(tenant) for tenant in tenants}
        self.valkey = Valkey(directory / "valkey", directory / "valkey.log")
        self._replica_ports = [free_port() for _ in range(replicas)]
        self.replicas = WebService(
            "replicas",
            port=self._replica_ports[-1],
            page="/health",
            command=[
                *mtok()[:1],
                *("-m", "loadtest.admission._replicas", "--profile", profile),
                *(word for port in self._replica_ports for word in ("--port", str(port))),
            ],
            log=directory / "replicas.log",
        )
        self.gateways = [self._gateway(number, count) for number, count in enumerate(workers)]
        model = {"replicas": [{"url": f"http://127.0.0.1:{port}"} for port in self._replica_ports]}
        self._policies = {
            "models": {"tiny": model if price is None else {**model, "price": price}},
            "tenants": {
                name: {**policy, "keys": [{"id": name, "sha256": hash_key(self.keys[name])}]}
                for name, policy in tenants.items()
            },
            "classes": dict(classes or {}),
        }

    async def __aenter__(self) -> Fleet:
        (self.directory / "policies").mkdir()
        (self.directory / "policies" / "policy.yaml").write_text(yaml.safe_dump(self._policies))
        try:
            await asyncio.gather(self.valkey.start(), self.replicas.start())
            await asyncio.gather(*(gateway.start() for gateway in self.gateways))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(one.destroy() for one in (*self.gateways, self.replicas, self.valkey)))

    @property
    def ports(self) -> list[int]:
        """Of the gateways."""
        return [gateway.port for gateway in self.gateways]

    def redis(self) -> Redis:
        """A client of the Valkey."""
        return client(self.valkey.url)

    async def seen(self) -> list[tuple[str, float, float | None]]:
        """What the replicas have got: who, when it began, when it had ended, in Unix seconds."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.get(f"http://127.0.0.1:{self._replica_ports[0]}/seen")
        return [(who, began_s, ended_s) for who, began_s, ended_s in answer.json()]

    def _gateway(self, number: int, workers: int) -> WebService:
        port = free_port()
        return WebService(
            f"gateway-{number}",
            port=port,
            page="/readyz",
            command=mtok(
                *("serve", "--policies", str(self.directory / "policies")),
                *("--port", str(port), "--workers", str(workers)),
            ),
            log=self.directory / f"gateway-{number}.log",
            environment={
                "MTOK_REDIS_URL": self.valkey.url,
                "MTOK_DATA_DIR": str(self.directory / f"gateway-{number}"),
                "MTOK_LOG": "warning",
            },
        )
