"""What policies do to arrivals: refusals by what refuses, waits, latencies, dollars, per tenant."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from gateway.policy import FleetSpec, GroupSpec, KeySpec, LimitsSpec, RulesSpec, ScopeLimitsSpec
from gateway.replay import Arrival, TenantOutcome, UsedHour, prepared, replay

from .days import CHAT, PRICE, T0_MS, arrival, h200, poisson, policies

MINUTE_MS = 60_000


def of_acme(arrivals: list[Arrival], limits: LimitsSpec, **others: object) -> TenantOutcome:
    return replay(arrivals, policies(acme=limits, **others), h200).tenants["acme"]  # type: ignore[arg-type]


def test_requests_beyond_the_minute_are_refused_until_the_limit_has_refilled() -> None:
    """Ten at once on six a minute: four go. Half a minute later three have come back."""
    day = [arrival() for _ in range(10)] + [arrival(MINUTE_MS // 2) for _ in range(4)]
    seen = of_acme(day, LimitsSpec(requests_per_minute=6))
    assert (seen.requests, seen.served, seen.refused) == (14, 9, {"requests_per_minute": 5})


def test_an_answer_that_still_runs_holds_its_place() -> None:
    """Two at once: of three that come together one is refused, and after their answers two run again."""
    day = [arrival() for _ in range(3)] + [arrival(10_000) for _ in range(2)]
    seen = of_acme(day, LimitsSpec(concurrent_requests=2))
    assert (seen.served, seen.refused) == (4, {"concurrent_requests": 1})


def test_a_budget_reserves_the_most_and_spends_what_was_used() -> None:
    """A request may cost $0.00105, or $0.001328 while nobody has counted its prompt, and costs $0.0001. Of a budget of
    $0.0016 one at a time can have that, six times; then too little is left even for a prompt that is counted."""
    limits = LimitsSpec(usd_per_day=Decimal("0.0016"), max_output_tokens=1000)
    at_once = of_acme([arrival() for _ in range(5)], limits, price=PRICE)
    assert (at_once.served, at_once.refused) == (1, {"usd_per_day": 4})
    in_turn = of_acme([arrival(number * 10_000) for number in range(9)], limits, price=PRICE)
    assert (in_turn.served, in_turn.refused, in_turn.cost_nanousd) == (6, {"usd_per_day": 3}, 6 * 100_000)


def test_what_was_used_before_counts_in_its_period_and_scope() -> None:
    """$0.0015 of a month's $0.0016 was spent by another key, in an hour of this month: nothing fits. Spent in the last
    month, or by a tenant of another group, it does not count; of the fleet's tokens of the day it all does."""

    def used(tenant: str, start_s: int) -> UsedHour:
        return UsedHour(tenant=tenant, key="web", model="llama", start_s=start_s, tokens=900, nanousd=1_500_000)

    month = LimitsSpec(usd_per_month=Decimal("0.0016"), max_output_tokens=1000)
    given = policies(acme=month, price=PRICE)
    today_s, september_s = T0_MS // 1000 - 7200, 1_788_220_800
    assert replay([arrival()], given, h200, [used("acme", today_s)]).total.refused == {"usd_per_month": 1}
    assert replay([arrival()], given, h200, [used("acme", september_s - 3600)]).total.served == 1
    assert replay([arrival()], given, h200, [used("rival", today_s)]).total.served == 1
    given = replace(given, fleet=FleetSpec(limits=ScopeLimitsSpec(tokens_per_day=1999)))
    rivals = [used("rival", today_s)]
    assert replay([arrival()], given, h200, rivals).total.refused == {"tokens_per_day of the fleet": 1}


def test_a_clients_own_bound_is_what_its_request_may_cost() -> None:
    """With 50 tokens at most it may cost $0.000378, or $0.0001 once its prompt is counted: four at once fit a budget
    of $0.0016 as they come, and a fifth to the cent."""
    limits = LimitsSpec(usd_per_day=Decimal("0.0016"), max_output_tokens=1000)
    seen = of_acme([arrival(asked_output_tokens=50) for _ in range(9)], limits, price=PRICE)
    assert (seen.served, seen.refused) == (4, {"usd_per_day": 5})


