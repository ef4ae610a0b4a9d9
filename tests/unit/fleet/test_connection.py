"""One connection to a replica, without a socket: what it reads, when it pauses, how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet import Connection, Interrupted, Replica, UpstreamLost
from gateway.fleet._connection import HIGH_WATER_BYTES, MAX_HEAD_BYTES
from gateway.fleet._replica import IDLE_TTL_S

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


class Transport:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.written = b""
        self.paused = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def abort(self) -> None:
        self.aborted = True


def connected() -> tuple[Connection, Transport]:
    connection, transport = Connection(asyncio.get_running_loop()), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.send(b"POST / HTTP/1.1\r\n\r\n", b"body")
    assert transport.written == b"POST / HTTP/1.1\r\n\r\nbody"
    return connection, transport


async def everything(connection: Connection) -> bytes:
    """By `read`, until there is no more."""
    got = b""
    while data := await connection.read():
        got += data
    return got


async def pushed(connection: Connection, full_after: int = 10**9) -> bytes:
    """By `push`, whose sink is full after so many bytes at a time."""
    got, since = [], 0

    def sink(data: bytes) -> bool:
        nonlocal since
        got.append(data)
        since += len(data)
        return since < full_after

    while not connection.drained:
        since = 0
        await connection.push(sink)
    return b"".join(got)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=60), max_size=6),
    framing=st.sampled_from(["length", "chunked", "close"]),
    cuts=st.lists(st.integers(0, 600), max_size=6),
    way=st.sampled_from(["read", "push", "push, often full"]),
)
def test_an_answer_in_any_framing_and_any_pieces(parts: list[bytes], framing: str, cuts: list[int], way: str) -> None:
    """However it is framed, cut into reads, and taken: its body, and whether the connection can be used again."""
    body = b"".join(parts)
    if framing == "length":
        wire = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    elif framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        wire = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        wire = HEAD + b"\r\n" + body

    async def play() -> None:
        connection, transport = connected()
        taking = asyncio.create_task(
            everything(connection) if way == "read" else pushed(connection, 10**9 if way == "push" else 10)
        )
        places = sorted({min(cut, len(wire)) for cut in cuts})
        for start, end in zip([0, *places], [*places, len(wire)], strict=True):
            await asyncio.sleep(0)
            if start < end:
                connection.data_received(wire[start:end])
        if framing == "close":
            connection.connection_lost(None)
        async with asyncio.timeout(1):
            assert await taking == body
        assert connection.status == 200
        assert connection.complete
        assert connection.reusable == (framing != "close")
        assert not transport.aborted

    asyncio.run(play())


@pytest.mark.parametrize(
    "framing", [b"content-length: 100\r\n\r\nab", b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n"]
)
async def test_an_answer_cut_short_is_lost(framing: bytes) -> None:
    """What had come is read, then the loss is told; a cut answer is never taken for a short one."""
    connection, _ = connected()
    connection.data_received(HEAD + framing)
    connection.connection_lost(None)
    assert await connection.read() == b"ab"
    with pytest.raises(UpstreamLost):
        await connection.read()
    assert connection.lost
    assert not connection.complete


async def test_a_reset_is_no_end() -> None:
    """An answer that ends with the connection ends by an orderly close; a reset breaks it off."""
    connection, _ = connected()
    connection.data_received(HEAD + b"\r\nab")
    connection.connection_lost(ConnectionResetError())
    assert await connection.read() == b"ab"
    with pytest.raises(UpstreamLost):
        await connection.read()


async def test_a_replica_that_closes_without_an_answer() -> None:
    """No status, no answer: lost."""
    connection, _ = connected()
    connection.connection_lost(None)
    with pytest.raises(UpstreamLost):
        await connection.read()


async def test_unread_bytes_stop_the_reading() -> None:
    """Past the high-water mark the transport is paused, and goes on once what waited has been taken."""
    connection, transport = connected()
    connection.data_received(HEAD + b"\r\n" + b"x" * HIGH_WATER_BYTES)
    assert not transport.paused
    connection.data_received(b"y")
    assert transport.paused
    assert len(await connection.read()) == HIGH_WATER_BYTES + 1
    assert not transport.paused


async def test_a_full_sink_stops_the_reading() -> None:
    """While the client has no room nothing is read from the engine; the next push goes on where it stopped."""
    connection, transport = connected()
    got: list[bytes] = []
    pushing = asyncio.create_task(connection.push(lambda data: got.append(data) or len(got) != 2))  # type: ignore[func-returns-value]
    await asyncio.sleep(0)
    connection.data_received(HEAD + b"content-length: 6\r\n\r\nab")
    assert not transport.paused
    connection.data_received(b"cd")
    assert transport.paused
    await pushing
    assert got == [b"ab", b"cd"]
    connection.data_received(b"ef")  # what the kernel had handed over before
    assert got == [b"ab", b"cd"]
    await connection.push(lambda data: not got.append(data))  # type: ignore[func-returns-value]
    assert got == [b"ab", b"cd", b"ef"]
    assert not transport.paused
    assert connection.drained


async def test_a_sink_that_fails_fails_its_caller() -> None:
    """An exception in the sink reaches the one who waits, and the connection is not used again."""
    connection, transport = connected()

    def sink(_: bytes) -> bool:
        raise KeyError("ours")

    pushing = asyncio.create_task(connection.push(sink))
    await asyncio.sleep(0)
    connection.data_received(HEAD + b"\r\nab")
    with pytest.raises(KeyError, match="ours"):
        await pushing
    assert transport.aborted


@pytest.mark.parametrize("way", ["read", "push"])
async def test_an_interrupt_closes_now_and_wakes_the_reader(way: str) -> None:
    """The socket closes in the same moment, so that the engine stops; the reader gets `Interrupted`."""
    connection, transport = connected()
    waiting = asyncio.create_task(everything(connection) if way == "read" else pushed(connection))
    await asyncio.sleep(0)
    connection.interrupt()
    assert transport.aborted
    with pytest.raises(Interrupted):
        await waiting


async def test_an_interrupt_after_the_end_changes_nothing() -> None:
    """A client that leaves with its whole answer does not cost the pool a connection."""
    connection, transport = connected()
    connection.data_received(HEAD + b"content-length: 2\r\n\r\nab")
    connection.interrupt()
    assert not transport.aborted
    assert await everything(connection) == b"ab"


async def test_a_head_too_large_is_no_answer() -> None:
    """Memory is bounded from the first byte on."""
    connection, transport = connected()
    connection.data_received(HEAD + b"a: %b\r\n\r\n" % (b"x" * MAX_HEAD_BYTES))
    with pytest.raises(UpstreamLost):
        await connection.read()
    assert transport.aborted


async def test_connections_idle_for_too_long_and_exchanges_gone_silent_are_swept() -> None:
    """Idle ones past their time are closed; one in use ends as lost once nothing has come for `silence_s`."""
    loop = asyncio.get_running_loop()
    replica = Replica("http://127.0.0.1:9")
    idle, idle_transport = connected()
    idle.data_received(HEAD + b"content-length: 0\r\n\r\n")
    busy, busy_transport = connected()
    replica._busy.update({idle, busy})
    replica.release(idle)
    now_s = loop.time()
    replica.sweep(now_s=now_s + IDLE_TTL_S - 0.5, silence_s=60)
    assert replica.take_idle() is idle
    replica.release(idle)
    replica.sweep(now_s=loop.time() + IDLE_TTL_S + 0.1, silence_s=60)
    assert idle_transport.aborted
    assert replica.take_idle() is None
    assert not busy_transport.aborted
    reading = asyncio.create_task(busy.read())
    await asyncio.sleep(0)
    replica.sweep(now_s=now_s + 61, silence_s=60)
    assert busy_transport.aborted
    with pytest.raises(UpstreamLost, match="nothing for 60 s"):
        await reading


async def test_a_connection_with_more_to_come_is_not_kept() -> None:
    """Given back before its answer was complete, a connection is closed: the rest would be the next one's."""
    replica = Replica("http://127.0.0.1:9")
    connection, transport = connected()
    connection.data_received(HEAD + b"content-length: 5\r\n\r\nab")
    replica.release(connection)
    assert transport.aborted
    assert replica.take_idle() is None


async def test_the_request_head() -> None:
    """What a replica is asked: its own host, the id, the length, and the lines that are passed on."""
    assert Replica("http://engine:9001").head("/v1/x", b"id-1", 5, b"traceparent: a\r\n") == (
        b"POST /v1/x HTTP/1.1\r\nhost: engine:9001\r\ncontent-type: application/json\r\naccept: */*\r\n"
        b"x-request-id: id-1\r\ncontent-length: 5\r\ntraceparent: a\r\n\r\n"
    )


def test_urls() -> None:
    """Ports follow the scheme."""

    async def ports() -> list[Any]:
        made = [Replica(url) for url in ("http://a", "https://b", "http://[::1]:9")]
        return [(one.host, one.port, one.name) for one in made]

    assert asyncio.run(ports()) == [("a", 80, "a:80"), ("b", 443, "b:443"), ("::1", 9, "::1:9")]
