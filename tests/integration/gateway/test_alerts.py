"""A webhook is told when much of a soft limit is used, once for all gateways, and no request waits for it."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisGone

from gateway import alerts
from gateway.admission import Note
from gateway.alerts import Alerts, AlertsSettings
from gateway.policy import AlertsSpec
from gateway.telemetry import Metrics
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import PRICE, MovedClock, Served, StoppedClock, eventually, policies, serve
from tests.integration.gateway.webhook import Webhook, listening
from tests.integration.posts import HANG

RPM = {"requests_per_minute": {"limit": 4, "mode": "soft"}}
DAY = {"usd_per_day": {"limit": 0.04, "mode": "soft"}}
"""One recorded chat, which costs $0.0125 at `DEAR`, is 31 % of it."""
DEAR = PRICE | {"output_usd_per_mtok": 1000}


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    async with listening(Webhook()) as webhook:
        yield webhook


def alerts_of(served: Served) -> Alerts:
    """What this gateway's worker tells with; it does not pause between two tries."""
    found: Alerts = served.lifecycle._alerts
    found._settings = AlertsSettings(pauses_s=(0.0, 0.0))
    return found


async def told(*gateways: Served) -> None:
    """Returns when nothing waits to be told."""
    for served in gateways:
        await alerts_of(served)._waiting.join()


async def spent(served: Served, requests: int) -> None:
    """So many chats, each with what it cost booked before the next."""
    for _ in range(requests):
        assert (await served.post()).status == 200
        await served.booked()


async def outcomes(served: Served) -> dict[str, float]:
    lines = (await served.get("/metrics")).body.decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith("mtok_alerts_total{")]
    return {name.split('"')[1]: float(value) for name, value in found}


