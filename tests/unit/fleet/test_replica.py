"""What a replica makes of what its connections and its readings show."""

from __future__ import annotations

import asyncio

from gateway.fleet import Connection, Reading, Replica
from gateway.fleet._liveness import SILENCE_MOST_S


class Transport:
    """Takes everything."""

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        pass


def reading(at_s: float, *, started_ms: int | None = 1, running: int = 0, **counters: int) -> Reading:
    at_ms = int(at_s * 1000)
    return Reading(asked_ms=at_ms, answered_ms=at_ms, started_ms=started_ms, running=running, counters=counters)


class Clock:
    """The event loop's, set by hand."""

    def __init__(self, replica: Replica) -> None:
        self.now_s = 1000.0
        self._loop = asyncio.get_running_loop()
        replica._loop = self  # type: ignore[assignment]

    def time(self) -> float:
        return self.now_s

    def create_future(self) -> asyncio.Future[None]:
        return self._loop.create_future()


def answering() -> tuple[Replica, Clock, list[str]]:
    """A replica that has answered its probe, and who hears of its restarts."""
    restarted: list[str] = []
    replica = Replica("http://replica:8000", restarted=lambda one: restarted.append(one.name))
    clock = Clock(replica)
    replica.answered(joins=False)
    assert replica.healthy
    return replica, clock, restarted


async def test_counters_that_fall_or_another_start_time_are_another_process() -> None:
    """It starts slowly, and whoever keeps an index of its cache hears of it."""
    replica, clock, restarted = answering()
    for number, (started_ms, tokens) in enumerate([(1, 10), (1, 20), (1, 5), (1, 6), (2, 7), (2, 8)]):
        replica.reading = reading(clock.now_s, started_ms=started_ms, prompt=tokens, generation=tokens)
        clock.now_s += 1
        replica.look()
        assert len(restarted) == (0, 0, 1, 1, 2, 2)[number]
    assert (replica.health.state, replica.health.reason) == ("starting", "restarted")


async def test_an_engine_whose_counters_stand_still_beside_its_work_is_stalled_until_they_move() -> None:
    replica, clock, _ = answering()
    for _ in range(9):
        replica.reading = reading(clock.now_s, running=3, prompt=10, generation=10)
        replica.look()
        clock.now_s += 10
    assert SILENCE_MOST_S < 9 * 10
    assert (replica.health.state, replica.health.reason, replica.healthy) == ("quarantined", "stalled", False)
    replica.reading = reading(clock.now_s, running=3, prompt=10, generation=11)
    replica.look()
    assert (replica.health.state, replica.health.reason, replica.healthy) == ("starting", "recovered", True)


async def test_streams_that_were_cut_are_no_sign_that_tokens_come_again() -> None:
    """A stalled replica whose streams are gone is tried by one request after a pause."""
    replica, clock, _ = answering()
    connection = Connection(clock)  # type: ignore[arg-type]
    connection.connection_made(Transport())  # type: ignore[arg-type]
    replica._busy.add(connection)
    replica.send(connection, b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", b"{}")
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n")
    connection.streams = True
    for _ in range(200):
        clock.now_s += 0.5
        replica.look()
        replica.sweep(now_s=clock.now_s, silence_s=600.0)
    assert connection.fault is not None, "given up, so that it can go on elsewhere"
    assert (replica.health.state, replica.health.reason) == ("quarantined", "stalled")
    replica.release(connection)
    replica.look()
    assert replica.health.state == "quarantined"
    clock.now_s += 10
    replica.look()
    assert (replica.health.state, replica.healthy) == ("half_open", True)
