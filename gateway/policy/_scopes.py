"""Whose limits a request meets: each of its scopes, and what the limits of each do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ._limits import RuleMode, RulesSpec, ScopeLimitsSpec

ScopeKind = Literal["tenant", "key", "group", "model", "fleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Limits of one `kind` of thing, `of` that name, which do what `mode` says. Days and months are of `time_zone`.

    `name` is what the store knows it by: one that tenants share begins with "@".
    """

    kind: ScopeKind
    of: str
    mode: RuleMode
    limits: RulesSpec
    time_zone: str = "UTC"
    name: str = field(init=False)

    @property
    def is_shared(self) -> bool:
        """Whether tenants share it."""
        return self.kind in ("group", "model", "fleet")

    def __post_init__(self) -> None:
        shared = "@" if self.is_shared else ""
        mode = "" if self.mode == "enforce" else f"~{self.mode}:"
        object.__setattr__(self, "name", f"{shared}{mode}{self.kind}:{self.of}")

    @property
    def label(self) -> str:
        """As a message names it; empty for the tenant's own."""
        return {"tenant": "", "fleet": "the fleet"}.get(self.kind, f"{self.kind} {self.of}")


@dataclass(frozen=True, slots=True)
class Scopes:
    """Those of one request beyond the limits that its tenant keeps, which are `LimitsSpec`. `is_budgeted`: dollars have
    to be reserved for it, by the tenant's limits or by these; `holds_tokens`: the most tokens it can use have to."""

    others: tuple[Scope, ...]
    is_budgeted: bool
    holds_tokens: bool


NO_SCOPES = Scopes((), is_budgeted=False, holds_tokens=False)


def scopes_with(kind: ScopeKind, of: str, limits: ScopeLimitsSpec, time_zone: str = "UTC") -> Iterator[Scope]:
    """One for each mode in which `limits` limit anything; what a tenant's own refuse is its account's business."""
    modes: tuple[tuple[RuleMode, RulesSpec | None], ...] = (
        ("enforce", limits if kind != "tenant" else None),
        ("soft", limits.soft),
        ("audit", limits.audit),
    )
    for mode, rules in modes:
        if rules is not None and rules.limits_anything:
            yield Scope(kind=kind, of=of, mode=mode, limits=rules, time_zone=time_zone)
