"""`/v1/usage`'s query string, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import Refusal, Refused
from gateway.policy import LedgerSpec, check_name
from gateway.store import BUCKET_SECONDS, BucketSize

from ._parameters import Parameters, bad, quoted

GROUP_KEYS: Final = ("model", "key", "endpoint", "status", "replica", "user")
TAG_PREFIX: Final = "tag:"

BUCKETS_MAX: Final = 1500
"""Of one answer: a day and an hour of minutes, two months of hours, four years of days."""

DEFAULT_SPAN_S: Final = 86_400

_SIZES: Final[tuple[BucketSize, ...]] = ("1m", "1h", "1d")
_PARAMETERS: Final = frozenset({"start", "end", "bucket", "group_by", "limit", "page", "tenant"})


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """What is asked: `start_s` <= time < `end_s` (Unix seconds), in buckets, split by the keys of `group_by`: some of
    `GROUP_KEYS`, then tags as `tag:NAME`. `limit` buckets from `from_s` on, which is the start, or a page's cursor.

    `tenant` is whose usage, if the query names one; who may name it is the caller's decision.
    """

    start_s: int
    end_s: int
    from_s: int
    bucket: BucketSize = "1h"
    group_by: tuple[str, ...] = ()
    limit: int = BUCKETS_MAX
    tenant: str | None = None


def kept_days(ledger: LedgerSpec) -> dict[BucketSize, int]:
    """How long a policy keeps buckets that are not kept for ever."""
    return {"1m": ledger.keep_minutes_days, "1h": ledger.keep_hours_days}


def parse_query(query_string: bytes, now_s: int, kept: Mapping[BucketSize, int] | None = None) -> UsageQuery | Refusal:
    """The query, or the 400 that names the parameter and what to send instead.

    Times are Unix seconds or RFC 3339. Without them it is the last 24 hours; without a bucket, hours. `kept` is how
    many days buckets are kept: what lies before is refused rather than shown as nothing.
    """
    try:
        return _parse(Parameters(query_string, _PARAMETERS, lists=("group_by",)), now_s, kept or {})
    except Refused as refused:
        return refused.refusal


def _parse(given: Parameters, now_s: int, kept: Mapping[BucketSize, int]) -> UsageQuery:
    start_s, end_s = given.span_s("start", "end", now_s=now_s, default_s=DEFAULT_SPAN_S)
    bucket = given.choice("bucket", _SIZES, "1h")
    from_s = page_start_s(given, start_s, end_s, BUCKET_SECONDS[bucket])
    check_kept(from_s, bucket, now_s, kept, param="bucket")
    return UsageQuery(
        start_s=start_s,
        end_s=end_s,
        from_s=from_s,
        bucket=bucket,
        group_by=_group_by(given.items("group_by")) if "group_by" in given else (),
        limit=given.number("limit", default=BUCKETS_MAX, most=BUCKETS_MAX),
        tenant=given.text("tenant"),
    )


def page_start_s(given: Parameters, start_s: int, end_s: int, seconds: int) -> int:
    """Where a page begins: at its cursor, which is the start of its first bucket, else where the time begins."""
    text = given.text("page")
    if text is None:
        return start_s
    digits = text.removeprefix("page_")
    if not (text != digits and digits.isascii() and digits.isdigit() and len(digits) <= 12):
        raise bad("page", f"page is {quoted(text)}; send next_page of the answer before, or leave it out.")
    cursor_s = int(digits)
    if cursor_s % seconds or not start_s <= cursor_s < end_s:
        raise bad("page", "page is from another query; send the same start, end and bucket with it.")
    return cursor_s


def page_cursor(next_s: int, end_s: int) -> str | None:
    """The cursor of the page whose first bucket begins at `next_s`; None when the time has ended."""
    return f"page_{next_s}" if next_s < end_s else None


def _group_by(names: list[str]) -> tuple[str, ...]:
    tags = []
    for name in names:
        if name.startswith(TAG_PREFIX) and check_name(name.removeprefix(TAG_PREFIX)) is None:
            tags.append(name)
        elif name not in GROUP_KEYS:
            choices = ", ".join(GROUP_KEYS)
            raise bad(
                "group_by", f"group_by is {quoted(name)}; it is some of {choices} and tag:NAME: group_by=model,key."
            )
    return (*(key for key in GROUP_KEYS if key in names), *dict.fromkeys(tags))


def check_kept(from_s: int, bucket: BucketSize, now_s: int, kept: Mapping[BucketSize, int], *, param: str) -> None:
    """Refuses a time that its buckets are no longer kept of; `param` is what the query calls their size."""
    days = kept.get(bucket)
    if days is not None and from_s < now_s - days * 86_400:
        wider = _SIZES[_SIZES.index(bucket) + 1]
        raise bad(
            param,
            f"Buckets of {bucket} are kept for {days} days and start ({from_s}) lies before; "
            f"send {param}={wider}, or a later start.",
        )
