"""Ending tasks that may miss being told to."""

from __future__ import annotations

import asyncio

from gateway.store import end_tasks


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    """redis-py does that now and then: a gateway that stops must not wait for ever."""
    told = 0

    async def deaf() -> None:
        nonlocal told
        while told < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                told += 1

    async def failed() -> None:
        raise OSError("gone")

    tasks = [asyncio.create_task(deaf()), asyncio.create_task(failed()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end_tasks(tasks)
    assert all(task.done() for task in tasks)
    assert told == 2
    await end_tasks([])
