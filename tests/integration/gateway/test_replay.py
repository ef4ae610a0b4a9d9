"""A few seconds through the real gateway, then the same arrivals, as the ledger has them, through a replay."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis
from typer.testing import CliRunner

from gateway.cli import app
from gateway.clock import SystemClock
from gateway.simulator import PROFILES
from tests.integration.gateway.serving import CHAT, Served, key_of, policies, serve
from tests.integration.gateway.test_exact import simulated

BURSTS, BURST_S = 8, 0.4
SLOW = PROFILES["tiny"].override(speed=0.1)
"""Answers of 20 tokens take 0.2 s, so that how busy this machine is does not count."""


async def ask(served: Served, tenant: str, tokens: int) -> None:
    """One chat; what comes of it is in the ledger."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 40}], "ignore_eos": True}
    await served.post({**body, "max_tokens": tokens, "stream": True}, CHAT, key=key_of(tenant))


async def refused(served: Served, tenant: str, requests: int) -> Counter[str]:
    """What refused the tenant's requests, by the ledger."""
    events = await served.events(tenant, at_least=requests)
    assert len(events) == requests
    return Counter(event["refused_by"]["dimension"] for event in events if event["status"] == "refused")


async def replayed(*arguments: str, url: str) -> dict[str, Any]:
    """`mtok policy diff`, beside the gateway."""
    invoked = await asyncio.to_thread(
        CliRunner().invoke, app, ["policy", "diff", *arguments, "--json"], env={"MTOK_REDIS_URL": url}
    )
    assert invoked.exit_code == 0, invoked.output
    told: dict[str, Any] = json.loads(invoked.stdout)["replay"]
    return told


async def test_a_replay_refuses_whom_the_gateway_refused(
    tmp_path: Path, redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bursts of one tenant beyond its requests per minute, of another beyond its requests at once. The replay of the
    same policies refuses as many for the minute, give or take one, and as many for what runs at once within a tenth of
    the requests; what both used and what it cost is the ledger's. With half more a minute the replay refuses less."""
    monkeypatch.setitem(PROFILES, "slow", SLOW)
    async with simulated(SLOW) as one, simulated(SLOW) as two:
        document = policies(one, two, limits={"requests_per_minute": 12}, rival_uses="tiny")
        document["tenants"]["rival"]["limits"] = {"concurrent_requests": 2}
        async with serve(document, tmp_path / "old", redis, valkey_url) as served:
            asked = []
            for _ in range(BURSTS):
                asked += [asyncio.create_task(ask(served, "acme", 10)) for _ in range(3)]
                asked += [asyncio.create_task(ask(served, "rival", 20)) for _ in range(6)]
                await asyncio.sleep(BURST_S)
            await asyncio.gather(*asked)
            await served.booked()
            acme = await refused(served, "acme", 3 * BURSTS)
            rival = await refused(served, "rival", 6 * BURSTS)
            used = (await served.usage())["totals"]
        document["tenants"]["acme"]["limits"]["requests_per_minute"] = 18
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "policy.yaml").write_text(yaml.safe_dump(document))
        both = [str(tmp_path / "old"), str(tmp_path / "new")]
        told = await replayed(*both, "--replay", "1h", "--profile", "slow", url=valkey_url)
    old, new = (told[which]["tenants"] for which in ("old", "new"))
    assert acme["requests_per_minute"] >= 10
    assert old["acme"]["refused"]["requests_per_minute"] == pytest.approx(acme["requests_per_minute"], abs=1)
    assert rival["concurrent_requests"] >= 20
    assert old["rival"]["refused"]["concurrent_requests"] == pytest.approx(
        rival["concurrent_requests"], abs=0.1 * 6 * BURSTS
    )
    assert new["acme"]["refused"]["requests_per_minute"] < old["acme"]["refused"]["requests_per_minute"]
    assert (told["requests"], told["imputed"]) == (9 * BURSTS, acme.total() + rival.total())
    assert old["acme"]["output_tokens"] == pytest.approx(used["output_tokens"], abs=10)
    assert old["acme"]["input_tokens"] == pytest.approx(used["input_tokens"], rel=0.1)


class Earlier(SystemClock):
    """Two hours ago."""

    def now_ms(self) -> int:
        return super().now_ms() - 7_200_000


async def test_a_budget_begins_as_the_day_found_it(tmp_path: Path, redis: Redis, valkey_url: str) -> None:
    """Three requests two hours ago have spent nearly all of the $0.0001 that the new policy has for a month: in its
    replay of the last hour nobody is served, in the old one's both are."""
    zone = "UTC" if datetime.now(UTC).hour >= 6 else "Etc/GMT+12"  # where no month has begun in these two hours
    async with simulated(PROFILES["instant"]) as engine:
        document = policies(engine)
        document["tenants"]["acme"]["time_zone"] = zone
        async with serve(document, tmp_path / "before", redis, valkey_url, clock=Earlier()) as served:
            for _ in range(3):
                await ask(served, "acme", 10)
            await served.booked()
        async with serve(document, tmp_path / "old", redis, valkey_url) as served:
            for _ in range(2):
                await ask(served, "acme", 10)
            await served.booked()
    document["tenants"]["acme"]["limits"] = {"usd_per_month": 0.0001}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "policy.yaml").write_text(yaml.safe_dump(document))
    told = await replayed(str(tmp_path / "old"), str(tmp_path / "new"), "--replay", "1h", url=valkey_url)
    old, new = (told[which]["tenants"]["acme"] for which in ("old", "new"))
    assert (told["requests"], old["served"], old["refused"]) == (2, 2, {})
    assert (new["served"], new["refused"]) == (0, {"usd_per_month": 2})
