"""What the policies name and nobody uses is told after a day, by one worker of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway import unmatched
from gateway.unmatched import RuleWatch
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, Served, StoppedClock, eventually, key_of, policies

DAY_MS = 86_400_000
UNUSED = ["key rival", "model other", "tenant rival"]


class MovedClock(StoppedClock):
    def advance_ms(self, ms: int) -> None:
        self._now_ms += ms


def watch(served: Served) -> RuleWatch:
    """As a worker has it that began when the gateway did."""
    metrics = served.lifecycle.telemetry.metrics
    return RuleWatch(
        served.redis, served.lifecycle.policies, now_ms=served.gateway.clock.now_ms, show=metrics.show_unmatched
    )


async def shown(served: Served) -> dict[str, float]:
    """The metric's values, by kind and name."""
    lines = (await served.get("/metrics")).body.decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith("mtok_policy_rule_unmatched{")]
    return {name.partition("{")[2]: float(value) for name, value in found}


async def test_rules_that_nothing_matched_for_a_day_are_told_once(
    engine: Engine, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The tenant that asked is not among them, though half of what it asked was refused; the next day, when the other
    one has asked for the other model, nothing is."""
    engine.script = recording("chat").script()
    clock = MovedClock()
    served = await start(engine, clock=clock)
    rules, others = watch(served), watch(served)
    assert (await served.post()).status == 200
    assert (await served.post(ASKED | {"model": "nonesuch"})).status == 404
    await served.booked()
    clock.advance_ms(DAY_MS - 1)
    await rules.look()
    assert "has matched" not in caplog.text
    clock.advance_ms(1)
    await rules.look()
    await others.look()
    told = [record for record in caplog.records if "has matched" in record.message]
    assert len(told) == 1, "one worker of all tells"
    assert told[0].data["unmatched"] == UNUSED  # type: ignore[attr-defined]
    assert set((await shown(served)).values()) == {0.0}, "the other worker's look has cleared what it does not know"

    for key, model in ((served.key, "tiny"), (key_of("rival"), "other")):
        assert (await served.post(ASKED | {"model": model}, key=key)).status == 200
    await served.booked()
    await served.redis.delete("mtok:rules:told")  # its 23 hours are over; Redis' own clock has not moved
    clock.advance_ms(DAY_MS)
    await rules.look()
    assert len([record for record in caplog.records if "has matched" in record.message]) == 1


async def test_the_metric_names_them(engine: Engine, start: Start) -> None:
    engine.script = recording("chat").script()
    clock = MovedClock()
    served = await start(engine, clock=clock)
    rules = watch(served)
    assert (await served.post()).status == 200
    await served.booked()
    clock.advance_ms(DAY_MS)
    await rules.look()
    assert await shown(served) == {
        'kind="key",name="rival"}': 1.0,
        'kind="model",name="other"}': 1.0,
        'kind="tenant",name="rival"}': 1.0,
    }


async def test_a_gateway_looks_by_itself_and_at_the_policies_in_force(
    engine: Engine, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reload has taken out is not told."""
    monkeypatch.setattr(unmatched, "LOOK_S", 0.02)
    clock = MovedClock()
    served = await start(engine, clock=clock, settings={"reloads": True})
    document = policies(engine)
    del document["tenants"]["rival"]
    (tmp_path / "policies" / "policy.yaml").write_text(yaml.safe_dump(document))
    await eventually(lambda: "rival" not in served.lifecycle.policies.tenants)
    clock.advance_ms(DAY_MS)
    names = await eventually(lambda: shown(served))
    assert 'kind="tenant",name="acme"}' in names
    assert not any("rival" in name for name in names)
