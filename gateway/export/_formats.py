"""Export formats: each writes events to an open file, a piece at a time."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from decimal import Decimal
from types import ModuleType
from typing import IO, Any, Final, Literal, Protocol, get_args

import msgspec

from ._cloudevents import cloud_event
from ._rows import COLUMNS, UsageRow, csv_head, csv_lines, csv_row, row_of
from ._stream import StoredEvent

Format = Literal["csv", "parquet", "jsonl", "cloudevents"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

_encode_lines = msgspec.json.Encoder().encode_lines


class FormatUnavailable(Exception):
    """A format whose library is not installed; the message says what to install."""


class Writer(Protocol):
    """Writes an export. `end` completes it and leaves the file open."""

    def write(self, events: Sequence[StoredEvent]) -> None: ...
    def end(self) -> None: ...


def writer(format_: Format, file: IO[bytes]) -> Writer:
    """A writer of this format to `file`.

    Raises:
        FormatUnavailable: pyarrow is not installed.
    """
    if format_ == "csv":
        return _Csv(file)
    if format_ == "parquet":
        return _Parquet(file)
    return _Lines(file, cloud_event if format_ == "cloudevents" else row_of)


class _Csv:
    """RFC 4180 with a head."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        file.write(csv_head())

    def write(self, events: Sequence[StoredEvent]) -> None:
        self._file.write(csv_lines(csv_row(row_of(stored)) for stored in events))

    def end(self) -> None:
        """Nothing is held back."""


class _Lines:
    """One JSON object a line."""

    def __init__(self, file: IO[bytes], shape: Any) -> None:
        self._file = file
        self._shape = shape

    def write(self, events: Sequence[StoredEvent]) -> None:
        self._file.write(_encode_lines([self._shape(stored) for stored in events]))

    def end(self) -> None:
        """Nothing is held back."""


class _Parquet:
    """Row groups of one piece each. Counts are int64, `cost_usd` is decimal128(38, 9), tags are a map."""

    def __init__(self, file: IO[bytes]) -> None:
        self._arrow = _pyarrow("pyarrow")
        self._schema = _schema(self._arrow)
        self._writer = _pyarrow("pyarrow.parquet").ParquetWriter(file, self._schema, compression="zstd")

    def write(self, events: Sequence[StoredEvent]) -> None:
        rows = [_arrow_row(row_of(stored)) for stored in events]
        self._writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))

    def end(self) -> None:
        """Writes the foot, without which the file is none."""
        self._writer.close()


def _pyarrow(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FormatUnavailable("parquet needs pyarrow; pip install 'mtok-gateway[parquet]' brings it") from error


def _schema(arrow: Any) -> Any:
    special = {
        "time": arrow.timestamp("ms", tz="UTC"),
        "tags": arrow.map_(arrow.string(), arrow.string()),
        "estimated": arrow.bool_(),
        "cached_predicted": arrow.bool_(),
        "cost_usd": arrow.decimal128(38, 9),
        "failed_attempts": arrow.list_(
            arrow.struct([("replica", arrow.string()), ("code", arrow.string()), ("input_tokens", arrow.int64())])
        ),
    }
    kinds = {field.name: field.type for field in msgspec.structs.fields(UsageRow)}
    return arrow.schema(
        [
            arrow.field(
                name, special.get(name) or (arrow.int64() if kinds[name] is int else arrow.string()), nullable=False
            )
            for name in COLUMNS
        ]
    )


def _arrow_row(row: UsageRow) -> dict[str, object]:
    return msgspec.structs.asdict(row) | {
        "time": row.ended_ms,
        "cost_usd": Decimal(row.cost_usd),
        "tags": list(row.tags.items()),
        "failed_attempts": [msgspec.structs.asdict(attempt) for attempt in row.failed_attempts],
    }
