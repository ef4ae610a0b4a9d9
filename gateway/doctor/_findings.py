"""What the doctor says."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note", "good"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `where` is a replica, `redis` or `here`; `check` names the rule.

    `error`: something that Mtok promises does not hold. `warning`: it works, but worse. `note`: worth knowing, or not
    to be seen from outside. `change` says which flag or setting to change, and is empty where nothing is wrong.
    """

    severity: Severity
    where: str
    check: str
    finding: str
    change: str = ""


class Report:
    """Collects the findings about one place."""

    def __init__(self, where: str) -> None:
        self.findings: list[Finding] = []
        self._where = where

    def add(self, severity: Severity, check: str, finding: str, change: str = "") -> None:
        """One more."""
        self.findings.append(Finding(severity=severity, where=self._where, check=check, finding=finding, change=change))

    def good(self, check: str, finding: str) -> None:
        """Nothing is wrong with it."""
        self.add("good", check, finding)
