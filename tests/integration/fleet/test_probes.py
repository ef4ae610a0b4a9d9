"""Which replicas are healthy, as the prober sees it over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.fleet import Fleet
from gateway.policy import ModelSpec, ReplicaSpec

MODELS = b'{"data":[{"id":"tiny","max_model_len":4096}]}'


class Engine:
    """Answers probes as it is told: `status`, or nothing at all while `late`."""

    def __init__(self) -> None:
        self.status = 200
        self.late = False
        self.late_probes = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if self.late:
                self.late_probes += 1
                continue
            body = MODELS if b"/v1/models" in head else b""
            writer.write(b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(body), body))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    async with engine.listening():
        yield engine


def fleet_of(engine: Engine) -> Fleet:
    spec = ModelSpec(name="tiny", replicas=(ReplicaSpec(url=engine.url),))
    return Fleet([spec], probe_interval_s=0.01, probe_timeout_s=0.1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_healthy_replica_is_ready_at_once_and_tells_its_context(engine: Engine) -> None:
    """The first request finds it, and knows how long a prompt may be."""
    async with fleet_of(engine) as fleet:
        assert fleet.ready()
        assert fleet.models["tiny"].context_tokens == 4096


async def test_one_late_answer_takes_no_replica_down_and_three_do(engine: Engine) -> None:
    """An API server busy with prompts is late now and then; a replica that stays silent is down until it answers."""
    async with fleet_of(engine) as fleet:
        engine.late = True
        await until(lambda: engine.late_probes >= 2)
        assert fleet.ready()
        await until(lambda: not fleet.ready())
        assert engine.late_probes >= 3
        engine.late = False
        await until(fleet.ready)


async def test_a_replica_that_says_it_is_broken_is_down_at_the_next_probe(engine: Engine) -> None:
    """vLLM's /health answers 503 once its engine core has died."""
    async with fleet_of(engine) as fleet:
        engine.status = 503
        await until(lambda: not fleet.ready())
        engine.status = 200
        await until(fleet.ready)
