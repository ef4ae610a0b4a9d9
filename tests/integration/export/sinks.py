"""A sink on a real socket: it keeps what it is sent, and misbehaves as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.integration.posts import HANG, posts_to

Event = dict[str, Any]


@dataclass
class FakeSink:
    """`faults` are answered first, one a request: a status, `HANG` (keeps the events and never answers) or `HANG_UP`.
    Then `judge` says the status of each request's events."""

    faults: list[int] = field(default_factory=list)
    judge: Callable[[list[Event]], int] = lambda events: 204
    body: bytes = b""
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    received: list[Event] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def requests(self, tenant: str = "acme") -> list[str]:
        """The request ids that were taken, in order."""
        return [event["data"]["id"] for event in self.received if event["subject"] == tenant]

    def answer(self, headers: dict[str, str], body: Any) -> tuple[int, bytes]:
        events = body if isinstance(body, list) else body["events"]
        status = self.faults.pop(0) if self.faults else self.judge(events)
        self.headers.append(headers)
        self.batches.append(len(events))
        self.statuses.append(status)
        if status in (HANG, 200, 204):
            self.received += events
        return status, self.body


@asynccontextmanager
async def listening(sink: FakeSink) -> AsyncIterator[FakeSink]:
    """The sink on an ephemeral port; `sink.url` is its address."""
    async with posts_to(sink.answer) as address:
        sink.url = f"{address}/api/v1/events?x=1"
        yield sink
