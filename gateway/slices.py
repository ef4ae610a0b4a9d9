"""A stream that holds its budget in slices: no event goes to the client before what it costs is held."""

from __future__ import annotations

from gateway.call import Reservation
from gateway.fleet import UpstreamLost
from gateway.relay import Answer, Outgoing
from gateway.wire import StreamScanner


class HoldEnded(Exception):
    """Nothing more could be held. `event` is the first one that was not sent."""

    def __init__(self, event: bytes) -> None:
        super().__init__("the budget ends here")
        self.event = event


async def pump_sliced(answer: Answer, scanner: StreamScanner, outgoing: Outgoing, reservation: Reservation) -> bytes:
    """Relays a stream up to its last event, which it returns, as `relay.pump_stream` does, event by event.

    Raises:
        HoldEnded: the client has had all that can be paid for.
        StoreUnavailable: it cannot be known whether more can.
        UpstreamLost, Interrupted: as `pump_stream`.
    """
    held: list[bytes] = []

    async def pass_on(event: bytes, *, is_last: bool) -> None:
        out = scanner.feed(event)
        if not await reservation.cover(scanner):
            raise HoldEnded(event)
        if scanner.ended or is_last:
            held.append(out)
        elif out:
            await outgoing.write(out)

    outgoing.start()
    rest, data = b"", answer.first
    try:
        while True:
            events, rest = _whole_events(rest + data)
            complete = answer.complete
            for number, event in enumerate(events, 1):
                await pass_on(event, is_last=complete and not rest and number == len(events))
            if complete:
                break
            data = await answer.read()
    except UpstreamLost:
        if not scanner.ended:
            raise  # else every event was there; only the framing's end was not
    if rest:
        await pass_on(rest, is_last=True)
    return b"".join((*held, scanner.finish()))


def _whole_events(data: bytes) -> tuple[list[bytes], bytes]:
    """One by one, and the beginning of the next. With line ends that engines do not use they stay together."""
    if b"\r" in data:
        return [data], b""
    *events, rest = data.split(b"\n\n")
    return [event + b"\n\n" for event in events], rest
