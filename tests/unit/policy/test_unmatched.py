"""Once a day the rules that nothing has matched for a day; virtual time."""

from __future__ import annotations

from dataclasses import replace

from gateway.policy import ClassSpec, GroupSpec, KeySpec, Match, ModelSpec, Policies, RuleName, TenantSpec, Unmatched

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
T0_MS = 1_790_000_000_000


def tenant(name: str, *keys: str, class_name: str | None = None, group: str | None = None) -> TenantSpec:
    specs = tuple(KeySpec(id=key, sha256="0" * 64) for key in keys)
    return TenantSpec(name=name, keys=specs, class_name=class_name, group=group)


POLICIES = Policies(
    models={name: ModelSpec(name=name, replicas=()) for name in ("tiny", "huge")},
    tenants={
        "acme": tenant("acme", "acme-ci", "acme-app", class_name="fast", group="all"),
        "rival": tenant("rival", "rival-1", class_name="slow", group="none"),
    },
    classes={name: ClassSpec(name=name) for name in ("fast", "slow")},
    groups={name: GroupSpec(name=name) for name in ("all", "none")},
    sha256="0" * 64,
)
USED = Match("acme", "acme-ci", "tiny")
NOT_USED = [
    RuleName("class", "slow"),
    RuleName("group", "none"),
    RuleName("key", "acme-app"),
    RuleName("key", "rival-1"),
    RuleName("model", "huge"),
    RuleName("tenant", "rival"),
]


def test_a_request_matches_its_tenant_key_class_group_and_model() -> None:
    rules = Unmatched(POLICIES, T0_MS)
    assert rules.tell([USED], T0_MS + DAY_MS) == NOT_USED


def test_a_refused_request_matches_its_tenant_though_it_came_to_no_model() -> None:
    """And a tenant, a key or a model that the policies do not have are no rules of theirs."""
    rules = Unmatched(POLICIES, T0_MS)
    told = rules.tell([USED, Match("rival", "made-with-mtok-keys", ""), Match("gone", "", "old")], T0_MS + DAY_MS)
    assert told == [
        RuleName("key", "acme-app"),
        RuleName("key", "rival-1"),
        RuleName("model", "huge"),
    ]


def test_it_is_told_once_a_day_and_not_on_the_first() -> None:
    rules = Unmatched(POLICIES, T0_MS)
    assert not rules.due(T0_MS + DAY_MS - 1)
    assert rules.due(T0_MS + DAY_MS)
    rules.tell([USED], T0_MS + DAY_MS)
    assert not rules.due(T0_MS + 2 * DAY_MS - 1)
    assert rules.due(T0_MS + 2 * DAY_MS)
    rules.told_elsewhere(T0_MS + 2 * DAY_MS)
    assert not rules.due(T0_MS + 2 * DAY_MS + HOUR_MS)


def test_a_rule_has_a_day_from_when_it_came_and_what_is_gone_is_not_told() -> None:
    """A reload does not begin the day of the others anew."""
    rules = Unmatched(POLICIES, T0_MS)
    models = {"tiny": POLICIES.models["tiny"], "newest": ModelSpec(name="newest", replicas=())}
    rules.use(replace(POLICIES, models=models), T0_MS + HOUR_MS)
    told = rules.tell([USED], T0_MS + DAY_MS)
    assert told == [rule for rule in NOT_USED if rule.kind != "model"]
    assert RuleName("model", "newest") in rules.tell([USED], T0_MS + 2 * DAY_MS)
