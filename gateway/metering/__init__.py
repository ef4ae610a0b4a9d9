"""What did it use: the usage event and the ledger that books it."""

from ._event import Status, UsageEvent

__all__ = ["Status", "UsageEvent"]
