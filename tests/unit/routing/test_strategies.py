"""Strategies by policy: who goes where, the same at every gateway where that can be, and what a shadow is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from gateway.policy import ModelSpec, ReplicaSpec, RoutingSpec, StrategyName
from gateway.routing import Loads, Query, Router, ShadowedRouter, prefix_chain, router_of, session_of, strategy_of


@dataclass(frozen=True)
class Place:
    name: str


def replicas(count: int) -> list[ReplicaSpec]:
    return [ReplicaSpec(url=f"http://10.0.0.{number}:8000") for number in range(count)]


def query(text: bytes, session: str = "") -> Query:
    return Query(chain=prefix_chain(text), prompt_tokens=max(1, len(text) // 4), session=session)


@cache
def prompt(number: int, size: int = 1000) -> bytes:
    return (b"prompt %d " % number * size)[:size]


def router(name: StrategyName, **weights: float) -> Router:
    return Router(Loads(), strategy_of(name, {f"10.0.0.{of[1:]}:8000": weight for of, weight in weights.items()}))


def serve(router: Router, asked: Query, targets: list[ReplicaSpec], now_ms: int = 0) -> str:
    """One request that has ended before the next comes."""
    booking = router.choose(asked, targets, now_ms)
    router.first_token(booking, now_ms + 100)
    router.ended(booking)
    return booking.replica


def test_least_loaded_goes_where_fewest_run_and_gateways_agree_on_ties() -> None:
    targets, gateways = replicas(4), [router("least_loaded"), router("least_loaded")]
    for number in range(20):
        assert len({serve(gateway, query(prompt(number)), targets) for gateway in gateways}) == 1
    gateway = gateways[0]
    assert Counter(gateway.choose(query(prompt(0)), targets, 0).replica for _ in range(40)) == dict.fromkeys(
        (target.name for target in targets), 10
    )
    gateway.beside(targets[0].name, 0, 50)
    assert all(gateway.choose(query(prompt(0)), targets, 0).replica != targets[0].name for _ in range(9)), (
        "what other gateways run there counts too"
    )


def test_round_robin_takes_turns_also_while_replicas_come_and_go() -> None:
    targets, gateway = replicas(3), router("round_robin")
    assert len({serve(gateway, query(prompt(0)), targets) for _ in range(3)}) == 3
    lost, *left = targets
    turns = Counter(serve(gateway, query(prompt(0)), left) for _ in range(10))
    assert turns == {target.name: 5 for target in left}
    assert serve(gateway, query(prompt(0)), targets) == lost.name, "who has waited longest is next"


def test_a_session_stays_and_a_lost_replicas_sessions_spread_over_all_others() -> None:
    targets, gateways = replicas(5), [router("session"), router("session")]
    sessions = [f"acme\0user-{number}" for number in range(400)]

    def places(targets: list[ReplicaSpec], gateway: int, text: int) -> dict[str, str]:
        return {one: serve(gateways[gateway], query(prompt(text), one), targets) for one in sessions}

    before = places(targets, 0, 1)
    assert before == places(targets, 1, 2), "whatever it asks, wherever it comes in"
    assert max(Counter(before.values()).values()) < 1.4 * len(sessions) / len(targets)
    lost = targets[2].name
    after = places([target for target in targets if target.name != lost], 0, 3)
    moved = {one for one in sessions if before[one] != after[one]}
    assert moved == {one for one in sessions if before[one] == lost}, "nobody else loses a warm cache"
    assert len({after[one] for one in moved}) == 4, "never all to one"


def test_what_belongs_to_no_session_goes_where_its_prefix_is() -> None:
    targets, gateway = replicas(4), router("session")
    first = serve(gateway, query(prompt(7)), targets)
    assert {serve(gateway, query(prompt(7) + b"more" * 100), targets) for _ in range(5)} == {first}


def test_sessions_of_one_name_are_different_ones_for_different_tenants() -> None:
    assert session_of("acme", b"", b'"1"') != session_of("rival", b"", b'"1"')
    assert session_of("acme", b"s", b'"1"') == session_of("acme", b"s", b""), "the header goes first"
    assert session_of("acme", b"", b"") == ""


@pytest.mark.parametrize("session", [lambda _: "", "acme\0{}".format], ids=["turns", "sessions"])
def test_a_canary_of_weight_5_beside_95_gets_5_of_100(session: Callable[[int], str]) -> None:
    targets, gateway = replicas(3), router("weighted", r0=5, r1=45, r2=50)
    places = Counter(serve(gateway, query(prompt(1), session(number)), targets) for number in range(2000))
    exact = {targets[0].name: 100, targets[1].name: 900, targets[2].name: 1000}
    spread = 0 if session(1) == "" else 40
    assert all(abs(places[name] - count) <= spread for name, count in exact.items()), places


def test_in_any_hundred_requests_the_canary_has_its_five() -> None:
    targets, gateway = replicas(2), router("weighted", r0=5, r1=95)
    places = [serve(gateway, query(prompt(1)), targets) for _ in range(400)]
    canary = targets[0].name
    assert {places[start : start + 100].count(canary) for start in range(300)} == {5}
    assert canary in places[:20], "spread out, not at the end"


def test_a_replica_of_weight_0_gets_what_nobody_else_can_take() -> None:
    targets, gateway = replicas(3), router("weighted", r0=0, r1=1, r2=1)
    for session in ("", "acme\0me"):
        chosen = {
            serve(gateway, query(prompt(number), session and f"{session}{number}"), targets) for number in range(50)
        }
        assert chosen == {targets[1].name, targets[2].name}
    assert serve(gateway, query(prompt(0)), targets[:1]) == targets[0].name


def shadowed(strategy: StrategyName, shadow: StrategyName) -> ShadowedRouter:
    routing = RoutingSpec(strategy=strategy, shadow=shadow)
    spec = ModelSpec(name="m", replicas=tuple(replicas(4)), routing=routing)
    made = router_of(spec, Loads(), before=None, said=None)
    assert isinstance(made, ShadowedRouter)
    return made


def test_a_shadow_says_what_it_would_have_found_had_all_gone_its_way() -> None:
    """Sixteen conversations of twenty turns: prefix placement beside the round robin that is used, and the reverse."""
    found: dict[str, float] = {}
    for used, beside in (("round_robin", "prefix"), ("prefix", "round_robin")):
        gateway, targets = shadowed(used, beside), replicas(4)  # type: ignore[arg-type]
        for turn in range(20):
            for talk in range(15):
                serve(gateway, query(prompt(talk, 2000 + 500 * turn)), targets)
        counts = gateway.counts()
        assert counts.requests == 300
        assert counts.elsewhere > 150
        found[used] = counts.cached_tokens / counts.input_tokens
        found[f"{beside} in the shadow"] = counts.cached_tokens_shadow / counts.input_tokens
        assert counts.ttft_ms != counts.ttft_ms_shadow
    assert found["prefix"] > found["round_robin"] + 0.05
    assert found["prefix in the shadow"] == pytest.approx(found["prefix"], abs=0.01)
    assert found["round_robin in the shadow"] == pytest.approx(found["round_robin"], abs=0.01)


def test_a_shadow_changes_nothing_and_holds_nothing() -> None:
    targets, plain, with_shadow = replicas(4), router("prefix"), shadowed("prefix", "least_loaded")
    running = []
    for number in range(60):
        asked = query(prompt(number % 7, 1000 + 100 * number))
        running.append((plain.choose(asked, targets, number), with_shadow.choose(asked, targets, number)))
        assert running[-1][0].replica == running[-1][1].replica
        if number % 3 == 0:
            mine, other = running.pop(0)
            plain.ended(mine)
            with_shadow.ended(other)
    for _, booking in running:
        with_shadow.ended(booking)
        with_shadow.ended(booking)
    beside = with_shadow._beside.loads
    assert not with_shadow._would
    assert all(beside.of(target.name).running == beside.of(target.name).waiting == 0 for target in targets)
    with_shadow.counts()
    assert with_shadow.counts().requests == 0, "told once"


def test_a_shadow_learns_what_answers_tell() -> None:
    """How long a token is, though not how much of a prompt was cached at a replica that it did not choose."""
    targets, with_shadow = replicas(4), shadowed("round_robin", "prefix")
    for number in range(50):
        booking = with_shadow.choose(query(prompt(number)), targets, number)
        with_shadow.ended(booking)
        with_shadow.answered(booking, input_tokens=500, cached_tokens=0, output_tokens=10)
    assert with_shadow._beside.token_bytes == with_shadow.token_bytes < 3.5, "begins at 4, and these have 2"


def test_policies_that_change_something_else_leave_the_router_and_others_keep_what_it_knows() -> None:
    loads, targets = Loads(), tuple(replicas(3))
    said = ModelSpec(name="m", replicas=targets, routing=RoutingSpec(strategy="round_robin"))
    before = router_of(said, loads, before=None, said=None)
    serve(before, query(prompt(1)), list(targets))
    same = ModelSpec(name="m", replicas=targets, routing=RoutingSpec(strategy="round_robin"), locality_tokens=1)
    assert router_of(same, loads, before=before, said=said) is before
    more = ModelSpec(name="m", replicas=tuple(replicas(5)), routing=RoutingSpec(strategy="round_robin"))
    assert router_of(more, loads, before=before, said=said) is before, "replicas that have been discovered"
    changed = router_of(ModelSpec(name="m", replicas=targets), loads, before=before, said=said)
    assert changed is not before
    assert len(changed.index) == len(before.index) > 0


def test_ranks_share_their_replicas_weight() -> None:
    """Four engines behind one address of weight 1, beside one of weight 1: half of the requests for each address."""
    addresses = (ReplicaSpec(url="http://a:1", data_parallel_ranks=4), ReplicaSpec(url="http://b:1"))
    spec = ModelSpec(name="m", replicas=addresses, routing=RoutingSpec(strategy="weighted"))
    gateway = router_of(spec, Loads(), before=None, said=None)
    targets = [Place(name) for replica in addresses for name in replica.places]
    places = Counter(gateway.choose(query(prompt(0)), targets, 0).replica for _ in range(80))
    assert places == {"a:1@0": 10, "a:1@1": 10, "a:1@2": 10, "a:1@3": 10, "b:1": 40}
