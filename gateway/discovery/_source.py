"""What every way to find replicas has in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol


class DiscoveryFailed(Exception):
    """Where replicas are cannot be found out now. The message says why; what was known last stays."""


class Source(Protocol):
    """One model's replicas by one of the ways."""

    def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
        """The replicas' URLs at once, and again whenever they may have changed; for ever. Raises `DiscoveryFailed`;
        then it is asked anew after a pause."""


def url_of(host: str, port: int, *, scheme: str = "http") -> str:
    """An address as policies write it."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
