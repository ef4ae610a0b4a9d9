"""Policies completed by what is discovered, with sources that a test speaks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from gateway.discovery import Discovery, DiscoveryFailed
from gateway.policy import DiscoverSpec, ModelSpec, Policies, ReplicaSpec

Said = tuple[str, ...] | Exception
A, B, C = "http://a:1", "http://b:1", "http://c:1"


class Told:
    """A source that says what it is told."""

    def __init__(self, *said: Said) -> None:
        self.said: asyncio.Queue[Said] = asyncio.Queue()
        self.begun = 0
        for one in said:
            self.said.put_nowait(one)

    async def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
        self.begun += 1
        while True:
            said = await self.said.get()
            if isinstance(said, Exception):
                raise said
            yield said


def policies(*written: str, file: str | None = "replicas.yaml") -> Policies:
    discover = None if file is None else DiscoverSpec(file=file)
    replicas = tuple(ReplicaSpec(url=url) for url in written)
    return Policies(
        models={"tiny": ModelSpec(name="tiny", replicas=replicas, discover=discover)},
        tenants={},
        classes={},
        sha256="0",
    )


def urls(policies: Policies) -> list[str]:
    return [replica.url for replica in policies.models["tiny"].replicas]


async def until_heard(heard: list[Policies], count: int) -> list[str]:
    async with asyncio.timeout(10):
        while len(heard) < count:
            await asyncio.sleep(0)
    assert len(heard) == count
    return urls(heard[-1])


async def test_what_is_found_stands_beside_what_is_written() -> None:
    source, heard = Told((B, A)), list[Policies]()
    async with Discovery(source_of=lambda _: source) as discovery:
        assert urls(await discovery.first(policies(A))) == [A, B]
        discovery.on_change = heard.append
        source.said.put_nowait((B, C))
        assert await until_heard(heard, 1) == [A, B, C]
        source.said.put_nowait((B, C))
        source.said.put_nowait(())
        assert await until_heard(heard, 2) == [A]


async def test_where_finding_fails_what_was_known_last_stays(caplog: pytest.LogCaptureFixture) -> None:
    """Loudly, and it is tried again."""
    source, heard = Told((A,)), list[Policies]()
    async with Discovery(source_of=lambda _: source, retry_s=0) as discovery:
        assert urls(await discovery.first(policies())) == [A]
        discovery.on_change = heard.append
        source.said.put_nowait(DiscoveryFailed("no route"))
        source.said.put_nowait(RuntimeError("a fault of ours"))
        source.said.put_nowait((A, B))
        assert await until_heard(heard, 1) == [A, B]
        assert (source.begun, discovery.failing) == (3, {})
    assert "the 1 known last stay: no route" in caplog.text


async def test_a_gateway_starts_though_nothing_can_be_found() -> None:
    """It does not wait for what takes long either."""
    failing, silent = Told(DiscoveryFailed("no route")), Told()
    async with Discovery(source_of=lambda _: failing, retry_s=60) as discovery:
        assert urls(await discovery.first(policies(B))) == [B]
        assert discovery.failing == {"tiny": "no route"}
    async with Discovery(source_of=lambda _: silent) as discovery:
        assert urls(await discovery.first(policies(B), within_s=0.01)) == [B]


async def test_policies_that_look_elsewhere_forget_what_was_found() -> None:
    sources = {"one": Told((A,)), "two": Told((B,))}
    heard = list[Policies]()
    async with Discovery(source_of=lambda spec: sources[spec.file or ""]) as discovery:
        discovery.on_change = heard.append
        assert urls(await discovery.first(policies(file="one"))) == [A]
        assert urls(discovery.declare(policies(C, file="two"))) == [C]
        assert await until_heard(heard, 2) == [C, B]
        assert urls(discovery.declare(policies(C, file=None))) == [C]
        assert sources["one"].begun == sources["two"].begun == 1


async def test_sources_are_closed_at_the_end() -> None:
    """Whatever they hold open: a watch, a socket."""
    closed = asyncio.Event()

    class Open(Told):
        async def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
            try:
                async with aclosing(super().changes()) as changes:
                    async for change in changes:
                        yield change
            finally:
                closed.set()

    async with Discovery(source_of=lambda _: Open((A,))) as discovery:
        await discovery.first(policies())
    assert closed.is_set()
