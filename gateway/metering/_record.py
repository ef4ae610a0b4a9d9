"""What the journal keeps of one ended request: its event, and what it held while it ran."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from gateway.admission import Lease

from ._event import UsageEvent

_encode = msgspec.json.Encoder().encode
_event = msgspec.json.Decoder(UsageEvent)
_line = msgspec.json.Decoder(tuple[msgspec.Raw, Lease | None])


class Record:
    """An event and the lease it settles. `packed` is the event as JSON: the same bytes in the journal and in Redis.
    `on_disk` is done when it is there, if anybody waits for that."""

    __slots__ = ("event", "lease", "on_disk", "packed")

    def __init__(self, event: UsageEvent, lease: Lease | None, packed: bytes | None = None) -> None:
        self.event = event
        self.lease = lease
        self.packed = _encode(event) if packed is None else packed
        self.on_disk: asyncio.Future[None] | None = None


def pack_records(records: Iterable[Record]) -> bytes:
    """One line of JSON a record: `[event, lease]`."""
    return b"\n".join([b"[%b,%b]" % (record.packed, _encode(record.lease)) for record in records])


def unpack_records(body: bytes) -> list[Record]:
    """The inverse of `pack_records`. Reads what older versions wrote: fields that came later have defaults.

    Raises:
        msgspec.DecodeError: the body is not what a gateway wrote.
    """
    records = []
    for line in body.split(b"\n"):
        if line:
            packed, lease = _line.decode(line)
            records.append(Record(_event.decode(packed), lease, bytes(packed)))
    return records
