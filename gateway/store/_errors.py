"""What the store raises."""

from __future__ import annotations


class StoreUnavailable(Exception):
    """Redis did not answer, answered with an error, or too much is waiting for it. Nothing can be concluded
    from it about whether the operation was applied."""


class EmbeddedStoreFailed(Exception):
    """The embedded Valkey could not be started. The message names the data directory and quotes its log."""
