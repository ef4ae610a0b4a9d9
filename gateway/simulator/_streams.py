"""From samples in flight to a stream of events: wait, take, write, and stop at once when the client hangs up."""

from __future__ import annotations

from collections.abc import Iterator

from ._driver import Flight
from ._http import Exchange
from ._replica import Replica
from ._samples import Delta, Sample


def events_of(flight: Flight) -> Iterator[tuple[Sample, Delta] | tuple[None, None]]:
    """Each sample's next piece, in order of index; two None where nothing is ready yet, until all have ended."""
    while True:
        ready = [sample for sample in flight.samples if sample.pending]
        for sample in ready:
            yield sample, sample.take()
        if not ready:
            if flight.done:
                return
            yield None, None


async def stream(replica: Replica, exchange: Exchange, flight: Flight, events: Iterator[bytes | None]) -> None:
    """Send an answer's events as they come; a client that goes aborts what is left of it."""
    watcher = exchange.on_gone(lambda: replica.driver.abort(flight))
    try:
        await exchange.open_stream()
        for event in events:
            if event is not None:
                await exchange.write(event)
            else:
                await flight.moved.wait()
                flight.moved.clear()
            if flight.gone:
                return
        await exchange.close()
    finally:
        watcher.cancel()
        if not flight.done:
            replica.driver.abort(flight)
