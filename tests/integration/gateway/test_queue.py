"""A replica has room for one: the others wait in fair order, are refused in time, or leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.admission import _knee as knee
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Conversation, Engine, Received, as_json, recording
from tests.integration.gateway.serving import ASKED, CHAT, MovedClock, Served, StoppedClock, eventually, key_of

PATIENT = {"max_wait_s": 30, "slo": {"ttft_p99_ms": 30_000, "itl_p99_ms": 80}}
HASTY = PATIENT | {"max_wait_s": 0.2}
LIMITS = {"requests_per_minute": 5, "tokens_per_minute": 5000, "concurrent_requests": 4, "budget_usd": 1}


@pytest.fixture(autouse=True)
def room_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every replica starts with room for one sequence."""
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 1)
    monkeypatch.setattr(knee, "LEAST_SEQUENCES", 1)


class Gate:
    """An engine's answers wait until it opens; then they go on as they come in."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def script(self, talk: Conversation, request: Received) -> None:
        await self.open.wait()
        await recording("chat").script()(talk, request)


def line(served: Served) -> Any:
    """The model's queue and knees."""
    return served.lifecycle.dispatcher.lines["tiny"]


def waiting(served: Served, count: int) -> Any:
    return eventually(lambda: "tiny" in served.lifecycle.dispatcher.lines and len(line(served).queue) == count)


async def test_a_tenant_holds_no_more_than_its_largest_share(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four places half, though nobody else wants one; another tenant finds the rest free."""
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 4)
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT | {"max_share": 0.5}, rival_uses="tiny")
    answers = [asyncio.create_task(served.post()) for _ in range(3)]
    await waiting(served, 1)
    await eventually(lambda: len(engine.received) == 2)
    answers.append(asyncio.create_task(served.post(key=key_of("rival"))))
    await eventually(lambda: len(engine.received) == 3)
    gate.open.set()
    assert [answer.status for answer in await asyncio.gather(*answers)] == [200] * 4


@pytest.mark.parametrize(("passed", "priority"), [("pass", -10), ("ignore", 3)])
async def test_engines_that_schedule_by_priority_get_that_of_the_class(
    engine: Engine, start: Start, passed: str, priority: int
) -> None:
    """vLLM serves the lowest first, so it is the class's negated; what a client sends itself is replaced."""
    engine.script = recording("chat").script()
    served = await start(engine, service={"priority": 10}, engine_priority=passed)
    assert (await served.post(ASKED | {"priority": 3})).status == 200
    assert engine.received[0].json["priority"] == priority


async def test_the_second_request_waits_for_the_first_to_end(engine: Engine, start: Start) -> None:
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT)
    answers = [asyncio.create_task(served.post()) for _ in range(3)]
    await eventually(lambda: engine.received)
    await waiting(served, 2)
    assert len(engine.received) == 1
    gate.open.set()
    assert [answer.status for answer in await asyncio.gather(*answers)] == [200, 200, 200]
    assert len(engine.received) == 3
    assert line(served).knee(served.replica(engine)).load.sequences == 0


async def test_whoever_waits_past_the_deadline_is_told_when_to_come_back_and_has_taken_nothing(
    engine: Engine, start: Start
) -> None:
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=HASTY, limits=LIMITS)
    first = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    answer = await served.post()
    assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "overloaded", "rate_limit_error")
    assert "at most 0.2 s" in answer.error["message"]
    assert int(answer.headers["retry-after"]) * 1000 >= int(answer.headers["retry-after-ms"]) > 0
    gate.open.set()
    assert (await first).status == 200
    events = await served.events(at_least=2)
    assert sorted(event["status"] for event in events) == ["ok", "refused"]
    await served.booked()
    left = (await served.usage())["limits"]
    assert left["requests_per_minute"]["remaining"] == 4
    assert left["concurrent_requests"]["remaining"] == 4
    assert left["budget_usd"]["reserved_usd"] == "0.00"
    assert len(engine.received) == 1


async def test_nobody_waits_longer_than_the_target_for_the_first_token_allows(engine: Engine, start: Start) -> None:
    """Of 600 ms a quarter second is left for the engine, whatever the class's longest wait."""
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT | {"slo": {"ttft_p99_ms": 600}})
    first = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert "at most 0.3" in answer.error["message"]
    gate.open.set()
    assert (await first).status == 200
    assert len(engine.received) == 1


