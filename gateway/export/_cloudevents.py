"""Usage events as others take them: CloudEvents 1.0 (OpenMeter and most else), and Lago's own form."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal

import msgspec

from ._rows import UsageRow, row_of
from ._stream import StoredEvent

EVENT_TYPE: Final = "com.mtok.usage.v2"
"""Names the meaning of `data`'s fields; new ones may join them."""

EVENT_SOURCE: Final = "mtok"

LAGO_CODE: Final = "mtok_usage"
"""The code of the billable metric to make in Lago."""


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Structured mode, JSON (cloudevents.io, spec 1.0). `source` and `id` together are what duplicates are known by."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str = EVENT_SOURCE
    type: str = EVENT_TYPE
    subject: str
    time: str
    datacontenttype: Literal["application/json"] = "application/json"
    data: UsageRow


class LagoEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of `POST /api/v1/events/batch`. The tenant's name is the subscription's external id."""

    transaction_id: str
    external_subscription_id: str
    code: str = LAGO_CODE
    timestamp: str
    precise_total_amount_cents: str
    properties: UsageRow


def cloud_event(stored: StoredEvent) -> CloudEvent:
    """The event for CloudEvents' consumers."""
    row = row_of(stored)
    return CloudEvent(id=row.event_id, subject=row.tenant, time=row.time, data=row)


def lago_event(stored: StoredEvent) -> LagoEvent:
    """The event for Lago. Cents are exact, for charges of the dynamic model."""
    row = row_of(stored)
    seconds, ms = divmod(row.ended_ms, 1000)
    return LagoEvent(
        transaction_id=row.event_id,
        external_subscription_id=row.tenant,
        timestamp=f"{seconds}.{ms:03}",
        precise_total_amount_cents=f"{Decimal(row.cost_nanousd).scaleb(-7):f}",
        properties=row,
    )
