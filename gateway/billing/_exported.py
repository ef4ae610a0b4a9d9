"""Events from a JSON Lines export: what bills of long ago are made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gateway.metering import Status, UsageEvent
from gateway.wire import Usage


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """What a bill needs of an exported row; its names are those of the export."""

    tenant: str
    id: str
    status: Status
    key: str = ""
    endpoint: str = ""
    model: str
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    cost_nanousd: int
    price_epoch: str
    arrived_ms: int
    ended_ms: int
    corrects: str = ""
    reason: str = ""


def exported_events(lines: Iterable[bytes], tenant: str) -> Iterator[UsageEvent]:
    """The tenant's events of an export. Raises `ValueError` with the line's number for one that is none."""
    decode = msgspec.json.Decoder(_Row).decode
    for number, line in enumerate(lines, start=1):
        try:
            row = decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(f"line {number} is no exported event: {error}") from error
        if row.tenant == tenant:
            yield UsageEvent(
                id=row.id,
                tenant=row.tenant,
                key=row.key,
                model=row.model,
                endpoint=row.endpoint,
                status=row.status,
                usage=Usage(
                    input_tokens=row.input_tokens,
                    input_cached_tokens=row.input_cached_tokens,
                    output_tokens=row.output_tokens,
                ),
                cost_nanousd=row.cost_nanousd,
                price_epoch=row.price_epoch,
                arrived_ms=row.arrived_ms,
                ended_ms=row.ended_ms,
                corrects=row.corrects,
                reason=row.reason,
            )
