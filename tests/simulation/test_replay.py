"""A replay against what it stands for: the same arrivals through the gateway's own dispatcher in front of step-exact
engines, in virtual time."""

from __future__ import annotations

import pytest

from gateway.policy import LimitsSpec
from gateway.replay import Arrival, prepared, replay
from tests.simulation.virtual_gateway import Asked, Mtok, World, poisson
from tests.simulation.virtual_replica import percentile
from tests.unit.replay.days import CHAT, H200, arrival, h200, policies


def of(asked: list[Asked]) -> list[Arrival]:
    """The same as arrivals."""
    return [
        arrival(int(one.arrived_s * 1000), one.tenant, input_tokens=one.prompt, output_tokens=one.answer)
        for one in asked
    ]


@pytest.mark.parametrize(
    ("per_s", "replicas", "seconds"), [(12, 1, 30), (45, 1, 40), (60, 2, 30)], ids=["calm", "overloaded", "at the knee"]
)
def test_who_is_refused_and_how_fast_answers_come(per_s: float, replicas: int, seconds: int) -> None:
    """Each tenant's refusals differ by at most 3 % of its requests, the time to the first token by 15 % (median) and
    10 % (p99), the mean time between tokens by 12 %. Most of it is the knee's: where it binds, a step more or less
    sends it another way."""
    tenants = {"big": per_s, "middle": per_s / 6, "small": per_s / 20}
    asked = [one for name, rate in tenants.items() for one in poisson(name, rate, seed=1, until_s=seconds)]
    world = World(Mtok(), asked, until_s=seconds, profiles=[H200] * replicas)
    given = policies(service=CHAT, replicas=replicas, **dict.fromkeys(tenants, LimitsSpec()))
    outcome = replay(prepared(of(asked)).arrivals, given, h200)
    for name in tenants:
        exact, coarse = world.of(0, tenants=[name]), outcome.tenants[name]
        assert coarse.requests == len(exact.asked)
        assert coarse.refused.get("overloaded", 0) / coarse.requests == pytest.approx(exact.refused, abs=0.03)
    exact, coarse = world.of(0), outcome.total
    itls = [one.itl_s * 1000 for one in exact.asked if one.itl_s]
    assert coarse.ttft.p50_ms == pytest.approx(exact.ttft_s(0.5) * 1000, rel=0.15)
    assert coarse.ttft.p99_ms == pytest.approx(exact.ttft_s(0.99) * 1000, rel=0.10)
    assert coarse.itl.p50_ms == pytest.approx(percentile(itls, 0.5), rel=0.12)
    assert coarse.itl.p99_ms == pytest.approx(percentile(itls, 0.99), rel=0.12)
