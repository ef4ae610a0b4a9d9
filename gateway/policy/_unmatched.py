"""Rules that nothing matches: who says what a limit is for has often misspelled whom it is for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from ._documents import Policies

DAY_MS: Final = 86_400_000

RuleKind = Literal["tenant", "key", "group", "class", "model"]


class RuleName(NamedTuple):
    """A part of the policies that requests match: of a key its public id."""

    kind: RuleKind
    name: str


class Match(NamedTuple):
    """What a request was of: its tenant, its key's public id, and its model, empty where it did not come to one."""

    tenant: str
    key: str
    model: str


def rules_of(policies: Policies) -> set[RuleName]:
    """All that the policies name."""
    names: tuple[tuple[RuleKind, Iterable[str]], ...] = (
        ("tenant", policies.tenants),
        ("key", (key.id for tenant in policies.tenants.values() for key in tenant.keys)),
        ("group", policies.groups),
        ("class", policies.classes),
        ("model", policies.models),
    )
    return {RuleName(kind, name) for kind, of_kind in names for name in of_kind}


def rules_matched(policies: Policies, matches: Iterable[Match]) -> set[RuleName]:
    """Those of the policies that these requests matched."""
    found: set[RuleName] = set()
    for match in matches:
        found |= {RuleName("tenant", match.tenant), RuleName("key", match.key), RuleName("model", match.model)}
        tenant = policies.tenants.get(match.tenant)
        if tenant is not None:
            found.add(RuleName("group", tenant.group or ""))
            found.add(RuleName("class", tenant.class_name or ""))
    return found & rules_of(policies)


class Unmatched:
    """Tells once a day which rules have been in force for a day, and matched by nothing. No clock: `now_ms` is Unix."""

    def __init__(self, policies: Policies, now_ms: int) -> None:
        self._policies = policies
        self._since_ms = dict.fromkeys(rules_of(policies), now_ms)
        self._told_ms = now_ms

    def use(self, policies: Policies, now_ms: int) -> None:
        """These are in force from now on. What they have in common with those before has been for as long."""
        self._policies = policies
        self._since_ms = {rule: self._since_ms.get(rule, now_ms) for rule in rules_of(policies)}

    def due(self, now_ms: int) -> bool:
        """Whether it is time to look."""
        return now_ms >= self._told_ms + DAY_MS

    @property
    def tenants(self) -> list[str]:
        """Whose requests have to be looked at."""
        return list(self._policies.tenants)

    def told_elsewhere(self, now_ms: int) -> None:
        """Another one has told; a day from now on is time again."""
        self._told_ms = now_ms

    def tell(self, matches: Iterable[Match], now_ms: int) -> list[RuleName]:
        """The rules that nothing matched, by kind and name. `matches` are of the last day, at least."""
        self._told_ms = now_ms
        matched = rules_matched(self._policies, matches)
        old = {rule for rule, since_ms in self._since_ms.items() if now_ms >= since_ms + DAY_MS}
        return sorted(old - matched)
