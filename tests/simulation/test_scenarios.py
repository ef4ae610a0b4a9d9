"""What has brought other gateways' admission down, in virtual time: one scenario each, here or where it says.

| scenario | seen at | test |
|---|---|---|
| a flood beside a tenant that comes and goes | VTC, `on_off_less` | test_fair_queue.py::test_a_tenant_that_comes_and_goes_is_hardly_kept_waiting |
| nine at their share beside one at 20 times its own | | test_noisy_neighbour.py |
| prompts of 100,000 tokens among chats | vLLM | test_long_prompts.py |
| a tenant below its share for ten minutes asks for everything | Kubernetes #95979 | test_fair_queue.py::test_a_tenant_that_used_less_than_its_share_cannot_monopolise_later |
| everything is equally slow: the limit must not grow | Netflix #137 | test_knee_settles.py::test_an_engine_that_is_slow_whatever_runs_is_not_given_more |
| what is normal drifts with the limit | Netflix #134 | test_a_slow_drift_is_not_taken_for_normal |
| an idle engine before a full queue | llm-d #1421 | test_an_engine_that_was_full_once_is_filled_again |
| gauges that are late, stuck, gone or jump | vLLM #49538 | test_gauges_that_lie_cost_nothing |
| bound by prefill with an empty KV cache | llm-d #1500 | test_prompts_bound_an_engine_whose_cache_is_empty |
| one of two gateways dies with its leases | | test_shared_replicas.py::test_the_share_of_one_that_dies_is_the_others_within_three_seconds |
| a storm of retries by SDKs | openai-python #3555 | test_fair_queue.py::test_a_storm_of_retries_passes |
| 64 worst cases at once on one budget | LiteLLM #38647 | test_worst_cases_neither_overrun_a_budget_nor_lock_it |
| refused requests that change what others get | LiteLLM #39309 | test_whoever_is_refused_changes_nobodys_turn; of the account: tests/integration/store/test_limits.py::test_a_refused_request_leaves_every_counter_unchanged |

`make simulate-admission`, or MTOK_SEEDS=20: more seeds of each.
"""  # noqa: E501

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from heapq import heappop, heappush
from itertools import count

import pytest

from gateway.admission import Accounts, Ask, FairQueue, Held, Turned, Work
from gateway.fleet import Reading
from gateway.policy import LimitsSpec, TenantSpec
from tests.simulation.test_knee_settles import SLO_MS, Replica
from tests.simulation.virtual_gateway import CAPACITY_PER_S, H200, Engine, Front, Gauges, Mtok, Seen, World, poisson
from tests.simulation.virtual_loop import VirtualLoop

MORE_SEEDS = range(int(os.environ.get("MTOK_SEEDS", "1")))


@pytest.mark.parametrize("seed", range(2 * len(MORE_SEEDS)))
def test_a_slow_drift_is_not_taken_for_normal(seed: int) -> None:
    """Over ten minutes every sequence comes to cost twice as much: N follows it down, and no step exceeds the SLO."""
    replica = Replica(8.0, 0.2, seed)
    for _ in range(60):
        replica.second()
    limits, steps_ms = [], []
    for second in range(600):
        replica.per_sequence_ms = 0.2 * (1 + second / 600)
        limit, step_ms = replica.second()
        limits.append(limit)
        steps_ms.append(step_ms)
    assert max(steps_ms) <= SLO_MS
    assert limits[-1] == pytest.approx(limits[0] / 2, rel=0.2)


def served(
    front: Front, per_s: float, seed: int, *, since_s: float = 14.0, prompt: float = 800, answer: float = 200
) -> Seen:
    """What became of one tenant's requests of the 14 s from then on."""
    until_s = since_s + 14.0
    asked = poisson("all", per_s, seed=seed, until_s=until_s, prompt=prompt, answer=answer)
    return World(front, asked, until_s=until_s, profiles=[H200]).of(since_s)


class Once(Mtok):
    """Its engine said at the start that it was full with nothing running."""

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)

        def full() -> None:
            self.line.knee(engines[0].replica).engine_full(loop.now_ms())

        loop.call_at(0.5, full)


@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_an_engine_that_was_full_once_is_filled_again(seed: int) -> None:
    """N had been cut to what ran, next to nothing. Half a minute later as much is served as if that had not been."""
    fresh, cut = (served(front, CAPACITY_PER_S, seed) for front in (Mtok(), Once()))
    assert cut.goodput >= 0.9 * fresh.goodput


class Lying(Mtok):
    """`lie` makes of what the engine's page says, every five seconds, what the gateway reads; None: it cannot."""

    def __init__(self, lie: Callable[[Reading], Reading | None]) -> None:
        super().__init__()
        self.lie = lie

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)
        engine = engines[0]

        def read() -> None:
            now_ms = loop.now_ms()
            pool = engine.core.pool
            engine.replica.reading = self.lie(
                Reading(
                    asked_ms=now_ms,
                    answered_ms=now_ms,
                    started_ms=0,
                    running=engine.core.running,
                    waiting=engine.core.waiting,
                    kv_usage=engine.core.kv_usage,
                    kv_tokens=pool.total * H200.block_size,
                    preemptions=engine.core.counters.preemptions,
                    counters={},
                )
            )
            loop.call_later(5.0, read)

        loop.call_later(0.0, read)


class Stuck:
    """One reading of far too much, for good."""

    def __init__(self) -> None:
        self.reading: Reading | None = None

    def __call__(self, real: Reading) -> Reading:
        if self.reading is None:
            self.reading = _changed(real, waiting=200, running=400, kv_usage=0.97)
        return self.reading


