"""Nothing lost, nothing twice, nothing blocked, whatever the schedule: journals and shippers in virtual time.

make simulate-ledger                                               100,000 schedules
MTOK_SEED=1234 python -m pytest tests/simulation/test_ledger_world.py    one of them again
"""

from __future__ import annotations

import os

from tests.simulation.ledger_world import World

SCHEDULES = int(os.environ.get("MTOK_SCHEDULES", "400"))
FIRST = int(os.environ.get("MTOK_FIRST_SEED", "0"))


def test_every_schedule_books_each_event_once() -> None:
    """What is on disk is booked once, money agrees, nothing stays reserved, no budget is overrun while Redis keeps what
    it was told."""
    one = os.environ.get("MTOK_SEED")
    seeds = [int(one)] if one is not None else range(FIRST, FIRST + SCHEDULES)
    events = kills = rollbacks = 0
    for seed in seeds:
        world = World(seed).run()
        assert world.violations() == [], f"MTOK_SEED={seed}"
        events += len(world.redis.events)
        kills += world.kills
        rollbacks += world.rollbacks
    print(f"{len(seeds)} schedules: {events} events, {kills} kills, {rollbacks} rollbacks")
    if one is None and SCHEDULES >= 400:
        assert events > 4 * SCHEDULES
        assert min(kills, rollbacks) > SCHEDULES // 10
