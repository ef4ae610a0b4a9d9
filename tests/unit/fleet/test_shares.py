"""Which replicas a request may go to while some have only a part of their share."""

from __future__ import annotations

import pytest

from gateway.fleet import ModelFleet, Replica
from gateway.policy import ModelSpec


async def fleet_of(*loads: tuple[float, int]) -> ModelFleet:
    """By share and requests."""
    replicas = []
    for number, (share, in_flight) in enumerate(loads):
        replica = Replica(f"http://replica-{number}:8000")
        replica.healthy, replica.share, replica.in_flight = True, share, in_flight
        replicas.append(replica)
    return ModelFleet(ModelSpec(name="tiny", replicas=()), replicas, starts=any(share < 1 for share, _ in loads))


@pytest.mark.parametrize(
    ("loads", "may"),
    [
        ([(1, 30), (1, 10), (1, 0)], [0, 1, 2]),
        ([(1, 30), (1, 10), (0.25, 4)], [0, 1, 2]),
        ([(1, 30), (1, 10), (0.25, 5)], [0, 1]),
        ([(1, 0), (0.1, 0)], [0, 1]),
        ([(1, 0), (0.1, 1)], [0]),
        ([(0.5, 50), (0.1, 60)], [0, 1]),
        ([(1, 30), (0.1, 20), (0.1, 20)], [0, 1, 2]),
        ([(1, 30), (1, 30), (0.1, 20), (0.1, 20)], [0, 1]),
    ],
)
async def test_a_replica_that_starts_has_its_share_of_what_the_others_have(
    loads: list[tuple[float, int]], may: list[int]
) -> None:
    """Idle it may have one; where most of them start nobody is left out."""
    model = await fleet_of(*loads)
    assert model.untried(()) == [model.replicas[index] for index in may]


async def test_what_was_tried_or_is_not_healthy_is_left_out() -> None:
    model = await fleet_of((1, 0), (1, 0), (1, 0))
    model.replicas[1].healthy = False
    assert model.untried({model.replicas[0]}) == [model.replicas[2]]
