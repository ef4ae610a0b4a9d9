"""How a replica's sequences are divided among gateway workers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission import Knee, KneeLimits
from gateway.admission._shares import Demand, divided, targets

WORKERS = ["a", "b", "c", "d", "e", "f", "g", "h"]

demands = st.dictionaries(
    st.sampled_from(WORKERS),
    st.dictionaries(
        st.sampled_from(["0 x", "0 y", "0 z", "5 x", "5 v", "-1 w"]),
        st.tuples(st.sampled_from([0.5, 1.0, 4.0]), st.integers(0, 300), st.just(0.0)),
        max_size=4,
    ).map(lambda demand: {name: ({"x": 4.0}.get(name[-1], weight), *rest) for name, (weight, *rest) in demand.items()}),
    min_size=1,
    max_size=8,
)
limits = st.dictionaries(st.sampled_from(["r1", "r2", "r3"]), st.integers(4, 500), min_size=1)


def wants(**tenants: int) -> Demand:
    return {f"0 {tenant}": (1.0, sequences, 0.0) for tenant, sequences in tenants.items()}


@settings(max_examples=30, deadline=None)
@given(demands=demands, limits=limits)
def test_targets_never_exceed_what_there_is(demands: dict[str, Demand], limits: dict[str, int]) -> None:
    """And none is left over that anybody asks for, but what rounding costs: less than one a replica."""
    shares = {worker: targets(worker, limits, demands) for worker in demands}
    asked = sum(sequences for demand in demands.values() for _, sequences, _ in demand.values())
    for replica, limit in limits.items():
        total = sum(share[replica] for share in shares.values())
        assert total <= limit
        assert total >= min(limit, asked * limit // sum(limits.values())) - 1


@settings(max_examples=30, deadline=None)
@given(demands=demands, limit=st.integers(4, 500))
def test_who_asks_for_anything_gets_something(demands: dict[str, Demand], limit: int) -> None:
    parts = divided(limit, demands)
    for worker, demand in demands.items():
        if any(sequences for _, sequences, _ in demand.values()):
            assert parts[worker] > 0


@settings(max_examples=30, deadline=None)
@given(demands=demands, limit=st.integers(4, 500))
def test_where_it_is_asked_makes_no_difference_to_a_tenant(demands: dict[str, Demand], limit: int) -> None:
    """Its part is what it would have been at one worker that all requests came to, and goes where it asks."""
    together: dict[str, tuple[float, int, float]] = {}
    for demand in demands.values():
        for name, (weight, sequences, _) in demand.items():
            together[name] = (weight, together.get(name, (0, 0, 0))[1] + sequences, 0.0)
    for name, own in together.items():
        other = {key: value for key, value in together.items() if key != name}
        apart = divided(limit, {"one": {name: own}, "other": other})
        split = divided(
            limit,
            {
                "one": {name: (own[0], own[1] // 2, 0.0)},
                "two": {name: (own[0], own[1] - own[1] // 2, 0.0)},
                "other": other,
            },
        )
        if sum(sequences for _, sequences, _ in together.values()) >= limit:
            assert split["one"] + split["two"] == pytest.approx(apart["one"])
            assert split["other"] == pytest.approx(apart["other"])


def test_it_goes_by_demand() -> None:
    assert divided(64, {"a": wants(x=150), "b": wants(x=50)}) == pytest.approx({"a": 48, "b": 16})


def test_a_tenant_gains_nothing_by_asking_many_workers() -> None:
    parts = divided(60, {"a": wants(x=100), "b": wants(x=100), "c": wants(x=100, y=100)})
    assert parts == pytest.approx({"a": 10, "b": 10, "c": 40})


def test_weights_and_bands_count_across_workers() -> None:
    heavy: Demand = {"0 x": (3.0, 100, 0.0)}
    assert divided(80, {"a": heavy, "b": wants(y=100)}) == pytest.approx({"a": 60, "b": 20})
    high: Demand = {"5 x": (1.0, 100, 0.0)}
    assert divided(80, {"a": high, "b": wants(y=100)}) == pytest.approx({"a": 76, "b": 4})


def test_who_asks_for_little_leaves_the_rest_to_the_others() -> None:
    """Of what is left half is spread, so that a request finds room; half is free for who asks for more."""
    assert divided(60, {"a": wants(x=100), "b": wants(y=10)}) == pytest.approx({"a": 50, "b": 10})
    assert divided(60, {"a": wants(x=20), "b": {}}) == pytest.approx({"a": 40, "b": 0})


def test_one_alone_has_everything() -> None:
    assert targets("a", {"r1": 64, "r2": 30}, {"a": wants(x=1)}) == {"r1": 64, "r2": 30}


def test_what_rounding_loses_goes_to_others_at_each_replica() -> None:
    """Eight workers share two sequences of each of forty replicas: everybody has about ten."""
    replicas = {f"replica {number}": 2 for number in range(40)}
    even = dict.fromkeys(WORKERS, wants(x=100))
    shares = [sum(targets(worker, replicas, even).values()) for worker in WORKERS]
    assert sum(shares) == 80
    assert all(4 <= share <= 16 for share in shares)


@settings(max_examples=40, deadline=None)
@given(granted=st.lists(st.integers(0, 20), min_size=2, max_size=10))
def test_all_shares_together_are_at_most_one_per_worker_above_the_limit(granted: list[int]) -> None:
    """Where all read prompts as fast as the replica can."""
    shares = []
    for one in granted:
        knee = Knee(kv_tokens=100_000)
        scale = knee.limits.sequences / max(1, sum(granted))
        knee.elsewhere(KneeLimits(64, 5000, 95_000), 20_000.0)
        shares.append(knee.shared(int(one * scale), workers=len(granted), lane=False))
    assert sum(share.sequences + share.extra for share in shares) <= 64 + 3 + len(shares)
    assert sum(share.prefill_tokens for share in shares) <= 2 * 5000
    assert sum(share.kv_tokens or 0 for share in shares) <= 95_000
    assert all(share.sequences >= 1 and share.prefill_tokens > 0 for share in shares)


def test_prompts_have_what_the_others_do_not_use() -> None:
    knee = Knee(kv_tokens=100_000)
    knee.elsewhere(KneeLimits(10, 0, 20_000), 5_000.0)
    share = knee.shared(8, workers=8, lane=False)
    assert (share.sequences, share.extra, share.prefill_tokens, share.kv_tokens) == (8, 1, 3750, 75_000)
    knee.elsewhere(KneeLimits(56, 4900, 94_000), 5_000.0)
    share = knee.shared(8, workers=8, lane=False)
    assert (share.prefill_tokens, share.kv_tokens) == (625, 95_000 // 8)
