"""The coalescing client's promises to its callers, without a server."""

from __future__ import annotations

import asyncio

import pytest

from gateway.store import Call, Coalescer, StoreUnavailable, client, load_script


class Caller:
    """Says what a test tells it to, and remembers what it heard."""

    def __init__(self, *, defect: bool = False, tries: int = 1) -> None:
        self.defect = defect
        self.tries = tries
        self.heard: list[object] = []

    def take(self, now_ms: int) -> Call | None:
        if self.defect:
            raise ZeroDivisionError
        return Call(["k"], [b"1"])

    def finish(self, reply: bytes) -> bool:
        self.heard.append(reply)
        return False

    def fail(self, error: StoreUnavailable) -> bool:
        self.heard.append(error)
        return len(self.heard) < self.tries


async def heard(caller: Caller, count: int) -> None:
    async with asyncio.timeout(5):
        while len(caller.heard) < count:
            await asyncio.sleep(0.001)


def coalescer(path: object) -> Coalescer:
    redis = client(f"unix://{path}/nobody.sock")
    return Coalescer(redis, load_script("account"), now_ms=lambda: 0, timeout_s=0.1, random=lambda: 0.0)


async def test_a_caller_that_wants_so_is_tried_again_until_it_does_not(tmp_path: object) -> None:
    """Without Redis each try is told as a failure; failures are counted until a call comes back."""
    store = coalescer(tmp_path)
    caller = Caller(tries=3)
    store.wake(caller)
    await heard(caller, 3)
    assert [type(word) for word in caller.heard] == [StoreUnavailable] * 3
    assert store.failures == 3
    store.close()


async def test_a_defect_in_one_caller_is_its_own(tmp_path: object, caplog: pytest.LogCaptureFixture) -> None:
    """A caller that raises is told and logged; the one beside it is served as if alone."""
    store = coalescer(tmp_path)
    broken, sound = Caller(defect=True), Caller()
    store.wake(broken)
    store.wake(sound)
    await heard(sound, 1)
    assert "ZeroDivisionError" in str(broken.heard[0])
    assert "ZeroDivisionError" in caplog.text
    assert "nobody.sock" in str(sound.heard[0])
    store.close()


async def test_closing_tells_everyone_who_waits(tmp_path: object) -> None:
    """Nobody waits for a store that is closed, and waking it later is in vain."""
    store = coalescer(tmp_path)
    caller = Caller(tries=10)
    store.wake(caller)
    store.close()
    assert "shutting down" in str(caller.heard[0])
    store.wake(caller)
    await asyncio.sleep(0.01)
    assert len(caller.heard) == 1