def losses(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is lost" in record.getMessage()]


async def test_two_gateways_tell_of_a_threshold_once(
    engine: Engine, tmp_path: Path, redis: Redis, valkey_url: str, webhook: Webhook
) -> None:
    engine.script = recording("chat").script()
    document = policies(engine, limits=RPM) | {"alerts": {"url": webhook.url}}
    clock = StoppedClock()
    async with AsyncExitStack() as stack:
        here, there = [
            await stack.enter_async_context(serve(document, tmp_path / name, redis, valkey_url, clock=clock))
            for name in ("here", "there")
        ]
        for served in (here, there, here, there, here, there):
            assert (await served.post()).status == 200
            await told(here, there)
    assert webhook.told == [("requests_per_minute", 50), ("requests_per_minute", 95)]
    post = dict(webhook.posts[0])
    assert post.pop("at").endswith("Z")
    assert post == {
        "tenant": "acme",
        "scope": "tenant",
        "of": "acme",
        "dimension": "requests_per_minute",
        "limit": 4,
        "percent": 50,
        "threshold": 50,
    }
    assert webhook.headers[0]["content-type"] == "application/json"
    assert "authorization" not in webhook.headers[0]
    keys = [key async for key in redis.scan_iter("mtok:alert:*")]
    assert len(keys) == 3, "80 % was passed over, and counts as told"
    assert {await redis.ttl(key) for key in keys} <= {3599, 3600}


async def test_money_is_told_in_dollars_and_once_a_period(engine: Engine, start: Start, webhook: Webhook) -> None:
    """Of a limit that tenants share the one whose request it was is named. The next day begins anew."""
    engine.script = recording("chat").script()
    clock = MovedClock()
    top = {"groups": {"labs": {"limits": DAY}}, "alerts": {"url": webhook.url}}
    served = await start(engine, clock=clock, tenant={"group": "labs"}, price=DEAR, top=top)
    await spent(served, 3)
    await told(served)
    assert webhook.told == [("usd_per_day", 50)], "the third finds $0.025 spent"
    assert (webhook.posts[0]["scope"], webhook.posts[0]["of"], webhook.posts[0]["tenant"]) == ("group", "labs", "acme")
    assert (webhook.posts[0]["limit"], webhook.posts[0]["percent"]) == (0.04, 62)
    clock.advance_ms(86_400_000)
    await spent(served, 3)
    await told(served)
    assert webhook.told == [("usd_per_day", 50)] * 2


async def test_the_token_goes_to_the_webhook_and_into_no_log(
    engine: Engine, start: Start, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway")
    engine.script = recording("chat").script()
    webhook.faults = [500]
    settings, top = {"alerts_token": "hook_secret"}, {"alerts": {"url": webhook.url}}
    served = await start(engine, limits=RPM, clock=StoppedClock(), settings=settings, top=top)
    alerts_of(served)
    for _ in range(2):
        await served.post()
    await told(served)
    assert [headers["authorization"] for headers in webhook.headers] == ["Bearer hook_secret"] * 2
    assert "hook_secret" not in caplog.text
    assert webhook.url not in caplog.text, "an address may be a secret too"


@pytest.mark.parametrize(("faults", "posts"), [([503, 500, 429], 3), ([404], 1)])
async def test_an_alert_the_webhook_does_not_take_is_lost_and_told_a_minute_later(
    engine: Engine,
    start: Start,
    webhook: Webhook,
    faults: list[int],
    posts: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Tried three times where that may help, and said once in the log; requests are served meanwhile."""
    engine.script = recording("chat").script()
    clock = MovedClock()
    webhook.faults = [*faults, *faults]
    limits = {"usd_per_day": {"limit": 0.1, "mode": "soft"}}
    served = await start(engine, limits=limits, price=DEAR, clock=clock, top={"alerts": {"url": webhook.url}})
    alerts_of(served)
    await spent(served, 5)
    await told(served)
    assert len(webhook.posts) == posts
    for percent, so_far in ((62, 2 * posts), (75, 2 * posts + 1)):
        clock.advance_ms(60_000)
        await spent(served, 1)
        await told(served)
        assert len(webhook.posts) == so_far
        assert (webhook.posts[-1]["percent"], webhook.posts[-1]["threshold"]) == (percent, 50)
    assert len(losses(caplog)) == 1
    assert await outcomes(served) == {"lost": 2.0, "sent": 1.0}


async def test_no_request_waits_for_a_webhook_that_hangs(
    engine: Engine, start: Start, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes meanwhile waits, as much as is kept; the rest is lost."""
    monkeypatch.setattr(alerts, "WAITING_MAX", 1)
    engine.script = recording("chat").script()
    webhook.faults = [HANG]
    limits = RPM | {
        "concurrent_requests": {"limit": 1, "mode": "soft"},
        "tokens_per_minute": {"limit": 1, "mode": "soft"},
    }
    served = await start(engine, limits=limits, top={"alerts": {"url": webhook.url}})
    found = alerts_of(served)
    found._settings = AlertsSettings(drain_s=0.0)
    assert (await served.post()).status == 200
    await eventually(lambda: webhook.posts)
    for _ in range(3):
        assert (await served.post()).status == 200
    assert len(losses(caplog)) == 1
    assert "more alerts wait" in losses(caplog)[0]


async def test_redis_away_loses_alerts_and_nothing_else(
    engine: Engine, start: Start, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        def pipeline(self, **_: Any) -> Any:
            raise RedisGone("nobody there")

    engine.script = recording("chat").script()
    clock = MovedClock()
    served = await start(engine, limits=DAY, price=DEAR, clock=clock, top={"alerts": {"url": webhook.url}})
    redis = alerts_of(served)._redis
    monkeypatch.setattr(served.lifecycle._alerts, "_redis", Away())
    await spent(served, 3)
    clock.advance_ms(60_000)
    await spent(served, 1)
    await told(served)
    assert (webhook.posts, await outcomes(served)) == ([], {"lost": 2.0})
    assert len(losses(caplog)) == 1
    monkeypatch.setattr(served.lifecycle._alerts, "_redis", redis)
    clock.advance_ms(60_000)
    await spent(served, 1)
    await told(served)
    assert webhook.told == [("usd_per_day", 95)]


async def test_a_new_address_holds_at_once_and_none_stops_alerts(
    engine: Engine, start: Start, webhook: Webhook, tmp_path: Path
) -> None:
    engine.script = recording("chat").script()
    served = await start(engine, limits=RPM, clock=StoppedClock(), settings={"reloads": True})
    document = policies(engine, limits=RPM)
    for _ in range(2):
        await served.post()
    await told(served)
    assert webhook.posts == [], "there is no address yet"
    for section in ({"url": webhook.url}, None):
        changed = document if section is None else document | {"alerts": section}
        (tmp_path / "policies" / "policy.yaml").write_text(yaml.safe_dump(changed))
        signal.raise_signal(signal.SIGHUP)
        spec = None if section is None else section["url"]
        await eventually(lambda spec=spec: getattr(served.lifecycle.policies.alerts, "url", None) == spec)  # type: ignore[misc]
        if section is not None:
            await served.post()
            await told(served)
            assert webhook.told == [("requests_per_minute", 50)]
    for _ in range(2):
        await served.post()
    await told(served)
    assert len(webhook.posts) == 1


async def test_what_waits_at_the_end_is_told(redis: Redis, webhook: Webhook) -> None:
    """Also what was queued in the last moment."""
    note = Note(kind="key", of="ci", scope="key ci", dimension="requests_per_minute", limit=4, percent=80)
    async with Alerts(redis, AlertsSpec(url=webhook.url), token=None, metrics=Metrics(), now_ms=lambda: 0) as telling:
        telling.tell("acme", [note])
    assert webhook.told == [("requests_per_minute", 80)]
