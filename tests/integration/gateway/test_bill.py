"""`mtok bill` and `mtok economics` over a gateway that served: the same nano-dollars everywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from redis.asyncio import Redis
from typer.testing import CliRunner

from gateway.cli import app
from gateway.store import PRICE_BOOK
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import Served
from tests.recompute_bills import recompute

Command = Callable[..., Awaitable[Result]]
GPU: dict[str, Any] = {"gpu": {"usd_per_hour": 3.6}, "hosted_as": "llama-3.3-70b"}


@pytest.fixture
async def served(start: Start, engine: Engine) -> Served:
    """Three chats, billed."""
    engine.script = recording("chat").script()
    served = await start(engine, **GPU)
    for _ in range(3):
        assert (await served.post()).status == 200
    await served.booked()
    return served


@pytest.fixture
def mtok(valkey_url: str, tmp_path: Path) -> Command:
    """Runs the command beside the gateway."""
    environment = {"MTOK_REDIS_URL": valkey_url, "MTOK_DATA_DIR": str(tmp_path / "own")}

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=environment)

    return run


async def test_a_bill_is_what_the_ledger_and_the_usage_page_say(served: Served, mtok: Command) -> None:
    """The events' costs, the page's total, the bill's total: one amount."""
    month = datetime.now(UTC).strftime("%Y-%m")
    told = json.loads((await mtok("bill", "--tenant", "acme", "--month", month, "--format", "json")).stdout)
    events = await served.events(at_least=3)
    assert told["total_nanousd"] == told["subtotal_nanousd"] == sum(event["cost_nanousd"] for event in events)
    page = await served.usage()
    assert f"{told['total_nanousd'] / 10**9:.9f}".rstrip("0") == page["totals"]["cost_usd"].rstrip("0")
    assert told["requests"] == 3


async def test_a_correction_is_on_the_bill(served: Served, mtok: Command) -> None:
    """Voided, it stands below the subtotal with its reason."""
    request = (await served.events(at_least=3))[0]["id"]
    voided = await mtok("correct", "acme", request, "--void", "--reason", "an outage")
    assert voided.exit_code == 0, voided.output
    shown = (await mtok("bill", "--tenant", "acme")).stdout
    assert f"{request}: an outage" in shown
    told = json.loads((await mtok("bill", "--tenant", "acme", "--format", "json")).stdout)
    assert told["total_nanousd"] == told["subtotal_nanousd"] * 2 // 3


async def test_a_bill_that_does_not_add_up_is_no_bill(served: Served, mtok: Command, redis: Redis) -> None:
    """Events that are kept no more: it says so and what to do, instead of a smaller bill."""
    await redis.xtrim("mtok:{acme}:events", maxlen=1, approximate=False)
    refused = await mtok("bill", "--tenant", "acme")
    assert refused.exit_code == 1
    assert "are 1 requests" in refused.output
    assert "make the bill from an export" in refused.output


async def test_an_export_makes_the_same_bill(served: Served, mtok: Command, redis: Redis, tmp_path: Path) -> None:
    """A year later, from a file; and by code that knows nothing of the gateway."""
    kept = json.loads((await mtok("bill", "--tenant", "acme", "--format", "json")).stdout)
    file = tmp_path / "usage.jsonl"
    exported = await mtok("usage", "export", "--format", "jsonl", "--output", str(file))
    assert exported.exit_code == 0, exported.output
    await redis.delete("mtok:{acme}:events")
    again = await mtok("bill", "--tenant", "acme", "--events", str(file), "--format", "json")
    assert json.loads(again.stdout) == kept
    book = {field.decode(): json.loads(price) for field, price in (await redis.hgetall(PRICE_BOOK)).items()}
    owed, wrong = recompute([json.loads(line) for line in file.read_text().splitlines()], book)
    assert wrong == []
    assert owed == {("acme", datetime.now(UTC).strftime("%Y-%m")): kept["total_nanousd"]}


async def test_economics_shows_where_the_gpus_cost_went(served: Served, mtok: Command, tmp_path: Path) -> None:
    """Billed and idle are the cost, hosted providers stand beside it."""
    directory = str(tmp_path / "policies")
    told = await mtok("economics", "--policies", directory, "--span", "1h", "--total", "--json")
    (report,) = json.loads(told.stdout)
    model = next(one for one in report["models"] if one["model"] == "tiny")
    assert model["cost_nanousd"] == model["billed_nanousd"] + model["lost_nanousd"] + model["idle_nanousd"]
    shown = (await mtok("economics", "--policies", directory, "--span", "1h")).stdout
    assert "MODEL" in shown
