"""What an event leaves of its reservation, as account.lua takes it."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.admission import Lease
from gateway.store import EXACT_MAX, Settlement

from ._record import Record


def settlements(number: int, lease: Lease, record: Record) -> Iterable[Settlement]:
    """Of the record of that number. Never run means that its place in requests/min comes back too. Slices give back
    what they held: what was used is the lease's."""
    event, usage = record.event, record.event.usage
    assert abs(event.cost_nanousd) <= EXACT_MAX
    yield (
        number,
        *_of(lease),
        usage.total_tokens,
        event.cost_nanousd,
        int(event.status == "refused"),
        lease.input_tokens,
        usage.input_tokens,
        lease.output_tokens,
        usage.output_tokens,
    )
    for held in lease.slices:
        yield (number, *_of(held), 0, 0, 0, held.input_tokens, 0, held.output_tokens, 0)


def _of(lease: Lease) -> tuple[str, str, str, int, int]:
    return lease.member, lease.period, ",".join(lease.windows), lease.tokens, lease.reserved_ms
