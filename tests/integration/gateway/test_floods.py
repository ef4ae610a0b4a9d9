"""A flood of refusals: few events, and nothing of it missing."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.metering import _floods as floods
from gateway.metering import _ledger as ledger
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import MovedClock


@pytest.fixture(autouse=True)
def _each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three are events of their own, and what is counted is booked when a test says so."""
    monkeypatch.setattr(floods, "EACH_PER_S", 3)
    monkeypatch.setattr(ledger, "FLOOD_BOOKED_S", 3600)


async def test_refusals_beyond_the_first_of_a_second_are_counted_in_one_event(
    engine: Engine, start: Start, valkey_url: str
) -> None:
    """All are answered alike, in the tenant's usage, and told of by `mtok why`, each by its own id."""
    engine.script = recording("chat").script()
    clock = MovedClock()
    served = await start(engine, clock=clock, limits={"requests_per_minute": 1})
    assert (await served.post()).status == 200
    refused = []
    for _ in range(8):
        refused.append(await served.post())
        clock.advance_ms(2)
    assert [answer.status for answer in refused] == [429] * 8
    assert [int(answer.headers["retry-after-ms"]) for answer in refused] == sorted(
        (int(answer.headers["retry-after-ms"]) for answer in refused), reverse=True
    )
    assert {tuple(answer.headers) for answer in refused} == {tuple(refused[0].headers)}, "headers of the same names"
    assert len({answer.headers["x-request-id"] for answer in refused}) == 8
    metrics = (await served.get("/metrics")).body.decode()
    assert 'mtok_denied_requests_total{limit="requests_per_minute",scope="tenant",tenant="acme"} 8.0' in metrics
    await served.lifecycle.ledger._book_floods()
    ok, *alone, counted = await served.events(at_least=5)
    assert (ok["status"], len(alone)) == ("ok", 3)
    assert (counted["count"], counted["id"]) == (5, refused[3].headers["x-request-id"])
    assert counted["ended_ms"] - counted["arrived_ms"] == 8
    assert counted["refused_by"]["dimension"] == "requests_per_minute"
    (result,) = (await served.usage())["data"][-1]["results"]
    assert result["refused"] == {"rate_limit_exceeded": 8}

    def why(request_id: str) -> str:
        found = CliRunner().invoke(app, ["why", request_id], env={"MTOK_REDIS_URL": valkey_url})
        assert found.exit_code == 0, found.stderr
        return found.stdout

    last = await asyncio.to_thread(why, refused[7].headers["x-request-id"])
    assert "It is one of 5 alike" in last
    assert "It is one of" not in await asyncio.to_thread(why, refused[0].headers["x-request-id"])


async def test_what_was_counted_is_booked_when_a_gateway_ends(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    first = await start(engine, clock=MovedClock(), limits={"requests_per_minute": 1})
    for _ in range(6):
        await first.post()
    await first.lifecycle.ledger.close()
    assert [event.get("count", 1) for event in await first.events(at_least=5)] == [1, 1, 1, 1, 2]