async def test_a_client_that_hangs_up_leaves_the_queue_at_once(engine: Engine, start: Start) -> None:
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT)
    first = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key)
        await waiting(served, 1)
    await waiting(served, 0)
    (left,) = await served.events()
    assert left["status"] == "client_gone"
    assert not any(left["usage"].values())
    gate.open.set()
    assert (await first).status == 200
    assert len(engine.received) == 1


async def test_a_flood_does_not_keep_another_tenant_waiting(engine: Engine, start: Start) -> None:
    """Twenty requests of one wait; the other's only one has a place that is kept for those below their share."""
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT, rival_uses="tiny")
    flood = [asyncio.create_task(served.post()) for _ in range(21)]
    await waiting(served, 20)
    other = asyncio.create_task(served.post({**ASKED, "user": "rival"}, key=key_of("rival")))
    await eventually(lambda: len(engine.received) == 2)
    assert engine.received[1].json["user"] == "rival"
    gate.open.set()
    assert (await other).status == 200
    assert all(answer.status == 200 for answer in await asyncio.gather(*flood))


async def test_an_engine_that_says_it_is_full_is_asked_again_and_its_word_is_not_passed_on(
    engine: Engine, start: Start
) -> None:
    full = as_json({"error": {"message": "queue is full"}}, status=503)
    engine.scripts.extend([full, full])
    engine.script = recording("chat").script()
    served = await start(engine, service=PATIENT)
    assert (await served.post()).status == 200
    assert len(engine.received) == 3
    event = await served.event()
    assert [attempt["code"] for attempt in event["failed_attempts"]] == ["busy", "busy"]


async def test_an_engine_that_stays_full_ends_in_a_refusal_at_the_deadline(engine: Engine, start: Start) -> None:
    engine.script = as_json({"error": {"message": "queue is full"}}, status=429)
    served = await start(engine, service=PATIENT | {"max_wait_s": 0.6})
    answer = await served.post()
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert 2 <= len(engine.received) <= 4


async def test_a_lost_replicas_request_goes_to_the_one_with_room(engine: Engine, second: Engine, start: Start) -> None:
    engine.script = second.script = recording("chat").script()
    served = await start(engine, second, service=PATIENT)
    engine.kill()
    assert (await served.post()).status == 200
    knees = line(served).knees
    assert all(one.load.sequences == 0 and one.load.prefill_tokens == 0 for one in knees.values())


async def test_without_latency_targets_nothing_waits(engine: Engine, start: Start) -> None:
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service={"max_wait_s": 1})
    answers = [asyncio.create_task(served.post()) for _ in range(3)]
    await eventually(lambda: len(engine.received) == 3)
    gate.open.set()
    assert [answer.status for answer in await asyncio.gather(*answers)] == [200, 200, 200]


async def test_a_stopping_gateway_lets_nobody_wait_on(engine: Engine, start: Start) -> None:
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT, clock=StoppedClock())
    answers = [asyncio.create_task(served.post()) for _ in range(2)]
    await eventually(lambda: engine.received)
    await waiting(served, 1)
    served.gateway.interrupt_all()
    assert {answer.status for answer in await asyncio.gather(*answers)} == {503}
    assert {answer.error["code"] for answer in await asyncio.gather(*answers)} == {"shutting_down"}


async def test_metrics_tell_who_waits_and_what_a_replica_may_have(engine: Engine, start: Start) -> None:
    gate = Gate()
    engine.script = gate.script
    served = await start(engine, service=PATIENT)
    answers = [asyncio.create_task(served.post()) for _ in range(2)]
    await waiting(served, 1)
    answers.append(asyncio.create_task(served.post(x_stainless_retry_count="1")))
    await waiting(served, 2)
    during = (await served.get("/metrics")).body.decode()
    assert 'mtok_queue_length{model="tiny"} 2.0' in during
    assert f'mtok_knee_limit{{quantity="sequences",replica="{engine.name}"}} 1.0' in during
    assert f'mtok_knee_load{{quantity="sequences",replica="{engine.name}"}} 1.0' in during
    gate.open.set()
    await asyncio.gather(*answers)
    after = (await served.get("/metrics")).body.decode()
    assert 'mtok_queue_length{model="tiny"} 0.0' in after
    assert 'mtok_queue_wait_seconds_count{model="tiny"} 2.0' in after
    assert "mtok_queue_wait_error_seconds_count{" not in after  # how fast it drains was not known yet
    for _ in range(2):
        await asyncio.gather(*(served.post() for _ in range(12)))
    assert 'mtok_queue_wait_error_seconds_count{model="tiny"}' in (await served.get("/metrics")).body.decode()
    assert 'mtok_client_attempts_total{attempt="first",model="tiny"} 2.0' in after
    assert 'mtok_client_attempts_total{attempt="retry",model="tiny"} 1.0' in after


