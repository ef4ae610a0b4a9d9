"""Several gateway workers over the same replica, in virtual time."""

from __future__ import annotations

import pytest

from tests.simulation.fair_world import jain, percentile
from tests.simulation.virtual_pool import Worker, workers

MINUTE_MS = 60_000
N = 64
EXTRA = 3
"""Of 64 sequences, those that are for tenants below their share."""


def spread_unevenly(crowd: list[Worker], until_ms: int) -> float:
    """The first tenant always has requests waiting at one worker, the second at two, the last at all. Jain's index of
    what they were given after the first minute."""
    for number in range(len(crowd)):
        for worker in crowd[: number + 1]:
            worker.backlogged(f"tenant {number}", depth=30, until_ms=until_ms)
    crowd[0].clock.run(until_ms)
    served = [worker.service(from_ms=MINUTE_MS) for worker in crowd]
    return jain([sum(of[f"tenant {number}"] for of in served) for number in range(len(crowd))])


@pytest.mark.parametrize(("count", "apart"), [(2, 0.85), (8, 0.65)])
def test_tenants_are_served_alike_wherever_they_ask_and_the_replica_has_no_more_than_its_limit(
    count: int, apart: float
) -> None:
    """Workers that know nothing of each other send it as many times as much, and favour who asks more of them."""
    crowd = workers(count, seed=1)
    assert spread_unevenly(crowd, 3 * MINUTE_MS) >= 0.99
    assert N <= crowd[0].fleet.most["replica 0"] <= N + EXTRA + count
    assert all(knee.limits.sequences == N for worker in crowd for knee in worker.knees.values())

    strangers = workers(count, seed=1, sharing=False)
    assert spread_unevenly(strangers, 2 * MINUTE_MS) < apart
    assert strangers[0].fleet.most["replica 0"] > 0.9 * count * N


def shares(crowd: list[Worker]) -> list[int]:
    return [worker.sequences() for worker in crowd if not worker.dead]


def test_the_share_of_one_that_dies_is_the_others_within_three_seconds() -> None:
    crowd = workers(4, seed=2)
    for number, worker in enumerate(crowd):
        worker.backlogged(f"tenant {number}", depth=40, until_ms=3 * MINUTE_MS)
    clock = crowd[0].clock
    clock.run(MINUTE_MS)
    assert shares(crowd) == pytest.approx([N // 4] * 4, abs=2)
    led = next(worker for worker in crowd if worker.pool.leads)
    led.dies()
    clock.run(MINUTE_MS + 3_000)
    assert sum(shares(crowd)) == pytest.approx(N, abs=1)
    assert sum(worker.pool.leads for worker in crowd if not worker.dead) == 1


def test_a_worker_that_was_idle_gets_its_tenants_part_as_places_become_free() -> None:
    """Three serve floods; a fourth's only tenant comes and is soon served as if it had asked one of them."""
    crowd = workers(4, seed=3)
    until_ms = 4 * MINUTE_MS
    for number, worker in enumerate(crowd[:3]):
        worker.backlogged(f"flood {number}", depth=60, until_ms=until_ms)
    last, clock = crowd[3], crowd[0].clock
    clock.at(MINUTE_MS, lambda: last.backlogged("late", depth=60, until_ms=until_ms))
    clock.run(MINUTE_MS + 20_000)
    assert last.sequences() == pytest.approx(N // 4, abs=2)
    clock.run(until_ms)
    given = [sum(worker.service(from_ms=90_000).values()) for worker in crowd]
    assert jain(given) >= 0.99


def test_light_tenants_hardly_wait_for_shares_to_move() -> None:
    """Eight workers, two thirds of the replica asked for in all, each tenant at one worker: who comes finds a place."""
    crowd = workers(8, seed=4)
    until_ms = 3 * MINUTE_MS
    for number, worker in enumerate(crowd):
        worker.poisson(0.66 * N / 10 / 8, lambda w=worker, n=number: w.request(f"tenant {n}"), end_ms=until_ms)
    crowd[0].clock.run(until_ms)
    waits = [wait_ms for worker in crowd for of in worker.waits.values() for wait_ms in of]
    assert percentile(waits, 0.9) == 0
    assert percentile(waits, 0.99) <= 500


def test_while_the_store_is_away_each_keeps_its_share_and_serves() -> None:
    crowd = workers(4, seed=5)
    for number, worker in enumerate(crowd):
        worker.backlogged(f"tenant {number}", depth=40, until_ms=3 * MINUTE_MS)
    clock, store = crowd[0].clock, crowd[0].store
    assert store is not None
    clock.run(MINUTE_MS)
    before = shares(crowd)
    store.away = True
    clock.run(2 * MINUTE_MS)
    assert shares(crowd) == before
    assert crowd[0].fleet.most["replica 0"] <= N + EXTRA + 4
    assert all(worker.service(from_ms=MINUTE_MS) for worker in crowd)
    store.away = False
    clock.run(2 * MINUTE_MS + 5_000)
    assert sum(shares(crowd)) == pytest.approx(N, abs=1)
