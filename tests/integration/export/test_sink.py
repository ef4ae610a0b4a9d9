"""The push sink against a real Valkey and a real HTTP server that fails in every way it can."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.clock import SystemClock
from gateway.export import Sink, SinkSettings
from gateway.export._sink import LeaseLost
from gateway.metering import Ledger, UsageEvent
from gateway.policy import SinkFormat, SinkSpec
from gateway.store import SINK_PARKED, TenantKeys
from gateway.telemetry import Metrics
from tests.integration.export.sinks import Event, FakeSink, listening
from tests.integration.gateway.engine import Engine, running
from tests.integration.gateway.serving import policies, serve
from tests.integration.posts import HANG, HANG_UP
from tests.integration.store.ledgers import event

QUICK = SinkSettings(
    push_timeout_s=0.2, lease_ttl_s=0.6, idle_s=0.005, retry_min_s=0.001, retry_max_s=0.01, look_s=0.01
)


def pusher(
    redis: Redis, sink: FakeSink, *, batch_max: int = 10, format_: SinkFormat = "cloudevents", **changes: Any
) -> Sink:
    return Sink(
        redis,
        SinkSpec(url=sink.url, batch_max=batch_max, format=format_),
        **{
            "token": "s3cret",
            "metrics": Metrics(),
            "tenants": ("acme", "beta"),
            "clock": SystemClock(),
            "random": lambda: 0.5,
            "settings": QUICK,
        }
        | changes,
    )


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


async def book(redis: Redis, *events: UsageEvent) -> None:
    with tempfile.TemporaryDirectory() as journal:
        async with Ledger(redis, Path(journal)) as ledger:
            await asyncio.gather(*(ledger.record(one) for one in events))


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def cursor(redis: Redis, tenant: str = "acme") -> bytes | None:
    return await redis.hget(TenantKeys(tenant).sink, "entry")


async def caught_up(redis: Redis, tenant: str = "acme") -> bool:
    last = await redis.xrevrange(TenantKeys(tenant).events, count=1)
    return bool(last) and last[0][0] == await cursor(redis, tenant)


def first_times(requests: list[str]) -> list[str]:
    return list(dict.fromkeys(requests))


async def test_every_event_arrives_whatever_the_sink_does(redis: Redis) -> None:
    """Errors, time-outs after which the sink has the events all the same, hang-ups, throttling, a wrong token: each
    tenant's events arrive in order, and again with the same id if they come again."""
    faults = [500, HANG, 204, 503, HANG_UP, 429, 401, 404, 302, HANG, 204, 502]
    async with listening(FakeSink(faults=list(faults))) as sink:
        booked = [event(f"r{n}") for n in range(45)]
        await book(redis, *booked, *(event(f"b{n}", of="beta") for n in range(5)))
        metrics = Metrics()
        async with pusher(redis, sink, metrics=metrics):
            await until(lambda: len({one["id"] for one in sink.received}) == 50 and not sink.faults)
            await book(redis, event("later"))
            await until(lambda: value(metrics, "mtok_sink_events_total", outcome="delivered") == 51)
    assert first_times(sink.requests()) == [*(f"r{n}" for n in range(45)), "later"]
    assert first_times(sink.requests("beta")) == [f"b{n}" for n in range(5)]
    assert len(sink.received) > 51, "what timed out came again"
    assert len({one["id"] for one in sink.received}) == 51
    assert max(sink.batches) == 10
    assert {headers["authorization"] for headers in sink.headers} == {"Bearer s3cret"}
    assert {headers["content-type"] for headers in sink.headers} == {"application/cloudevents-batch+json"}
    assert value(metrics, "mtok_sink_failures_total", reason="timeout") == 2
    assert value(metrics, "mtok_sink_failures_total", reason="connection") == 1
    assert value(metrics, "mtok_sink_failures_total", reason="401") == 1


