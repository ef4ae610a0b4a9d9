"""What an export writes of an event, read back by others' readers."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import IO, get_args

import msgspec
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.export import COLUMNS, FORMATS, Format, FormatUnavailable, writer
from gateway.export._formats import _pyarrow
from gateway.export._rows import guarded, rfc3339
from gateway.export._stream import StoredEvent
from gateway.metering import FailedAttempt, Status, UsageEvent
from gateway.wire import Usage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNT = st.integers(0, 2**53)
TIME_MS = st.integers(0, 4_000_000_000_000)

usages = st.builds(Usage, **dict.fromkeys(Usage.__struct_fields__, COUNT))
attempts = st.builds(FailedAttempt, replica=TEXT, code=TEXT, input_tokens=COUNT)
events = st.builds(
    UsageEvent,
    id=TEXT,
    tenant=st.just("acme"),
    key=TEXT,
    model=TEXT,
    endpoint=TEXT,
    status=st.sampled_from(get_args(Status)),
    code=TEXT,
    usage=usages,
    estimated=st.booleans(),
    cost_nanousd=st.integers(-(2**53), 2**53),
    arrived_ms=TIME_MS,
    ended_ms=TIME_MS,
    failed_attempts=st.lists(attempts, max_size=2).map(tuple),
    user=TEXT | st.sampled_from(["=1+1", "@cmd", "-2", "'quoted", "+", '"', "a\r\nb", "\t="]),
    tags=st.dictionaries(TEXT, TEXT, max_size=3),
    reason=TEXT,
)
stored = st.builds(StoredEvent, st.just("acme"), st.just("1790000000000-3"), events, st.just("w1:7"))


def written(format_: Format, *pieces: list[StoredEvent]) -> IO[bytes]:
    file = io.BytesIO()
    target = writer(format_, file)
    for piece in pieces:
        target.write(piece)
    target.end()
    file.seek(0)
    return file


def unguarded(cell: str) -> str:
    return cell.removeprefix("'")


@given(st.lists(stored, max_size=4))
@settings(deadline=None)
def test_csv_gives_every_value_back(rows: list[StoredEvent]) -> None:
    """Any text, count and amount of any event survives the way through a CSV reader, once one leading apostrophe is
    taken off each text."""
    text = written("csv", rows).read().decode()
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(lines) == len(rows)
    for line, (_, _, event, _) in zip(lines, rows, strict=True):
        assert tuple(line) == COLUMNS
        for name in ("id", "status", "code", "endpoint", "model", "key", "user", "reason"):
            assert unguarded(line[name]) == getattr(event, name)
        for name in Usage.__struct_fields__:
            assert int(line[name]) == getattr(event.usage, name)
        assert Decimal(line["cost_usd"]).scaleb(9) == int(line["cost_nanousd"]) == event.cost_nanousd
        assert json.loads(line["tags"]) == event.tags
        assert json.loads(line["estimated"]) is event.estimated
        assert msgspec.json.decode(line["failed_attempts"], type=tuple[FailedAttempt, ...]) == event.failed_attempts
        assert line["event_id"] == "acme/w1:7"


@given(TEXT)
def test_no_text_begins_a_formula(text: str) -> None:
    """Excel, Sheets and LibreOffice run a cell that begins with one of these."""
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert guarded(text) in (text, f"'{text}")


@given(st.lists(stored, min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_parquet_is_typed(rows: list[StoredEvent]) -> None:
    """Counts are 64-bit, money is a decimal, tags a map; pieces become row groups of one file."""
    table = pyarrow.parquet.read_table(written("parquet", rows, rows))
    assert table.num_rows == 2 * len(rows)
    assert tuple(table.column_names) == COLUMNS
    assert str(table.schema.field("input_tokens").type) == "int64"
    assert str(table.schema.field("cost_usd").type) == "decimal128(38, 9)"
    first, (_, _, event, _) = table.to_pylist()[0], rows[0]
    assert first["cost_usd"].scaleb(9) == first["cost_nanousd"] == event.cost_nanousd
    assert dict(first["tags"]) == event.tags
    assert (first["user"], first["output_tokens"]) == (event.user, event.usage.output_tokens)


@given(st.lists(stored, min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_json_lines_are_the_columns(rows: list[StoredEvent]) -> None:
    """One object a line; a CloudEvent carries the same object as its data."""
    plain = [json.loads(line) for line in written("jsonl", rows)]
    clouds = [json.loads(line) for line in written("cloudevents", rows)]
    assert len(plain) == len(rows)
    assert [cloud["data"] for cloud in clouds] == plain
    assert tuple(plain[0]) == COLUMNS
    assert clouds[0] | {"data": None} == {
        "specversion": "1.0",
        "id": "acme/w1:7",
        "source": "mtok",
        "type": "com.mtok.usage.v2",
        "subject": "acme",
        "time": rfc3339(rows[0].event.ended_ms),
        "datacontenttype": "application/json",
        "data": None,
    }


def test_times_have_milliseconds_and_a_z() -> None:
    """RFC 3339, UTC, exact."""
    assert rfc3339(1_790_000_000_007) == "2026-09-21T14:13:20.007Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"


def test_an_empty_export_is_a_file_of_its_format() -> None:
    """Nothing new: a CSV has its head, a Parquet file its schema."""
    assert written("csv").read() == ",".join(COLUMNS).encode() + b"\r\n"
    assert pyarrow.parquet.read_table(written("parquet")).num_rows == 0
    assert {written(name).read() for name in FORMATS if name not in ("csv", "parquet")} == {b""}


def test_parquet_without_pyarrow_says_what_to_install() -> None:
    """The extra's name is in the message."""
    with pytest.raises(FormatUnavailable, match=r"pip install 'mtok-gateway\[parquet\]'"):
        _pyarrow("pyarrow_that_is_not_there")