@pytest.mark.parametrize(
    ("told", "samples"), [("stream_cont", 1), ("stream", 1), ("stream_cont", 2)], ids=["usage", "texts", "two answers"]
)
async def test_slow_tokens_of_a_stream_lower_what_its_replica_may_have(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, told: str, samples: int
) -> None:
    """Each answer has a token every 100 ms where 80 are the target: whether the engine counts them in each event, as
    vLLM is asked to, or not, and also where two answers side by side have one every 50 ms together."""
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 64)
    clock = MovedClock()
    first, token, *_ = recording(told).events
    tokens = [token.replace(b'completion_tokens":1', b'completion_tokens":%d' % count) for count in range(1, 31)]

    async def script(talk: Conversation, _: Received) -> None:
        talk.stream()
        talk.chunk(first)
        await eventually(lambda: line(served).knee(replica).load.prefill_tokens == 0)
        clock.advance_ms(3000 // samples)
        for data in tokens:
            talk.chunk(data)
        talk.chunk(b"data: [DONE]\n\n")
        talk.end()

    engine.script = script
    served = await start(engine, service=PATIENT, clock=clock)
    replica = served.replica(engine)
    assert (await served.post({**ASKED, "stream": True, "n": samples})).status == 200
    line(served).tick()
    assert line(served).knee(replica).limits.sequences == 1


async def test_prompts_of_answers_that_come_whole_do_not_hold_each_other_up(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they are more than the replica may read at once, but it has read them long before it answers."""
    monkeypatch.setattr(knee, "FIRST_SEQUENCES", 64)
    gate = Gate()
    engine.script, engine.context_tokens = gate.script, 100_000
    served = await start(engine, service=PATIENT)
    long = {**ASKED, "messages": [{"role": "user", "content": "word " * 3000}]}
    answers = [asyncio.create_task(served.post(long)) for _ in range(4)]
    await eventually(lambda: len(engine.received) == 4)
    gate.open.set()
    assert [answer.status for answer in await asyncio.gather(*answers)] == [200] * 4
    assert line(served).knee(served.replica(engine)).limits.prefill_tokens == 5000


async def test_an_engine_that_is_full_gets_nothing_of_a_client_that_has_left_meanwhile(
    engine: Engine, start: Start
) -> None:
    """Its answer would have been finished; it has not begun, so it never is."""
    gate = asyncio.Event()

    async def full(talk: Conversation, request: Received) -> None:
        await gate.wait()
        await as_json({"error": {"message": "queue is full"}}, status=503)(talk, request)

    engine.scripts.append(full)
    engine.script = recording("chat").script()
    served = await start(engine, service=PATIENT, on_disconnect="finish")
    async with served.connect() as client:
        client.post(CHAT, ASKED, key=served.key)
        await eventually(lambda: engine.received)
        (watch,) = served.lifecycle._running
    await eventually(lambda: watch.gone)
    gate.set()
    assert (await served.event())["status"] == "client_gone"
    assert len(line(served).queue) == 0
    assert (await served.post()).status == 200
    assert len(engine.received) == 2
    assert line(served).knee(served.replica(engine)).load.sequences == 0


async def test_a_request_that_no_replica_is_left_for_waits_for_none(engine: Engine, start: Start) -> None:
    """Its only replica says that it is full, and is not healthy any more."""
    gate = asyncio.Event()

    async def full(talk: Conversation, request: Received) -> None:
        await gate.wait()
        await as_json({"error": {"message": "queue is full"}}, status=503)(talk, request)

    engine.scripts.append(full)
    engine.script = recording("chat").script()
    served = await start(engine, service=PATIENT)
    answer = asyncio.create_task(served.post())
    await eventually(lambda: engine.received)
    served.replica(engine).healthy = False
    gate.set()
    assert (await answer).status == 503
    assert len(line(served).queue) == 0
    served.replica(engine).healthy = True
    assert (await served.post()).status == 200
    assert len(engine.received) == 2
    assert line(served).knee(served.replica(engine)).load.sequences == 0