async def test_a_poison_event_is_parked_and_blocks_nobody(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """The batch is halved down to it; the others arrive, once, in order. The log tells its place and nothing else."""

    def judge(events: list[Event]) -> int:
        return 400 if any(one["data"]["id"] == "poison" for one in events) else 204

    async with listening(FakeSink(judge=judge)) as sink:
        users = [event(name) for name in ("r0", "r1", "r2", "poison", "r4", "r5", "r6")]
        await book(redis, *users, event("b0", of="beta"))
        metrics = Metrics()
        async with pusher(redis, sink, metrics=metrics):
            await until(lambda: len(sink.received) == 7)
            await until(lambda: value(metrics, "mtok_sink_lag_events") == 0)
    assert sink.requests() == ["r0", "r1", "r2", "r4", "r5", "r6"]
    ((_, parked),) = await redis.xrange(SINK_PARKED)
    (_, _, _, (entry, _), *_) = await redis.xrange(TenantKeys("acme").events)
    assert parked == {b"tenant": b"acme", b"entry": entry, b"reason": b"400"}
    assert value(metrics, "mtok_sink_events_total", outcome="parked") == 1
    assert await caught_up(redis)
    (told,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert told.data == {"tenant": "acme", "entry": entry.decode(), "reason": "400"}  # type: ignore[attr-defined]
    assert "poison" not in caplog.text


async def test_an_entry_that_is_no_event_is_parked(redis: Redis) -> None:
    """Nothing that stands in a stream stops what comes after it."""
    await book(redis, event("r0"))
    await redis.xadd(TenantKeys("acme").events, {"event": "{"})
    await book(redis, event("r1"))
    async with listening(FakeSink()) as sink, pusher(redis, sink):
        await until(lambda: len(sink.received) == 2)
    assert sink.requests() == ["r0", "r1"]
    assert await redis.xlen(SINK_PARKED) == 1


async def test_a_fleet_has_one_pusher_and_another_takes_over(redis: Redis) -> None:
    """Three workers: no event is sent twice while all run, and none is left out when the one that pushes stops."""
    async with listening(FakeSink()) as sink:
        workers = [pusher(redis, sink) for _ in range(3)]
        for worker in workers:
            await worker.__aenter__()
        for n, worker in enumerate(workers):
            await book(redis, *(event(f"r{n}.{m}") for m in range(25)))
            async with asyncio.timeout(20):
                while not await caught_up(redis):
                    await asyncio.sleep(0.002)
            await worker.__aexit__(None, None, None)
    assert sink.requests() == [f"r{n}.{m}" for n in range(3) for m in range(25)]


async def test_a_pusher_that_lost_its_lease_moves_no_cursor(redis: Redis) -> None:
    """It was away for longer than its lease: what it says then is not written, and it stops."""
    async with listening(FakeSink()) as sink:
        await book(redis, event("r0"), event("r1"))
        late, next_ = pusher(redis, sink), pusher(redis, sink)
        assert await late._take_lease()
        assert (await late._position("acme")).entry == "0-0"
        assert not await next_._take_lease()
        await redis.hset("mtok:sink:lease", "until_ms", 0)
        assert await next_._take_lease()
        await next_._position("acme")
        items = await next_._read(["acme"])
        with pytest.raises(LeaseLost):
            await late._advance(items)
        assert await cursor(redis) is None
        await next_._advance(items)
        assert await caught_up(redis)


async def test_lag_is_counted_in_events_and_seconds(redis: Redis) -> None:
    """While the sink is down both grow; afterwards both are zero. A stream that was trimmed does not confuse them."""
    await book(redis, *(event(f"r{n}") for n in range(8)))
    await redis.xtrim(TenantKeys("acme").events, maxlen=5, approximate=False)
    metrics = Metrics()
    async with listening(FakeSink(judge=lambda _: 503)) as sink, pusher(redis, sink, metrics=metrics):
        await until(lambda: value(metrics, "mtok_sink_lag_events") == 5)
        await book(redis, event("r8"))
        await until(lambda: value(metrics, "mtok_sink_lag_events") == 6)
        assert value(metrics, "mtok_sink_lag_seconds") > 0
        sink.judge = lambda _: 200
        await until(lambda: value(metrics, "mtok_sink_lag_events") == 0)
        assert value(metrics, "mtok_sink_lag_seconds") == 0
    assert sink.requests() == ["r3", "r4", "r5", "r6", "r7", "r8"]


async def test_lago_takes_its_own_form_and_its_duplicates_count_as_delivered(redis: Redis) -> None:
    """A batch Lago has in part already is refused as a whole; one by one, what it has is done."""

    def judge(events: list[Event]) -> int:
        return 422 if any(one["properties"]["id"] == "r0" for one in events) else 200

    sink = FakeSink(judge=judge, body=b'{"status":422,"error_details":{"transaction_id":["value_already_exist"]}}')
    async with listening(sink):
        await book(redis, event("r0", cost_nanousd=123_456_789), event("r1", cost_nanousd=123_456_789))
        async with pusher(redis, sink, format_="lago"):
            await until(lambda: len(sink.received) == 1)
            async with asyncio.timeout(5):
                while not await caught_up(redis):
                    await asyncio.sleep(0.002)
    assert await redis.exists(SINK_PARKED) == 0
    (taken,) = sink.received
    assert taken["external_subscription_id"] == "acme"
    assert taken["code"] == "mtok_usage"
    assert taken["transaction_id"] == taken["properties"]["event_id"]
    assert taken["precise_total_amount_cents"] == "12.3456789"
    assert taken["timestamp"] == "1790000000.000"
    assert json.dumps(taken["properties"]["cost_usd"]) == '"0.123456789"'


async def test_a_gateway_pushes_what_it_books(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """With a sink in the policies and its token in the settings, a request's event arrives by itself."""
    engine = Engine()
    async with listening(FakeSink()) as sink, running(engine):
        document = policies(engine) | {"ledger": {"sink": {"url": sink.url}}}
        async with serve(document, tmp_path / "policies", redis, valkey_url, sink_token="om_1") as served:
            refused = await served.post({"model": "nope", "messages": []})
            await until(lambda: bool(sink.received))
    assert sink.requests() == [refused.headers["x-request-id"]]
    assert sink.headers[0]["authorization"] == "Bearer om_1"
