"""Faults on demand: what a replica does when it is ill, for tests of whoever must survive it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal, get_args

import msgspec

from ._errors import ApiError
from ._http import ClientGone, Exchange
from ._json import dumps

Kind = Literal["reset", "hang", "status", "die", "error_event", "garbage"]
KINDS: Final = get_args(Kind)


@dataclass(slots=True)
class Fault:
    """One illness. It strikes generation requests only; health and metrics stay well.

    reset        the connection breaks before a byte of the answer (what a refused connection is to a pool)
    hang         no byte ever comes
    status       an error answer with `status`
    die          the connection breaks after `after_chunks` pieces of a stream, or before a plain answer
    garbage      200 with a page of HTML, as something else on its port would answer
    error_event  the stream carries an error event after `after_chunks` pieces, and ends
    """

    kind: Kind
    status: int = 500
    after_chunks: int = 0
    times: int | None = None
    """How many requests it strikes; None: all, until cleared."""


class Faults:
    """The fault that is on, if any."""

    def __init__(self, fault: Fault | None = None) -> None:
        """Well, unless told otherwise."""
        self._fault = fault

    def set(self, fault: Fault | None) -> None:
        """Fall ill, or get well."""
        self._fault = fault

    def next(self) -> Fault | None:
        """The fault for the next request; counts it."""
        fault = self._fault
        if fault is None or fault.times is None:
            return fault
        if fault.times <= 0:
            return None
        fault.times -= 1
        return fault

    async def control(self, exchange: Exchange) -> None:
        """`POST /simulator/faults`: a fault as JSON, or `{}` or null to get well."""
        raw = await exchange.read_body()
        try:
            wanted = msgspec.json.decode(raw or b"{}", type=dict[str, str | int | None] | None) or {}
            self.set(msgspec.convert(wanted, Fault) if wanted.get("kind") else None)
        except msgspec.ValidationError as error:
            await exchange.answer_json({"error": str(error), "kinds": KINDS}, status=400)
            return
        await exchange.answer_json({"fault": msgspec.to_builtins(self._fault)})


class FaultyExchange(Exchange):
    """An exchange that goes wrong as its fault says."""

    def __init__(self, well: Exchange, fault: Fault) -> None:
        """Takes the place of `well`."""
        super().__init__(well.scope, well._receive, well._send)
        self.fault = fault

    async def strike(self) -> bool:
        """What happens before the request is read; True if that was all."""
        if self.fault.kind == "reset":
            self.cut()
            return True
        if self.fault.kind == "hang":
            await self.read_body()
            await self.until_gone()
            return True
        if self.fault.kind == "status":
            await self.read_body()
            kind = "ServiceUnavailableError" if self.fault.status == 503 else "InternalServerError"
            await self.answer(self.fault.status, ApiError(self.fault.status, "Simulated fault.", kind=kind).body())
            return True
        if self.fault.kind == "garbage":
            await self.read_body()
            await super().answer(200, b"<html><body>It works!</body></html>", content_type="text/html")
            return True
        return False

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str | None = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answer, or die instead."""
        if self.fault.kind == "die" and status == 200:
            self.cut()
            raise ClientGone
        await super().answer(status, body, content_type=content_type, headers=headers)

    async def write(self, data: bytes) -> None:
        """Write, until the time has come."""
        if self.fault.kind == "die" and self.chunks >= self.fault.after_chunks:
            await asyncio.sleep(0)
            self.cut()
            raise ClientGone
        if self.fault.kind == "error_event" and self.chunks >= self.fault.after_chunks:
            error = ApiError(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
            error.kind = "InternalServerError"
            await super().write(b"data: " + dumps(error.as_json()) + b"\n\n")
            await super().write(b"data: [DONE]\n\n")
            await self.close()
            raise ClientGone
        await super().write(data)
