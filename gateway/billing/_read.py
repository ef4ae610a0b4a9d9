"""A bill from Redis: the tenant's events of the month, the price book, and the ledger's sums to hold it against."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from gateway.audit import events, read_prices
from gateway.metering import UsageEvent
from gateway.usage import Billed, billed_by_tenant_and_model

from ._bill import Bill, Sold, make_bill
from ._month import Month

MINUTE_S = 60


class BillError(Exception):
    """There is no bill that adds up; the message says why and what to do."""


async def read_bill(
    redis: Redis,
    tenant: str,
    month: Month,
    *,
    now_s: int,
    committed_nanousd: Mapping[str, int],
    idle_nanousd: int = 0,
) -> Bill:
    """The tenant's bill for the month, or for what there is of it so far.

    Raises:
        BillError: the events and the ledger's sums differ, since events are kept no more.
        StoreUnavailable: Redis did not answer.
    """
    sums = Sold()
    until_s = min(month.end_s, (now_s // MINUTE_S + 1) * MINUTE_S)
    async for _, part in events(redis, tenant, UsageEvent, booked_from_ms=month.start_s * 1000):
        for event in part:
            if month.start_s * 1000 <= event.ended_ms < until_s * 1000:
                sums.add(event)
    bill = make_bill(
        tenant,
        month,
        sums,
        await read_prices(redis),
        # A commitment is for a month, so it is due at its end.
        committed_nanousd=committed_nanousd if now_s >= month.end_s else {},
        idle_nanousd=idle_nanousd,
    )
    kept = sum((await billed_by_tenant_and_model(redis, [tenant], month.start_s, until_s)).values(), Billed())
    if kept.cost_nanousd != bill.ledger_nanousd or kept.requests != bill.requests:
        raise BillError(
            f"the events of {month.name} are {bill.requests} requests and {bill.ledger_nanousd} nano-dollars, and the "
            f"ledger has {kept.requests} and {kept.cost_nanousd}: events of then are kept no more (keep_events_days), "
            "or requests end just now; make the bill from an export: --events FILE.jsonl"
        )
    return bill
