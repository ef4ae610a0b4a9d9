"""Reads a request's body, bounded in size. How long it may take is the server's business: `serving/_protocol.py`."""

from __future__ import annotations

from gateway import refusals
from gateway.errors import Refused
from gateway.relay import Client, Receive


class ClientGone(Exception):
    """The client left, or was too slow, before its request was complete."""


def body_at_hand(client: Client, *, limit_bytes: int) -> bytes | None:
    """The whole body, if it came with its head, as most do; None: `read_body`. Raises `Refused` (413)."""
    body = client.body_nowait()
    if body is not None and len(body) > limit_bytes:
        raise Refused(refusals.body_too_large(limit_bytes))
    return body


async def read_body(declared: bytes, receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole body; `declared` is its Content-Length, if any.

    Raises `Refused` (413) as soon as it is known to be too large, `ClientGone`.
    """
    if declared.isdigit() and int(declared) > limit_bytes:
        raise Refused(refusals.body_too_large(limit_bytes))
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body: bytes = message["body"]
        size += len(body)
        if size > limit_bytes:
            raise Refused(refusals.body_too_large(limit_bytes))
        if not message.get("more_body"):
            return b"".join((*parts, body)) if parts else body
        parts.append(body)
