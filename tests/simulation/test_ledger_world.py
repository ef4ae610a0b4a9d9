"""Nothing lost, nothing twice, nothing blocked, whatever the schedule: journals and shippers in virtual time.

make simulate-ledger                                                     100,000 schedules
MTOK_SEED=1234 python -m pytest tests/simulation/test_ledger_world.py    one of them again
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.ledger_world import World

SCHEDULES = int(os.environ.get("MTOK_SCHEDULES", "300"))
AT_ONCE = 300


def seeds() -> list[range]:
    if one := os.environ.get("MTOK_SEED"):
        return [range(int(one), int(one) + 1)]
    return [range(first, min(first + AT_ONCE, SCHEDULES)) for first in range(0, SCHEDULES, AT_ONCE)]


@pytest.mark.parametrize("schedules", seeds(), ids=str)
def test_every_schedule_books_each_event_once(schedules: range) -> None:
    """What is on disk is booked once, money agrees, nothing stays reserved, no budget is overrun while Redis keeps what
    it was told."""
    events = kills = rollbacks = 0
    for seed in schedules:
        world = World(seed).run()
        assert world.violations() == [], f"MTOK_SEED={seed}"
        events += len(world.redis.events)
        kills += world.kills
        rollbacks += world.rollbacks
    if len(schedules) == AT_ONCE:
        assert events > 4 * AT_ONCE
        assert min(kills, rollbacks) > AT_ONCE // 10, "a world without faults shows nothing"
