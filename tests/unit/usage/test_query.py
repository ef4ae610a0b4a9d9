"""`/v1/usage`'s query string."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refusal
from gateway.usage import UsageQuery, parse_query

NOW = 1_790_000_000  # 2026-09-21T14:13:20Z
END = NOW + 1
"""The end is exclusive, and what has just happened belongs to the answer."""


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        (b"", UsageQuery(start_s=END - 86_400, end_s=END, bucket="1h")),
        (b"start=1789990000&end=1790000000", UsageQuery(start_s=1_789_990_000, end_s=NOW, bucket="1h")),
        (b"start=2026-09-21T13:00:00Z", UsageQuery(start_s=1_789_995_600, end_s=END, bucket="1h")),
        (b"start=2026-09-21T15:00:00%2B02:00", UsageQuery(start_s=1_789_995_600, end_s=END, bucket="1h")),
        (b"start=2026-09-21T15:00:00+02:00", UsageQuery(start_s=1_789_995_600, end_s=END, bucket="1h")),
        (b"start=2026-09-21", UsageQuery(start_s=1_789_948_800, end_s=END, bucket="1h")),
        (b"end=1789999999&bucket=1m", UsageQuery(start_s=1_789_913_599, end_s=1_789_999_999, bucket="1m")),
        (b"bucket=1d&start=1759276800", UsageQuery(start_s=1_759_276_800, end_s=END, bucket="1d")),
        (b"group_by=key,model", UsageQuery(start_s=END - 86_400, end_s=END, bucket="1h", group_by=("model", "key"))),
        (
            b"group_by[]=model&group_by[]=key",
            UsageQuery(start_s=END - 86_400, end_s=END, bucket="1h", group_by=("model", "key")),
        ),
        (b"group_by=key&group_by=key", UsageQuery(start_s=END - 86_400, end_s=END, bucket="1h", group_by=("key",))),
        (b"tenant=acme", UsageQuery(start_s=END - 86_400, end_s=END, bucket="1h", tenant="acme")),
    ],
)
def test_what_is_asked(query: bytes, asked: UsageQuery) -> None:
    """Unix seconds or RFC 3339, group_by in each form clients write it, and defaults for the rest."""
    assert parse_query(query, NOW) == asked


@pytest.mark.parametrize(
    ("query", "param", "says"),
    [
        (b"start=yesterday", "start", "send Unix seconds (1790000000) or RFC 3339"),
        (b"end=-5", "end", "end is '-5'"),
        (b"start=99999999999999", "start", "send Unix seconds"),
        (b"start=1790000000&end=1790000000", "start", "has to come before end"),
        (b"start=1790000001", "start", "lies in the future"),
        (b"bucket=2h", "bucket", "one of 1m, 1h, 1d"),
        (b"group_by=team", "group_by", "group_by=model,key"),
        (b"group_by=", "group_by", "group_by=model,key"),
        (b"from=1", "from", "known are bucket, end, group_by, start, tenant"),
        (b"start=1&start=2", "start", "given twice"),
        (b"bucket=1m&start=1789300000", "bucket", "kept for 7 days"),
        (b"bucket=1m&start=1789500000", "bucket", "send bucket=1h"),
        (b"bucket=1h&start=1779700000", "bucket", "send bucket=1d"),
        (b"bucket=1d&start=0", "bucket", "ask for a shorter time"),
        (b"start=%ff", None, "not readable"),
    ],
)
def test_a_bad_query_is_told_what_to_send(query: bytes, param: str | None, says: str) -> None:
    """400 with the parameter's name and a message that says what would do."""
    refused = parse_query(query, NOW)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.param) == (400, param)
    assert says in refused.message


@given(st.binary(max_size=200))
def test_no_query_string_is_a_fault(query: bytes) -> None:
    """Whatever bytes come, the answer is a query or a 400."""
    answer = parse_query(query, NOW)
    assert isinstance(answer, UsageQuery) or answer.status == 400


@given(st.dictionaries(st.sampled_from(["start", "end", "bucket", "group_by"]), st.text(max_size=30)))
def test_no_value_is_a_fault(values: dict[str, str]) -> None:
    """Any text in any parameter is a query or a 400."""
    answer = parse_query(urlencode(values).encode(), NOW)
    assert isinstance(answer, UsageQuery) or answer.status == 400
