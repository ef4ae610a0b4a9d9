"""A gateway killed in front of real vLLM while clients hang up: the audit of what it leaves explains every token."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import msgspec
import openai
import redis

from gateway.metering import UsageEvent
from gateway.store import TenantKeys, embedded
from gateway.tenants import hash_key, new_key
from loadtest.processes import free_port, mtok, running
from tests.real.conftest import Engine
from tests.real.workload import Told, ask_one, draw

SEED = 20_262
REQUESTS = 60
AT_ONCE = 12
READ_S = 20
"""By then the engines' counters have been read again, and what was read is settled."""
LEASE_S = 40
"""By then a worker that is gone reads no counters any more."""

_POLICIES = """\
models:
  tiny: {{replicas: [{{url: "{first}"}}, {{url: "{second}"}}], price: {{output_usd_per_mtok: 0.35}}}}
tenants:
  acme: {{keys: [{{id: acme, sha256: "{sha256}"}}]}}
"""


async def ask_until_killed(url: str, key: str, gateway: subprocess.Popen[bytes]) -> list[Told | None]:
    """Mixed requests, some of whose clients hang up; after a third of them have ended the gateway is killed."""
    ended = 0
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Told | None:
        nonlocal ended
        [ask] = draw(SEED + number, 1, cut=number % 3 == 0, prefix=f"kill{number}")
        async with gate:
            if gateway.poll() is not None:
                return None
            with contextlib.suppress(openai.APIConnectionError):
                return await ask_one(client, ask)
            return None

    async def kill() -> None:
        while ended < REQUESTS // 3:
            await asyncio.sleep(0.01)
        os.killpg(gateway.pid, signal.SIGKILL)
        gateway.wait()

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        killing = asyncio.ensure_future(kill())
        told: list[Told | None] = []
        for answer in asyncio.as_completed([one(number) for number in range(REQUESTS)]):
            told.append(await answer)
            ended += 1
        await killing
    return told


def audited(valkey_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        mtok("audit", "--start", "2h", *options),
        env={**os.environ, "MTOK_REDIS_URL": valkey_url},
        capture_output=True,
        text=True,
        check=False,
    )


async def test_what_a_killed_gateway_leaves_is_explained(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    """Its answers that had ended are booked, those that were open are billed at their last note, and with what clients
    cut, that is all the engines counted."""
    key = new_key("acme")
    policies = tmp_path / "policies"
    policies.mkdir()
    document = _POLICIES.format(first=engines[0].url, second=engines[1].url, sha256=hash_key(key))
    (policies / "policies.yaml").write_text(document)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {"MTOK_DATA_DIR": str(tmp_path / "data"), "MTOK_REDIS_URL": "", "MTOK_LOG": "info"}
    serving = mtok("serve", "--policies", str(policies), "--port", str(port))
    for engine in engines:
        await asyncio.to_thread(engine.idle_counters)
    with embedded(tmp_path / "data") as valkey_url, redis.Redis.from_url(valkey_url) as valkey:
        log = tmp_path / "gateway.log"
        with running(serving, log=log, ready_url=f"{url}/readyz", environment=environment) as gateway:
            await asyncio.sleep(READ_S)
            told = await ask_until_killed(url, key, gateway)
        for engine in engines:
            await asyncio.to_thread(engine.idle_counters)
        with running(serving, log=log, ready_url=f"{url}/readyz", environment=environment):
            await asyncio.sleep(LEASE_S + READ_S)
            shown = await asyncio.to_thread(audited, valkey_url)
            recomputed = await asyncio.to_thread(audited, valkey_url, "--recompute")
        entries = valkey.xrange(TenantKeys("acme").events)
    events = [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
    statuses = {
        status: sum(event.status == status for event in events) for status in {event.status for event in events}
    }
    print(f"\n{len(events)} events: {statuses}\n{shown.stdout}{shown.stderr}")
    assert len({event.id for event in events}) == len(events)
    assert statuses["gateway_lost"] > 0, "nothing was open when it was killed"
    complete = [answer for answer in told if answer is not None and not answer.ask.is_cut and not answer.problems]
    assert {answer.ask.id for answer in complete} <= {event.id for event in events if event.status == "ok"}
    assert shown.returncode == 0, "something is unexplained"
    assert recomputed.returncode == 0, recomputed.stdout
