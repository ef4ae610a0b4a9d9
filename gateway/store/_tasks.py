"""Ending tasks that talk to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

REPEAT_S = 0.1


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels tasks and returns when all of them have ended, however they did.

    Once is not enough: `asyncio.wait_for` before Python 3.12, which redis-py uses, swallows a cancellation that comes
    in the moment in which it finishes, and a task that goes round for ever would go on for ever.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=REPEAT_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # taken notice of: asyncio need not complain