def test_limits_of_a_group_a_key_and_an_audited_one_say_whose_they_are() -> None:
    """Two tenants share two requests at once; one key has a minute of its own; what is audited only tells."""
    audit = RulesSpec(requests_per_minute=1)
    given = policies(acme=LimitsSpec(audit=audit), rival=LimitsSpec())
    shared = GroupSpec(name="eu", limits=ScopeLimitsSpec(concurrent_requests=2))
    key = KeySpec(id="ci", sha256="0" * 64, limits=ScopeLimitsSpec(requests_per_minute=1))
    tenants = {name: replace(tenant, group="eu", keys=(key,)) for name, tenant in given.tenants.items()}
    given = replace(given, groups={"eu": shared}, tenants=tenants)
    day = [arrival(), arrival(tenant="rival"), arrival(tenant="rival")]
    day += [arrival(20_000, key="ci"), arrival(20_000, key="ci")]
    seen = replay(day, given, h200).tenants
    assert seen["rival"].refused == {"concurrent_requests of group eu": 1}
    assert seen["acme"].refused == {"requests_per_minute of key ci": 1}
    assert seen["acme"].audited == {"requests_per_minute": 1}


def test_a_day_ends_in_the_tenants_time_zone() -> None:
    """T0 is 14:13 UTC: what Berlin's day held is whole again after midnight there, at 22:00 UTC."""
    day = [arrival(hour * 60 * MINUTE_MS, input_tokens=10, output_tokens=10) for hour in (0, 1, 9)]
    limits = LimitsSpec(tokens_per_day=45, max_output_tokens=20, time_zone="Europe/Berlin")
    given = policies(acme=limits)
    seen = replay(day, given, h200).tenants["acme"]
    assert (seen.served, seen.refused) == (2, {"tokens_per_day": 1})


def test_who_is_not_in_the_policies_any_more_is_refused_as_clients_see_it() -> None:
    """A tenant that is gone, a model that is gone, a prompt that is too long now."""
    day = [arrival(tenant="gone"), arrival(model="gone"), arrival(input_tokens=3001), arrival()]
    seen = replay(day, policies(acme=LimitsSpec(max_input_tokens=3000)), h200)
    assert seen.tenants["gone"].refused == {"invalid_api_key": 1}
    assert seen.tenants["acme"].refused == {"context_length_exceeded": 1, "model_not_found": 1}
    assert seen.total.served == 1


def test_a_flood_waits_and_its_neighbour_does_not() -> None:
    """A tenant sends twice what the replica can serve, another a tenth of it: the flood is refused what is too much,
    the neighbour nothing, and its first tokens come within the target. With a second replica nobody is refused."""
    day = prepared(poisson("flood", 60, seconds=20, seed=1) + poisson("neighbour", 3, seconds=20, seed=2)).arrivals
    given = {"flood": LimitsSpec(), "neighbour": LimitsSpec()}
    one = replay(day, policies(service=CHAT, **given), h200)
    assert one.tenants["neighbour"].refused == {}
    assert (one.tenants["neighbour"].ttft.p99_ms or 0) < 600
    refused = one.tenants["flood"].refused["overloaded"]
    assert 0.2 < refused / one.tenants["flood"].requests < 0.6
    two = replay(day, policies(service=CHAT, replicas=3, **given), h200)
    assert two.total.refused == {}
    assert (two.total.wait.p99_ms, two.total.served) == (0.0, len(day))


def test_what_waited_and_was_refused_has_taken_nothing() -> None:
    """Requests that the queue refuses leave their places and tokens to others: limits of a minute that hold what was
    served, but not all that came, refuse nobody."""
    day = prepared(poisson("acme", 60, seconds=20, seed=1)).arrivals
    open_ = of_acme(day, LimitsSpec(), service=CHAT)
    taken = open_.input_tokens + open_.output_tokens
    limits = LimitsSpec(tokens_per_minute=taken + 400_000, requests_per_minute=750)
    assert open_.served < 750 + 750 / 3 < len(day)
    seen = of_acme(day, limits, service=CHAT)
    assert seen.refused == open_.refused
    assert open_.refused["overloaded"] > 200


def test_the_same_day_comes_out_the_same() -> None:
    """Twice the same numbers, to the last digit."""
    day = prepared(poisson("a", 40, seconds=10, seed=1) + poisson("b", 20, seconds=10, seed=2)).arrivals
    given = policies(service=CHAT, replicas=2, a=LimitsSpec(tokens_per_minute=300_000), b=LimitsSpec())
    assert replay(day, given, h200) == replay(day, given, h200)