def _changed(real: Reading, **changes: int | float) -> Reading:
    fields = {name: getattr(real, name) for name in real.__struct_fields__}
    return Reading(**(fields | changes))


def _jumps(real: Reading) -> Reading:
    return real if real.asked_ms > 18_000 else _changed(real, running=0, waiting=0, kv_usage=0.0)


@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_gauges_that_lie_cost_nothing(seed: int) -> None:
    """Gone, at 0 for the first 18 s, or stuck at far too much: at twice the capacity as much is served within the SLO
    as with true ones; in the last case after the 25 s for which a reading is believed."""
    true = served(Lying(lambda real: real), 2 * CAPACITY_PER_S, seed).goodput
    for lie in (lambda _: None, _jumps):
        assert served(Lying(lie), 2 * CAPACITY_PER_S, seed).goodput >= 0.9 * true
    assert served(Lying(Stuck()), 2 * CAPACITY_PER_S, seed, since_s=40.0).goodput >= 0.9 * true


class Watching(Mtok):
    """Knows the fullest its engine's cache was."""

    kv_most = 0.0

    def begin(self, engines: Sequence[Engine], loop: VirtualLoop) -> None:
        super().begin(engines, loop)

        def look() -> None:
            self.kv_most = max(self.kv_most, engines[0].core.kv_usage)
            loop.call_later(0.1, look)

        loop.call_later(0.1, look)


@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_prompts_bound_an_engine_whose_cache_is_empty(seed: int) -> None:
    """4,000 tokens in and 50 out, twice what can be read: the cache is never half full, and gauges see nothing."""
    front = Watching()
    ours = served(front, 12.0, seed, prompt=4000, answer=50)
    gauges = served(Gauges(), 12.0, seed, prompt=4000, answer=50)
    assert front.kv_most < 0.5
    assert ours.good_per_s >= 4.0
    assert ours.good_per_s >= 3 * gauges.good_per_s


@pytest.mark.parametrize("seed", range(8 * len(MORE_SEEDS)))
def test_worst_cases_neither_overrun_a_budget_nor_lock_it(seed: int) -> None:
    """64 agents, each of whose requests could cost a 32nd of the budget and costs a twentieth of that. What is reserved
    and spent never exceeds it, and at the end less is left than one more could cost."""
    source, accounts, numbers = random.Random(seed), Accounts(), count()
    budget, worst = 1_000_000_000, 1_000_000_000 // 32
    acme = TenantSpec(name="acme", limits=LimitsSpec(usd_per_month=Decimal(1)))
    agenda: list[tuple[int, int, Held | None]] = []
    spent = reserved = admitted = 0
    for _ in range(64):
        heappush(agenda, (source.randrange(1000), next(numbers), None))
    last_ms = 0
    while agenda and agenda[0][0] < last_ms + 60_000:
        now_ms, _, held = heappop(agenda)
        if held is not None:
            cost = min(worst, int(source.expovariate(20 / worst)))
            accounts.settle(held, input_tokens=0, output_tokens=1, nanousd=cost, ran=True, now_ms=now_ms)
            spent, reserved, last_ms = spent + cost, reserved - worst, now_ms
        decision = accounts.ask(acme, (), Ask("r", tokens=1, nanousd=worst), now_ms)
        if isinstance(decision, Held):
            reserved, admitted = reserved + worst, admitted + 1
            heappush(agenda, (now_ms + source.randrange(100, 20_000), next(numbers), decision))
        else:
            heappush(agenda, (now_ms + 1000, next(numbers), None))
        assert spent + reserved <= budget
    assert reserved == 0
    assert budget - spent < worst
    assert admitted >= 0.9 * budget / (worst / 20)


@pytest.mark.parametrize("seed", range(20 * len(MORE_SEEDS)))
def test_whoever_is_refused_changes_nobodys_turn(seed: int) -> None:
    """Two queues with the same requests, one of them with as many again that are refused on arrival: the same go in the
    same order, and are below their shares at the same times."""
    source, plain, refusing = random.Random(seed), FairQueue(), FairQueue()
    running: list[Work] = []
    now_ms = 0
    for number in range(300):
        now_ms += source.randrange(200)
        work = Work(
            id=str(number),
            tenant=source.choice("abcd"),
            band=source.randrange(2),
            weight=1.0,
            input_tokens=source.randrange(1, 2000),
            cached_tokens=0,
            output_tokens=source.randrange(1, 500),
            retry=source.random() < 0.2,
            arrived_ms=now_ms,
            deadline_ms=10**9,
        )
        assert (plain.offer(work, now_ms) is None) == (refusing.offer(work, now_ms) is None)
        if len(plain):
            late = Work(**{name: getattr(work, name) for name in work.__struct_fields__} | _too_late(source, number))
            assert isinstance(refusing.offer(late, now_ms), Turned)
        if source.random() < 0.6:
            taken = plain.next(lambda *_: True, now_ms)
            assert refusing.next(lambda *_: True, now_ms) == taken
            running.extend([taken] if taken is not None else [])
        if running and source.random() < 0.5:
            ended = running.pop(source.randrange(len(running)))
            for queue in (plain, refusing):
                queue.ended(ended, input_tokens=ended.input_tokens, cached_tokens=0, output_tokens=9, now_ms=now_ms)
        assert plain.below_share(work) == refusing.below_share(work)
    assert plain.counters() == refusing.counters()
    assert plain.load() == refusing.load()


def _too_late(source: random.Random, number: int) -> dict[str, object]:
    return {"id": f"late {number}", "tenant": source.choice("abcd"), "deadline_ms": 0}
