"""One flat row per usage event: what every export format is made of."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from gateway.admission import usd
from gateway.metering import FailedAttempt, UsageEvent
from gateway.wire import Usage

from ._stream import StoredEvent


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A usage event under the names an export has for it; the fields are the columns, in this order.

    `event_id` is unique per event and stays what it is; `id` is the request's, which a client may choose and repeat.
    `time` is `ended_ms` as RFC 3339. Times are Unix milliseconds, 0 where there was no such moment. `cost_usd` is exact
    and the same amount as `cost_nanousd`. `input_tokens` and `output_tokens` are everything, the others parts of them.
    `count` is how many requests it stands for: 1, but for refusals that came in a flood.
    """

    event_id: str
    tenant: str
    time: str
    id: str
    status: str
    code: str
    endpoint: str
    model: str
    key: str
    replica: str
    user: str
    tags: dict[str, str]
    input_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int
    input_audio_tokens: int
    input_image_tokens: int
    output_tokens: int
    output_reasoning_tokens: int
    output_audio_tokens: int
    samples: int
    undelivered_input_max: int
    undelivered_output_max: int
    estimated: bool
    cached_predicted: bool
    cost_usd: str
    cost_nanousd: int
    price_epoch: str
    arrived_ms: int
    admitted_ms: int
    first_token_ms: int
    ended_ms: int
    failed_attempts: tuple[FailedAttempt, ...]
    corrects: str
    reason: str
    asked_input_tokens: int
    asked_output_tokens: int
    count: int


COLUMNS: Final = UsageRow.__struct_fields__

_OF_USAGE: Final = tuple(name for name in COLUMNS if name in Usage.__struct_fields__)
_OF_EVENT: Final = tuple(name for name in COLUMNS if name in UsageEvent.__struct_fields__)


def event_id(stored: StoredEvent) -> str:
    """`<tenant>/<journal>:<number>`: what consumers recognise a repeated event by. Not the request's id, which a client
    may choose twice, and not the stream's entry, which is another when Redis lost the event and is sent it again; only
    an entry without an origin is known by its own id."""
    return f"{stored.tenant}/{stored.origin or stored.entry}"


def row_of(stored: StoredEvent) -> UsageRow:
    """The event, flat."""
    event = stored.event
    return UsageRow(
        event_id=event_id(stored),
        time=rfc3339(event.ended_ms),
        cost_usd=usd(event.cost_nanousd),
        **{name: getattr(event.usage, name) for name in _OF_USAGE},
        **{name: getattr(event, name) for name in _OF_EVENT},
    )


def rfc3339(time_ms: int) -> str:
    """Unix milliseconds as `2026-09-21T14:13:20.000Z`."""
    moment = datetime.fromtimestamp(time_ms // 1000, UTC).replace(microsecond=time_ms % 1000 * 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_TEMPTING: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""What a text may not begin with in a spreadsheet's cell: it would be run as a formula. The apostrophe is the guard
itself, so that taking one away always gives the text back."""

_encode = msgspec.json.Encoder(order="sorted").encode


def guarded(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula: behind an apostrophe where it begins like one."""
    return f"'{text}" if text.startswith(_TEMPTING) else text


def csv_head() -> bytes:
    """The first line."""
    return csv_lines([COLUMNS])


def csv_row(row: UsageRow) -> list[str]:
    """The row's cells. Text that clients choose is guarded; tags and failed attempts are JSON, true and false words."""
    return [_cell(name, getattr(row, name)) for name in COLUMNS]


def csv_lines(rows: Iterable[Iterable[str]]) -> bytes:
    """Lines of RFC 4180, UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value if name == "cost_usd" else guarded(value)
    return _encode(value).decode()
