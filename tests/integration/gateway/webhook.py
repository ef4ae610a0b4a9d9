"""A webhook on a real socket: it keeps what it is sent, and misbehaves as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.integration.posts import posts_to


@dataclass
class Webhook:
    """`faults` are answered first, one a post: a status, or `HANG` for no answer; then everything is taken."""

    faults: list[int] = field(default_factory=list)
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)
    """All that were sent, also those that were not taken."""

    @property
    def told(self) -> list[tuple[str, int]]:
        """Dimension and threshold of each."""
        return [(post["dimension"], post["threshold"]) for post in self.posts]

    def answer(self, headers: dict[str, str], post: dict[str, Any]) -> tuple[int, bytes]:
        self.posts.append(post)
        self.headers.append(headers)
        return (self.faults.pop(0) if self.faults else 204), b""


@asynccontextmanager
async def listening(webhook: Webhook) -> AsyncIterator[Webhook]:
    """The webhook on an ephemeral port; `webhook.url` is its address."""
    async with posts_to(webhook.answer) as address:
        webhook.url = f"{address}/hook?x=1"
        yield webhook
