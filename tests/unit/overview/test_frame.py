"""What `mtok top` computes: states out of metrics, and what happened between two of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.overview import LimitState, ModelState, ReplicaState, State, TenantState, frame, gather, merged

SHA = "f" * 64


def state(at_ms: int, **fields: object) -> State:
    return msgspec.convert({"at_ms": at_ms, "policies_sha256": SHA, **fields}, State)


def tenant(**fields: object) -> dict[str, object]:
    return {"acme": msgspec.to_builtins(msgspec.convert(fields, TenantState))}


def test_rates_are_of_the_time_between() -> None:
    before = state(10_000, tenants=tenant(requests=100, input_tokens=5000, output_tokens=300, cost_usd=1.0))
    now = state(14_000, tenants=tenant(requests=120, input_tokens=7000, output_tokens=340, cost_usd=1.002))
    (row,) = frame(before, now).tenants
    assert (row.requests, row.input_tokens, row.output_tokens) == (5, 500, 10)
    assert row.usd_per_hour == pytest.approx(1.8)


def test_a_gateway_that_started_anew_counts_from_zero() -> None:
    """No rate is ever negative."""
    before = state(0, tenants=tenant(requests=1000, refused={"overloaded": 50}))
    now = state(2000, tenants=tenant(requests=4, refused={"overloaded": 2}))
    (row,) = frame(before, now).tenants
    assert (row.requests, row.refused) == (2, {"overloaded": 1})


def test_a_tenant_that_was_not_there_before_counts_from_zero() -> None:
    (row,) = frame(state(0), state(1000, tenants=tenant(requests=3))).tenants
    assert row.requests == 3


def test_refusals_are_told_by_their_limit_the_most_frequent_first() -> None:
    """And only those of this interval."""
    before = state(0, tenants=tenant(refused={"requests_per_minute": 3, "budget_usd": 9}))
    now = state(1000, tenants=tenant(refused={"requests_per_minute": 5, "budget_usd": 9, "tokens_per_minute": 7}))
    (row,) = frame(before, now).tenants
    assert list(row.refused.items()) == [("tokens_per_minute", 7), ("requests_per_minute", 2)]


def test_audited_refusals_are_told_by_their_limit_beside_the_others() -> None:
    """Of the tenant's own by its name, of another scope with that before it; gateways' are added up."""
    name, of_acme = "mtok_audited_refusals_total", {"tenant": "acme", "dimension": "tokens_per_minute"}
    metrics = [
        (name, of_acme | {"scope": "tenant", "of": "acme"}, 3.0),
        (name, of_acme | {"scope": "key", "of": "ci"}, 1.0),
        (name, of_acme | {"scope": "key", "of": "web"}, 4.0),
    ]
    here, there = [gather(metrics, at_ms=2000, policies_sha256=SHA, replicas=()) for _ in range(2)]
    (row,) = frame(state(0), merged([here, there])).tenants
    assert row.audited == {"key tokens_per_minute": 5.0, "tokens_per_minute": 3.0}
    assert row.refused == {}


def test_the_limit_with_the_least_left_comes_first() -> None:
    """By its part of the limit, so that dollars and tokens compare; a limit of 0 has nothing left."""
    limits = {
        "tokens_per_minute": LimitState("10000", "9000"),
        "budget_usd": LimitState("50", "5.000000001", is_usd=True),
        "concurrent_requests": LimitState("0", "0"),
    }
    picture = frame(state(0), state(1, tenants=tenant(limits=limits), shared={"the fleet": limits}))
    assert list(picture.shared["the fleet"]) == list(picture.tenants[0].limits)
    assert list(picture.tenants[0].limits) == ["concurrent_requests", "budget_usd", "tokens_per_minute"]


def test_who_has_the_most_to_do_comes_first() -> None:
    now = state(1000, tenants={"a": {"requests": 9}, "b": {"output_tokens": 1}, "c": {"requests": 10}})
    assert [row.tenant for row in frame(state(0), now).tenants] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("waits", "p99"),
    [
        ([(0.1, 99), (0.5, 100), (None, 100)], 0.1),
        ([(0.1, 98), (0.5, 100), (None, 100)], 0.5),
        ([(0.1, 0), (0.5, 0), (None, 100)], float("inf")),
        ([(0.1, 0), (0.5, 0), (None, 0)], None),
        ([], None),
    ],
)
def test_the_p99_of_waits_is_of_this_interval(waits: list[tuple[float | None, float]], p99: float | None) -> None:
    """Whoever waited for long before does not count, nor does the order of the samples."""
    earlier = [(up_to_s, 1000.0) for up_to_s, _ in waits]
    later = [(up_to_s, 1000.0 + count) for up_to_s, count in reversed(waits)]
    before = state(0, models={"tiny": ModelState(waits=earlier, attempts={"first": 1})})
    (row,) = frame(before, state(2000, models={"tiny": ModelState(waits=later, attempts={"first": 1})})).queues
    assert row.wait_p99_s == p99


def test_a_queue_tells_what_left_it_and_how_many_were_retries() -> None:
    before = state(0, models={"tiny": ModelState(attempts={"first": 10, "retry": 10}, waits=[(None, 4)])})
    line = ModelState(queued=7, attempts={"first": 13, "retry": 11}, waits=[(None, 10)])
    (row,) = frame(before, state(2000, models={"tiny": line})).queues
    assert (row.queued, row.waited, row.retries) == (7, 3, 0.25)


def test_a_model_without_targets_has_no_queue() -> None:
    assert frame(state(0), state(1, models={"tiny": ModelState()})).queues == []


def test_metrics_become_a_state() -> None:
    """Sums over models and endpoints; refusals by a limit are told by the limit alone, others by their code."""
    labels = {"tenant": "acme", "model": "tiny", "endpoint": "/v1/chat/completions"}
    refused = labels | {"status": "refused"}
    denied = {"tenant": "acme"}
    knee = {"replica": "a:1", "quantity": "sequences"}
    got = gather(
        [
            ("mtok_requests_total", labels | {"status": "ok", "code": ""}, 5),
            ("mtok_requests_total", labels | {"status": "ok", "code": "", "model": "big"}, 2),
            ("mtok_requests_total", refused | {"code": "rate_limit_exceeded"}, 3),
            ("mtok_requests_total", refused | {"code": "overloaded"}, 1),
            ("mtok_denied_requests_total", denied | {"scope": "tenant", "limit": "tokens_per_minute"}, 2),
            ("mtok_denied_requests_total", denied | {"scope": "group", "limit": "usd_per_day"}, 1),
            ("mtok_tokens_total", labels | {"kind": "input"}, 100),
            ("mtok_tokens_total", labels | {"kind": "output", "model": "big"}, 8),
            ("mtok_requests_created", labels | {"status": "ok", "code": ""}, 1.7e9),
            ("mtok_cost_usd_total", labels, 0.5),
            ("mtok_replica_healthy", {"replica": "a:1"}, 1),
            ("mtok_replica_healthy", {"replica": "gone:1"}, 1),
            ("mtok_replica_state", {"replica": "a:1", "state": "healthy", "reason": ""}, 2),
            ("mtok_replica_state", {"replica": "a:1", "state": "quarantined", "reason": "stalled"}, 1),
            ("mtok_replica_state", {"replica": "a:1", "state": "open", "reason": "new"}, 0),
            ("mtok_replica_requests_in_flight", {"replica": "a:1"}, 4),
            ("mtok_knee_limit", knee, 64),
            ("mtok_knee_load", knee, 4),
            ("mtok_queue_length", {"model": "tiny"}, 2),
            ("mtok_queue_wait_seconds_bucket", {"model": "tiny", "le": "0.5"}, 6),
            ("mtok_queue_wait_seconds_bucket", {"model": "tiny", "le": "+Inf"}, 7),
            ("mtok_client_attempts_total", {"model": "tiny", "attempt": "retry"}, 1),
            ("mtok_policy_reload_failed", {}, 1),
            ("mtok_journal_failing", {}, 0),
        ],
        at_ms=5,
        policies_sha256=SHA,
        replicas=["a:1", "b:1"],
    )
    acme = got.tenants["acme"]
    assert (acme.requests, acme.input_tokens, acme.output_tokens, acme.cost_usd) == (11, 100, 8, 0.5)
    assert acme.refused == {"overloaded": 1, "tokens_per_minute": 2, "group usd_per_day": 1}
    assert got.replicas == {
        "a:1": ReplicaState(
            healthy=True,
            states={"healthy": 2, "quarantined stalled": 1},
            in_flight=4,
            limits={"sequences": 64},
            load={"sequences": 4},
        ),
        "b:1": ReplicaState(),
    }
    assert got.models["tiny"] == ModelState(queued=2, waits=[(0.5, 6), (None, 7)], attempts={"retry": 1})
    assert got.warnings == ["the policies' directory cannot be used: the last good ones are in force"]


def test_several_gateways_are_added_up() -> None:
    """Loads and counters are sums; what Redis tells is the same for all; different policies are worth a word."""
    limits = {"requests_per_minute": LimitState("60", "12")}
    one = state(1000, tenants=tenant(requests=3, refused={"overloaded": 1}, running=5, limits=limits))
    knee: dict[str, Any] = {"limits": {"sequences": 64}, "load": {"sequences": 2}}
    one.replicas = {"a:1": ReplicaState(healthy=True, states={"healthy": 1}, in_flight=2, **knee)}
    one.models = {"tiny": ModelState(queued=1, waits=[(0.5, 1), (None, 2)], attempts={"first": 4})}
    two = msgspec.json.decode(msgspec.json.encode(one), type=State)
    two.policies_sha256 = "0" * 64
    two.tenants["beta"] = TenantState(requests=1, running=1)
    two.replicas["a:1"].healthy = False
    both = merged([one, two])
    acme = both.tenants["acme"]
    assert (acme.requests, acme.refused, acme.running, acme.limits) == (6, {"overloaded": 2}, 5, limits)
    assert (both.tenants["beta"].requests, both.tenants["beta"].running) == (1, 1)
    assert both.replicas["a:1"] == ReplicaState(
        healthy=False, states={"healthy": 2}, in_flight=4, limits={"sequences": 128}, load={"sequences": 4}
    )
    assert both.models["tiny"] == ModelState(queued=2, waits=[(0.5, 2), (None, 4)], attempts={"first": 8})
    assert both.warnings == ["the gateways have different policies"]


def test_a_quantity_without_a_bound_is_not_shown() -> None:
    """K, where the engine does not tell its cache."""
    replica = ReplicaState(limits={"sequences": 64, "kv_tokens": 0}, load={"sequences": 3, "kv_tokens": 900})
    (row,) = frame(state(0), state(1, replicas={"a:1": replica})).replicas
    assert row.knee == {"sequences": (3, 64)}


def test_where_requests_went_and_where_a_shadow_would_have_sent_them() -> None:
    """Of this interval, over two gateways; a model with one pool and no shadow has no row."""
    tokens, ttft = "mtok_shadow_input_tokens_total", "mtok_shadow_ttft_seconds_total"

    def metrics(times: float) -> list[tuple[str, dict[str, str], float]]:
        of = {"model": "tiny"}
        return [
            ("mtok_queue_length", {"model": "other"}, 0),
            ("mtok_pool_requests_total", of | {"pool": "reserved"}, 30 * times),
            ("mtok_pool_requests_total", of | {"pool": "spot"}, 10 * times),
            ("mtok_shadow_requests_total", of | {"to": "same"}, 15 * times),
            ("mtok_shadow_requests_total", of | {"to": "elsewhere"}, 5 * times),
            *((tokens, of | {"kind": kind}, count * times) for kind, count in TOKENS.items()),
            *((ttft, of | {"kind": kind}, seconds * times) for kind, seconds in (("taken", 4.0), ("shadow", 1.0))),
        ]

    def both(at_ms: int, times: float) -> State:
        states = [gather(metrics(times), at_ms=at_ms, policies_sha256=SHA, replicas=()) for _ in range(2)]
        return merged(states)

    (row,) = frame(both(0, 1), both(2000, 2)).routing
    assert (row.model, row.pools) == ("tiny", {"reserved": 30, "spot": 10})
    assert row.shadow is not None
    assert (row.shadow.elsewhere, row.shadow.cached, row.shadow.ttft_s) == (0.25, (0.3, 0.6), (0.2, 0.05))


TOKENS = {"all": 1000, "cached_taken": 300, "cached_shadow": 600}
