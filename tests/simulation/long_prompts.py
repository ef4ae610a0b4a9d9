"""One tenant sends prompts of 100,000 tokens back to back, nine others chat, and what becomes of both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.simulator import Profile
from tests.simulation.virtual_gateway import Asked, Front, World, poisson
from tests.simulation.virtual_loop import VirtualLoop

LONG = "long"
LONG_PROMPT, LONG_ANSWER = 100_000, 200
LONG_WAIT_S = 2.0
OTHERS = tuple(f"tenant-{number}" for number in range(9))


class LongWorld(World):
    """`together` clients of the tenant `LONG` each send their next prompt when the last one has been answered, or when
    they were told to come back."""

    def __init__(
        self,
        front: Front,
        others: Sequence[Asked],
        *,
        until_s: float,
        profiles: Sequence[Profile],
        together: int = 1,
        since_s: float = 0.0,
    ) -> None:
        self.long: list[Asked] = []
        self._since_s = since_s
        self._together = together
        super().__init__(front, others, until_s=until_s, profiles=profiles)

    async def _run(self, profiles: Sequence[Profile]) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clients = [loop.create_task(self._client(loop)) for _ in range(self._together)]
        await super()._run(profiles)
        for client in clients:
            client.cancel()

    async def _client(self, loop: VirtualLoop) -> None:
        await asyncio.sleep(self._since_s)
        while loop.time() < self.until_s:
            asked = Asked(LONG, loop.time(), LONG_PROMPT, LONG_ANSWER, max_wait_s=LONG_WAIT_S)
            self.long.append(asked)
            await self._serve(asked, loop)
            if asked.refused is not None:
                await asyncio.sleep((asked.refused.refusal.retry_after_ms or 1000) / 1000)

    def long_per_s(self, since_s: float) -> float:
        """Long prompts whose first token came, per second."""
        streams = [one.stream for one in self.long if one.stream is not None and one.stream.token_s]
        return sum(since_s <= stream.token_s[0] < self.until_s for stream in streams) / (self.until_s - since_s)


def chats(per_s: float, *, seed: int, until_s: float) -> list[Asked]:
    """Of the nine, together so many a second."""
    return [one for name in OTHERS for one in poisson(name, per_s / 9, seed=seed, until_s=until_s)]
