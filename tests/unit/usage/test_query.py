"""`/v1/usage`'s query string."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refusal
from gateway.store import BucketSize
from gateway.usage import UsageQuery
from gateway.usage import parse_query as parse

NOW = 1_790_000_000  # 2026-09-21T14:13:20Z
END = NOW + 1
"""The end is exclusive, and what has just happened belongs to the answer."""


KEPT: dict[BucketSize, int] = {"1m": 7, "1h": 120}


def parse_query(query: bytes) -> UsageQuery | Refusal:
    return parse(query, NOW, KEPT)


def asked(start_s: int = END - 86_400, end_s: int = END, **changes: Any) -> UsageQuery:
    return UsageQuery(start_s=start_s, end_s=end_s, **({"from_s": start_s} | changes))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", asked()),
        (b"start=1789990000&end=1790000000", asked(1_789_990_000, NOW)),
        (b"start=2026-09-21T13:00:00Z", asked(1_789_995_600)),
        (b"start=2026-09-21T15:00:00%2B02:00", asked(1_789_995_600)),
        (b"start=2026-09-21T15:00:00+02:00", asked(1_789_995_600)),
        (b"start=2026-09-21", asked(1_789_948_800)),
        (b"end=1789999999&bucket=1m", asked(1_789_913_599, 1_789_999_999, bucket="1m")),
        (b"bucket=1d&start=1759276800", asked(1_759_276_800, bucket="1d")),
        (b"bucket=1d&start=0", asked(0, bucket="1d")),
        (b"group_by=key,model", asked(group_by=("model", "key"))),
        (b"group_by[]=model&group_by[]=key", asked(group_by=("model", "key"))),
        (b"group_by=key&group_by=key", asked(group_by=("key",))),
        (
            b"group_by=tag:team,user,replica,status,endpoint,tag:app,tag:team",
            asked(group_by=("endpoint", "status", "replica", "user", "tag:team", "tag:app")),
        ),
        (b"tenant=acme", asked(tenant="acme")),
        (b"limit=24", asked(limit=24)),
        (b"start=1789900000&page=page_1789920000", asked(1_789_900_000, from_s=1_789_920_000)),
        (b"bucket=1m&start=1789200000&page=page_1789920000", asked(1_789_200_000, from_s=1_789_920_000, bucket="1m")),
    ],
)
def test_what_is_asked(query: bytes, expected: UsageQuery) -> None:
    """Unix seconds or RFC 3339, group_by in each form clients write it, and defaults for the rest."""
    assert parse_query(query) == expected


@pytest.mark.parametrize(
    ("query", "param", "says"),
    [
        (b"start=yesterday", "start", "send Unix seconds (1790000000) or RFC 3339"),
        (b"end=-5", "end", "end is '-5'"),
        (b"start=99999999999999", "start", "send Unix seconds"),
        (b"start=1790000000&end=1790000000", "start", "has to come before end"),
        (b"start=1790000001", "start", "lies in the future"),
        (b"bucket=2h", "bucket", "one of 1m, 1h, 1d"),
        (b"group_by=team", "group_by", "some of model, key, endpoint, status, replica, user and tag:NAME"),
        (b"group_by=tag:", "group_by", "tag:NAME"),
        (b"group_by=tag:a%1fb", "group_by", "tag:NAME"),
        (b"group_by=", "group_by", "group_by=model,key"),
        (b"from=1", "from", "known are bucket, end, group_by, limit, page, start, tenant"),
        (b"start=1&start=2", "start", "given twice"),
        (b"bucket=1m&start=1789300000", "bucket", "kept for 7 days"),
        (b"bucket=1h&start=1779600000", "bucket", "send bucket=1d"),
        (b"limit=0", "limit", "from 1 to 1500"),
        (b"limit=1501", "limit", "from 1 to 1500"),
        (b"page=2", "page", "send next_page of the answer before"),
        (b"page=page_1789920001", "page", "from another query"),
        (b"page=page_3600", "page", "from another query"),
        (b"start=%ff", None, "not readable"),
    ],
)
def test_a_bad_query_is_told_what_to_send(query: bytes, param: str | None, says: str) -> None:
    """400 with the parameter's name and a message that says what would do."""
    refused = parse_query(query)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.param) == (400, param)
    assert says in refused.message


@given(st.binary(max_size=200))
def test_no_query_string_is_a_fault(query: bytes) -> None:
    """Whatever bytes come, the answer is a query or a 400."""
    answer = parse_query(query)
    assert isinstance(answer, UsageQuery) or answer.status == 400


@given(st.dictionaries(st.sampled_from(["start", "end", "bucket", "group_by", "limit", "page"]), st.text(max_size=30)))
def test_no_value_is_a_fault(values: dict[str, str]) -> None:
    """Any text in any parameter is a query or a 400."""
    answer = parse_query(urlencode(values).encode())
    assert isinstance(answer, UsageQuery) or answer.status == 400


def test_retention_is_the_policys() -> None:
    """What is not kept that long is refused with the next wider bucket; a reader that does not know asks for it all."""
    query = b"bucket=1m&start=1788000000"
    assert isinstance(parse(query, NOW, {"1m": 30}), UsageQuery)
    assert isinstance(parse(query, NOW), UsageQuery)
    refused = parse(query, NOW, {"1m": 2, "1h": 3})
    assert isinstance(refused, Refusal)
    assert "kept for 2 days" in refused.message
