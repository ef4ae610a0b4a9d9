"""What a budget is overrun by when a gateway is killed with long streams open, and others spend before it is back.

Leases end 10 s after their worker died, and what they held is free; what their streams had used is known from its
journal once somebody reads that, and is booked then. So the overrun is bounded by what its leases held, and not 0.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._fleet import Fleet
from .clients import Visit, play
from .limits import BUDGET, BUDGET_USD, NANOUSD, Money, look

TENANT: Final = "money"
OPEN: Final = 10
OPEN_TOKENS: Final = 2000
KILLED_AFTER_S: Final = 4.0
"""Half of their answers, and some notes of them in its journal."""
ADOPTED_S: Final = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Nano-dollars. `held` is what the dead gateway's leases held."""

    held: int
    spent_by_others: int
    most_spent: int

    @property
    def overrun(self) -> int:
        return max(0, self.most_spent - BUDGET)

    @property
    def broken(self) -> list[str]:
        """What was promised and not kept, in words."""
        found = []
        if self.spent_by_others > BUDGET:
            found.append("others spent more than the budget before the dead gateway's streams were booked")
        if self.overrun > self.held:
            found.append("the overrun is more than the dead gateway's leases held")
        return found

    def lines(self) -> list[str]:
        """The table's."""
        return [
            f"killed with {OPEN} streams open, which held ${self.held / NANOUSD:.9f} of ${BUDGET_USD}; "
            f"others then spent ${self.spent_by_others / NANOUSD:.9f};",
            f"with its streams booked ${self.most_spent / NANOUSD:.9f}: overrun ${self.overrun / NANOUSD:.9f}",
        ]


async def run(directory: Path) -> Verdict:
    """Runs it in `directory`. Raises `DidNotStart`."""
    limits = {"budget_usd": BUDGET_USD, "budget_period": "month"}
    price = {"output_usd_per_mtok": 0.35, "input_ratio": 0.28, "cached_ratio": 0.1}
    money = Money(tenant=TENANT)
    async with Fleet(
        directory, workers=(1, 1), replicas=1, profile="quick", tenants={TENANT: {"limits": limits}}, price=price
    ) as fleet:
        looking = asyncio.create_task(look(fleet, money))
        survivor, victim = fleet.gateways
        opened = asyncio.create_task(play(_visits(fleet, victim.port, OPEN, OPEN_TOKENS, attempts=1)))
        await asyncio.sleep(KILLED_AFTER_S)
        held = money.reserved
        await victim.kill()
        await opened
        await play(_visits(fleet, survivor.port, 60, 500, attempts=25))
        spent_by_others = money.spent
        await victim.start()
        await asyncio.sleep(ADOPTED_S)
        looking.cancel()
    return Verdict(held=held, spent_by_others=spent_by_others, most_spent=money.most_spent)


def _visits(fleet: Fleet, port: int, count: int, tokens: int, *, attempts: int) -> list[Visit]:
    return [
        Visit(
            at_s=0.0,
            who=TENANT,
            key=fleet.keys[TENANT],
            ports=[port],
            seed=1000 * tokens + number,
            max_tokens=tokens,
            exact=True,
            attempts=attempts,
            patience_s=5.0,
        )
        for number in range(count)
    ]
