"""Real vLLM, priced live: what `mtok economics` says is what the engines' counters and a clock say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import httpx
import openai
import pytest
import redis

from gateway.store import embedded
from gateway.tenants import hash_key, new_key
from loadtest.processes import free_port, mtok, running
from tests.real.conftest import MODEL, Engine

USD_PER_HOUR = 36
"""A hundredth of a dollar a second: what is made here is dear."""
EPOCH_S = 30
MINUTES = 2
AT_ONCE = 6
TICK_S = 6
"""Hours are counted every five seconds."""

_POLICY = """\
pricing: {{epoch_s: {epoch_s}}}
models:
  tiny:
    replicas: [{{url: "{first}"}}, {{url: "{second}"}}]
    gpu: {{usd_per_hour: {usd}}}
    price: {{mode: live, output_usd_per_mtok: 100, smooth: epoch, max_step: 1, overhead: 1}}
tenants: {{acme: {{keys: [{{id: k, sha256: "{sha256}"}}]}}}}
"""


@dataclass(frozen=True)
class Priced:
    """A gateway that sells at the live price."""

    url: str
    key: str
    policies: Path
    valkey_url: str
    engines: tuple[Engine, Engine]

    def mtok(self, *arguments: str) -> str:
        environment = {"MTOK_REDIS_URL": self.valkey_url}
        done = subprocess.run(
            mtok(*arguments), capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        return done.stdout


@pytest.fixture
def priced(engines: tuple[Engine, Engine], tmp_path: Path) -> Iterator[Priced]:
    key = new_key("k")
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "policy.yaml").write_text(
        _POLICY.format(
            first=engines[0].url, second=engines[1].url, usd=USD_PER_HOUR, epoch_s=EPOCH_S, sha256=hash_key(key)
        )
    )
    port, data = free_port(), tmp_path / "data"
    url = f"http://127.0.0.1:{port}"
    with (
        running(
            mtok("serve", "--policies", str(policies), "--port", str(port)),
            log=tmp_path / "gateway.log",
            ready_url=f"{url}/readyz",
            environment={"MTOK_DATA_DIR": str(data), "MTOK_REDIS_URL": "", "MTOK_LOG": "info"},
        ),
        embedded(data) as valkey_url,
    ):
        yield Priced(url, key, policies, valkey_url, engines)


async def sell(priced: Priced, until_s: float) -> set[str]:
    """Chats of `AT_ONCE` clients until then; the price epochs they were told."""
    epochs: set[str] = set()

    async def chat(client: openai.AsyncOpenAI) -> None:
        while time.time() < until_s:
            told = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": "Tell me of prices."}], max_tokens=24
            )
            epochs.add(told.headers["x-mtok-price-epoch"])

    async with openai.AsyncOpenAI(base_url=f"{priced.url}/v1", api_key=priced.key, max_retries=0) as client:
        await asyncio.gather(*(chat(client) for _ in range(AT_ONCE)))
    return epochs


async def test_economics_agrees_with_the_engines_counters_and_a_clock(priced: Priced) -> None:
    """Two minutes of load over whole minutes: tokens are the engines' own, cost is the clock's, $/Mtok is the one over
    the other; and the price moved away from the one it began with."""
    before = [engine.idle_counters() for engine in priced.engines]
    start_s = int(time.time()) // 60 * 60 + 60
    await asyncio.sleep(start_s - time.time())
    epochs = await sell(priced, start_s + MINUTES * 60 - 15)
    made = [engine.idle_counters() - was for engine, was in zip(priced.engines, before, strict=True)]
    await asyncio.sleep(max(0, start_s + MINUTES * 60 + 8 - time.time()))
    (report,) = json.loads(
        priced.mtok("economics", "--policies", str(priced.policies), "--span", f"{MINUTES}m", "--total", "--json")
    )
    assert (report["start_s"], report["end_s"]) == (start_s, start_s + MINUTES * 60)
    model = report["models"][0]
    assert model["input_tokens"] + model["cached_tokens"] == sum(one.prompt for one in made)
    assert model["output_tokens"] == sum(one.generation for one in made)
    clock_usd = Decimal(2 * USD_PER_HOUR * MINUTES * 60) / 3600
    cost_usd = Decimal(model["cost_nanousd"]) / 10**9
    assert abs(cost_usd - clock_usd) <= Decimal(2 * USD_PER_HOUR * TICK_S) / 3600
    weighed = model["output_tokens"] + Decimal("0.28") * model["input_tokens"] + Decimal("0.1") * model["cached_tokens"]
    assert abs(Decimal(model["output_usd_per_mtok"]) - cost_usd * 10**6 / weighed) < Decimal("0.000001")
    assert model["cost_nanousd"] == model["billed_nanousd"] + model["lost_nanousd"] + model["idle_nanousd"]
    assert len(epochs) >= 3, "a price holds for thirty seconds"
    shown = json.loads(priced.mtok("price", "show", "--json"))
    assert Decimal(shown["prices"]["tiny"]["output_usd_per_mtok"]) != 100
    with redis.Redis.from_url(priced.valkey_url) as valkey:
        events = [json.loads(fields[b"event"]) for _, fields in valkey.xrange("mtok:{acme}:events")]
    assert sum(event.get("cost_nanousd", 0) for event in events) == model["billed_nanousd"]
    answer = httpx.get(f"{priced.url}/v1/usage", headers={"authorization": f"Bearer {priced.key}"}, trust_env=False)
    assert Decimal(answer.json()["totals"]["cost_usd"]) * 10**9 == model["billed_nanousd"]
