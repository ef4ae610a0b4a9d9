"""Whose limits a request meets."""

from __future__ import annotations

from gateway.policy import (
    FleetSpec,
    GroupSpec,
    KeySpec,
    LimitsSpec,
    ModelSpec,
    Policies,
    RulesSpec,
    ScopeLimitsSpec,
    TenantSpec,
)

ONE = ScopeLimitsSpec(requests_per_minute=1)
ACME = TenantSpec(
    name="acme",
    group="labs",
    keys=(KeySpec(id="ci", sha256="0" * 64, limits=ONE),),
    limits=LimitsSpec(soft=RulesSpec(tokens_per_day=9)),
)
RIVAL = TenantSpec(name="rival", group="labs")
POLICIES = Policies(
    models={name: ModelSpec(name=name, replicas=(), limits=ONE) for name in ("tiny", "large")},
    tenants={"acme": ACME, "rival": RIVAL},
    classes={},
    groups={"labs": GroupSpec(name="labs", limits=ONE)},
    fleet=FleetSpec(limits=ONE),
    sha256="0" * 64,
)


def names(tenant: TenantSpec, key: str, model: str) -> list[str]:
    return [scope.name for scope in POLICIES.scopes_of(tenant, key, model).others]


def test_a_request_meets_its_keys_groups_models_and_the_fleets() -> None:
    """Those that tenants share are told from its own; a key without limits has none."""
    shared = ["@group:labs", "@model:tiny", "@fleet:"]
    assert names(ACME, "ci", "tiny") == ["~soft:tenant:", "key:ci", *shared]
    assert names(ACME, "web", "tiny") == ["~soft:tenant:", *shared]
    assert names(RIVAL, "ci", "tiny") == shared


def test_a_scope_is_the_same_whoever_meets_it() -> None:
    """Requests for several models in turn work out no limit anew."""
    first, second = (POLICIES.scopes_of(ACME, "ci", model).others for model in ("tiny", "large"))
    same = [one is other for one, other in zip(first, second, strict=True)]
    assert same == [True, True, True, False, True]
    assert POLICIES.scopes_of(RIVAL, "", "tiny").others[0] is first[2]


def test_a_tenant_of_other_policies_brings_its_own_limits() -> None:
    """One of the same name that an older version of them knew."""
    older = TenantSpec(name="acme", limits=LimitsSpec(soft=RulesSpec(tokens_per_day=5)))
    [scope, *_] = POLICIES.scopes_of(older, "", "tiny").others
    assert scope.limits.tokens_per_day == 5
