"""A gateway as its users meet it: `mtok serve` in a process of its own, in front of two simulated replicas."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from gateway.simulator import PROFILES
from gateway.tenants import hash_key, new_key
from loadtest.processes import free_port, mtok, running
from tests.conformance.simulator.conftest import serving

MODEL = "tiny"
ADMIN_KEY = "an admin key for these tests"

_POLICIES = """\
models:
  tiny:
    replicas: [{{url: "{first}"}}, {{url: "{second}"}}]
    aliases: [small]
    price: {{output_usd_per_mtok: 0.35, input_ratio: 0.28, cached_ratio: 0.1}}
  hidden:
    replicas: [{{url: "{first}"}}]
tenants:
  open: {{keys: [{{id: open, sha256: "{open}"}}], models: [tiny]}}
  counted: {{keys: [{{id: counted, sha256: "{counted}"}}], models: [tiny]}}
  hurried:
    keys: [{{id: hurried, sha256: "{hurried}"}}]
    models: [tiny]
    limits: {{requests_per_minute: 1}}
  npm:
    keys: [{{id: npm, sha256: "{npm}"}}]
    models: [tiny]
    limits: {{requests_per_minute: 1}}
  load: {{keys: [{{id: load, sha256: "{load}"}}], models: [tiny]}}
  broke:
    keys: [{{id: broke, sha256: "{broke}"}}]
    models: [tiny]
    limits: {{budget_usd: 0.000001, budget_period: month}}
"""
TENANTS = ("open", "counted", "hurried", "npm", "load", "broke")


@dataclass(frozen=True)
class Served:
    """A running gateway: where it is, a key for each tenant, and its replicas."""

    url: str
    keys: dict[str, str]
    replica_urls: tuple[str, str]

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes."""
        return f"{self.url}/v1"

    def usage(self, tenant: str) -> dict[str, Any]:
        """The tenant's own answer of `GET /v1/usage`, for the last day."""
        request = urllib.request.Request(
            f"{self.base_url}/usage?bucket=1d", headers={"Authorization": f"Bearer {self.keys[tenant]}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            usage: dict[str, Any] = json.load(answer)
            return usage


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway with its embedded Valkey; one for the session."""
    directory = tmp_path_factory.mktemp("served")
    policies = directory / "policies"
    policies.mkdir()
    keys = {tenant: new_key(tenant) for tenant in TENANTS}
    with ExitStack() as stack:
        profile = replace(PROFILES["instant"], model=MODEL, max_model_len=4096)
        ports = [stack.enter_context(serving(profile, embeddings=True)) for _ in range(2)]
        first, second = (f"http://127.0.0.1:{port}" for port in ports)
        hashes = {tenant: hash_key(key) for tenant, key in keys.items()}
        (policies / "policies.yaml").write_text(_POLICIES.format(first=first, second=second, **hashes))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        stack.enter_context(
            running(
                mtok("serve", "--policies", str(policies), "--port", str(port)),
                log=directory / "gateway.log",
                ready_url=f"{url}/readyz",
                environment={
                    "MTOK_DATA_DIR": str(directory / "data"),
                    "MTOK_ADMIN_KEY": ADMIN_KEY,
                    "MTOK_REDIS_URL": "",
                },
            )
        )
        yield Served(url, keys, (first, second))


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK with the key of a tenant without limits."""
    with openai.OpenAI(base_url=served.base_url, api_key=served.keys["open"], max_retries=0) as client:
        yield client


@pytest.fixture
def claude(served: Served) -> Iterator[anthropic.Anthropic]:
    """Anthropic's SDK, which sends its key in `x-api-key`."""
    with anthropic.Anthropic(base_url=served.url, api_key=served.keys["open"], max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return Path(__file__).parents[3]
