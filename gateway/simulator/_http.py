"""One HTTP exchange over raw ASGI, and what vLLM's server counts about all of them (`http_*` metrics)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from ._exposition import Histogram, counter, created, family
from ._json import Json, dumps

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client hung up before it could be answered."""


class Exchange:
    """A request to read and an answer to write."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The three of ASGI."""
        self.scope = scope
        self._receive = receive
        self._send = send
        self.chunks = 0
        """Pieces of a streamed body written so far."""

    def header(self, name: bytes) -> str | None:
        """The first header of that lower-case name."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), None)

    async def read_body(self) -> bytes:
        """All of the request's body."""
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    async def until_gone(self) -> None:
        """Return when the client hangs up (or has been answered)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def on_gone(self, act: Callable[[], None]) -> asyncio.Task[None]:
        """Call `act` when the client hangs up; cancel the task when the answer is complete."""

        async def watch() -> None:
            await self.until_gone()
            act()

        return asyncio.create_task(watch())

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str | None = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answer at once, with vLLM's order of headers."""
        lines = [(name.encode(), value.encode()) for name, value in headers]
        lines.append((b"content-length", str(len(body)).encode()))
        if content_type is not None:
            lines.append((b"content-type", content_type.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        await self._send({"type": "http.response.body", "body": body})

    async def answer_json(self, value: Json, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer with JSON."""
        await self.answer(status, dumps(value), headers=headers)

    async def open_stream(self) -> None:
        """Send the headers of an event stream, before any event is there."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        """One piece of the stream."""
        self.chunks += 1
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def close(self) -> None:
        """End the stream."""
        await self._send({"type": "http.response.body", "body": b""})

    def cut(self) -> None:
        """Break the connection without a word, as a process that dies does; takes uvicorn's transport for that."""
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()


class Handler(Protocol):
    """What answers an exchange."""

    async def __call__(self, exchange: Exchange, /) -> None:
        """Read the request and answer it."""


_HANDLERS_HELP: Final = "by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. "
_HIGHR: Final = [
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
    *(5.0, 7.5, 10.0, 30.0, 60.0),
]
_FEW: Final = [0.1, 0.5, 1.0]
UNCOUNTED: Final = ("/metrics", "/health", "/load", "/ping", "/version", "/server_info")


class HttpMetrics:
    """Requests by handler, method and status class; sizes as their headers say; durations."""

    def __init__(self, created_s: float) -> None:
        """`created_s` is Unix time."""
        self._created_s = created_s
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._sizes: dict[str, list[int]] = {}
        self._highr = Histogram(_HIGHR)
        self._durations: dict[tuple[str, str], Histogram] = {}

    def observe(self, handler: str, method: str, status: int, *, asked: int, answered: int, seconds: float) -> None:
        """One exchange is over; sizes are bytes, 0 where a header did not say."""
        if handler in UNCOUNTED:
            return
        self._requests[handler, method, f"{status // 100}xx"] += 1
        sizes = self._sizes.setdefault(handler, [0, 0, 0])
        sizes[0] += 1
        sizes[1] += asked
        sizes[2] += answered
        self._highr.observe(seconds)
        self._durations.setdefault((handler, method), Histogram(_FEW)).observe(seconds)

    def text(self) -> list[str]:
        """Their lines."""
        at_s = self._created_s
        lines = counter(
            "http_requests_total",
            "Total number of requests by method, status and handler.",
            [({"handler": h, "method": m, "status": s}, count) for (h, m, s), count in self._requests.items()],
            at_s,
        )
        for place, what in ((1, "incoming requests"), (2, "outgoing responses")):
            name = ("", "http_request_size_bytes", "http_response_size_bytes")[place]
            text = f"Content length of {what} {_HANDLERS_HELP}"
            pairs = []
            for handler, sizes in self._sizes.items():
                pairs.append(f'{name}_count{{handler="{handler}"}} {float(sizes[0])}')
                pairs.append(f'{name}_sum{{handler="{handler}"}} {float(sizes[place])}')
            lines += family(name, "summary", text, pairs)
            lines += created(name, text, [{"handler": handler} for handler in self._sizes], at_s)
        name = "http_request_duration_highr_seconds"
        text = "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. "
        lines += family(name, "histogram", text, self._highr.lines(name, {})) + created(name, text, [{}], at_s)
        name = "http_request_duration_seconds"
        text = "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. "
        labels = [{"handler": handler, "method": method} for handler, method in self._durations]
        each = [
            line
            for one, histogram in zip(labels, self._durations.values(), strict=True)
            for line in histogram.lines(name, one)
        ]
        return lines + family(name, "histogram", text, each) + created(name, text, labels, at_s)
