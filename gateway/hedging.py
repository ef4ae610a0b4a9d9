"""A second attempt at a stream whose first byte is unusually late: whichever answers first is the client's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from gateway.fleet import ConnectFailed, Interrupted, ModelFleet, Replica
from gateway.placement import Placement
from gateway.relay import Answer, ClientWatch, Guard, Interruptible

Send = Callable[[Replica, Guard], Awaitable[Answer]]


class _Both:
    """What is interrupted together when the client leaves."""

    def __init__(self, watch: ClientWatch) -> None:
        self._watch = watch
        self._guarded: list[Interruptible] = []
        watch.guard(self)

    def guard(self, connection: Interruptible) -> None:
        self._guarded.append(connection)
        self._watch.guard(self)

    def interrupt(self) -> None:
        for connection in self._guarded:
            connection.interrupt()


class Outrun:
    """What became of the attempt that did not win: at which replica, and why: `hedged`, where it was only slower."""

    __slots__ = ("code", "replica")

    def __init__(self, replica: Replica, code: str) -> None:
        self.replica = replica
        self.code = code


def hedge_after_ms(model: ModelFleet) -> int | None:
    """When a second attempt begins; None: it is not known yet what late is."""
    spec = model.spec
    if spec.hedge_after is None:
        return spec.hedge_after_ms
    p95_ms = model.first_bytes.p95_ms
    return None if p95_ms is None else max(p95_ms, spec.hedge_after_ms or 0)


class Race:
    """One stream's attempts, at most two at a time. `placement` is the second one's."""

    def __init__(self, watch: ClientWatch, placement: Placement, send: Send) -> None:
        self._both = _Both(watch)
        self._watch = watch
        self._send = send
        self.placement = placement
        self.winner: Replica | None = None
        self.outrun: Outrun | None = None

    async def run(self, first: Replica, after_ms: int | None, others: Callable[[], Sequence[Replica]]) -> Answer:
        """The answer of `first`, or of one of the `others` after so many milliseconds, if that is sooner; None:
        there is no second attempt. The one that does not win has ended when this returns. Raises what `first` does,
        where the second fails too."""
        tasks = {self._task(first): first}
        one = next(iter(tasks))
        try:
            await asyncio.wait(tasks, timeout=None if after_ms is None else after_ms / 1000)
            if not one.done() and (targets := others()):
                second = self.placement.choose(targets)
                tasks[self._task(second)] = second
            await self._until_answered(tasks)
            answered = next((task for task in tasks if _is_good(task)), one)
            for task, replica in tasks.items():
                if task is not answered:
                    self.outrun = Outrun(replica, await _end(task))
        finally:
            for task in tasks:
                task.cancel()
        self.winner = tasks[answered]
        if self.winner is first:
            self.placement.ended()
        answer = answered.result()
        answer.guarded_by(self._watch)
        return answer

    def _task(self, replica: Replica) -> asyncio.Task[Answer]:
        return asyncio.ensure_future(self._send(replica, self._both))

    async def _until_answered(self, tasks: dict[asyncio.Task[Answer], Replica]) -> None:
        while not any(map(_is_good, tasks)) and (running := [task for task in tasks if not task.done()]):
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


def _is_good(task: asyncio.Task[Answer]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and task.result().has_room


async def _end(task: asyncio.Task[Answer]) -> str:
    """Ends an attempt that has not won; says how it failed, or that it was only slower."""
    if not task.done():
        task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(result, Answer):
        result.close()
        return "hedged" if result.has_room else "busy"
    if isinstance(result, ConnectFailed):
        return "connect"
    return "hedged" if isinstance(result, asyncio.CancelledError | Interrupted) else "lost"
