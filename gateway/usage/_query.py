"""`/v1/usage`'s query string, checked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import parse_qsl

from gateway.errors import Refusal, Refused
from gateway.store import BUCKET_SECONDS, BucketSize

GroupKey = Literal["model", "key"]

BUCKETS_MAX: Final = 1500
"""Of one answer: a day and an hour of minutes, two months of hours, four years of days."""

DEFAULT_SPAN_S: Final = 86_400

_SIZES: Final[tuple[BucketSize, ...]] = ("1m", "1h", "1d")
_GROUP_KEYS: Final[tuple[GroupKey, ...]] = ("model", "key")
_PARAMETERS: Final = frozenset({"start", "end", "bucket", "group_by", "tenant"})
_KEPT_DAYS: Final[dict[BucketSize, int]] = {"1m": 7, "1h": 120, "1d": 0}
_YEAR_MAX_S: Final = 253_402_300_800  # the year 10000


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """What is asked: `start_s` <= time < `end_s` (Unix seconds), in buckets, split by the keys of `group_by`.

    `tenant` is whose usage, if the query names one; who may name it is the caller's decision.
    """

    start_s: int
    end_s: int
    bucket: BucketSize
    group_by: tuple[GroupKey, ...] = ()
    tenant: str | None = None


def parse_query(query_string: bytes, now_s: int) -> UsageQuery | Refusal:
    """The query, or the 400 that names the parameter and what to send instead.

    Times are Unix seconds or RFC 3339. Without them it is the last 24 hours; without a bucket, hours.
    """
    try:
        return _parse(query_string, now_s)
    except Refused as refused:
        return refused.refusal


def _parse(query_string: bytes, now_s: int) -> UsageQuery:
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:  # UnicodeDecodeError too
        raise _bad(None, "The query string is not readable; send start, end, bucket and group_by.") from None
    single: dict[str, str] = {}
    groups: list[str] = []
    for raw_name, value in pairs:
        name = raw_name.removesuffix("[]")
        if name not in _PARAMETERS:
            raise _bad(name, f"Unknown parameter {_quoted(name)}; known are {', '.join(sorted(_PARAMETERS))}.")
        if name == "group_by":
            groups += value.split(",")
        elif name in single:
            raise _bad(name, f"{name} is given twice; send it once.")
        else:
            single[name] = value
    end_s = _time("end", single["end"]) if "end" in single else now_s + 1  # exclusive, and now belongs to it
    start_s = _time("start", single["start"]) if "start" in single else max(0, end_s - DEFAULT_SPAN_S)
    if start_s >= end_s:
        if start_s >= now_s and "end" not in single:
            raise _bad("start", f"start ({start_s}) lies in the future; now is {now_s}.")
        raise _bad("start", f"start ({start_s}) has to come before end ({end_s}), which is exclusive.")
    bucket = _bucket(single.get("bucket", "1h"))
    _check_span(start_s, end_s, bucket, now_s)
    return UsageQuery(
        start_s=start_s, end_s=end_s, bucket=bucket, group_by=_group_by(groups), tenant=single.get("tenant")
    )


def parse_time(name: str, text: str) -> int | Refusal:
    """A time as queries write it, in Unix seconds, or the refusal that says how to write it."""
    try:
        return _time(name, text)
    except Refused as refused:
        return refused.refusal


def _time(name: str, text: str) -> int:
    """Unix seconds; a fraction of a second is cut off."""
    try:
        if text.isascii() and text.isdigit() and len(text) <= 12:
            seconds = int(text)
        else:
            moment = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + arrives as a space
            seconds = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        seconds = -1
    if not 0 <= seconds < _YEAR_MAX_S:
        raise _bad(
            name, f"{name} is {_quoted(text)}; send Unix seconds (1790000000) or RFC 3339 (2026-09-21T13:46:40Z)."
        )
    return seconds


def _bucket(text: str) -> BucketSize:
    for size in _SIZES:
        if text == size:
            return size
    raise _bad("bucket", f"bucket is {_quoted(text)}; it is one of {', '.join(_SIZES)}.")


def _group_by(names: list[str]) -> tuple[GroupKey, ...]:
    for name in names:
        if name not in _GROUP_KEYS:
            raise _bad("group_by", f"group_by is {_quoted(name)}; it is model, key or both: group_by=model,key.")
    return tuple(key for key in _GROUP_KEYS if key in names)


def _check_span(start_s: int, end_s: int, bucket: BucketSize, now_s: int) -> None:
    kept_s = _KEPT_DAYS[bucket] * 86_400
    if kept_s and start_s < now_s - kept_s:
        wider = _wider(bucket)
        raise _bad(
            "bucket",
            f"Buckets of {bucket} are kept for {kept_s // 86_400} days and start ({start_s}) lies before; "
            f"send bucket={wider}, or a later start.",
        )
    if _count(start_s, end_s, bucket) > BUCKETS_MAX:
        fits = next((size for size in _SIZES if _count(start_s, end_s, size) <= BUCKETS_MAX), None)
        advice = f"send bucket={fits}, or ask for a shorter time" if fits else "ask for a shorter time"
        raise _bad(
            "bucket",
            f"From start to end there are {_count(start_s, end_s, bucket)} buckets of {bucket}, more than the "
            f"{BUCKETS_MAX} of one answer; {advice}.",
        )


def _count(start_s: int, end_s: int, bucket: BucketSize) -> int:
    seconds = BUCKET_SECONDS[bucket]
    return -(-end_s // seconds) - start_s // seconds


def _wider(bucket: BucketSize) -> BucketSize:
    return _SIZES[min(_SIZES.index(bucket) + 1, len(_SIZES) - 1)]


def _quoted(text: str) -> str:
    return f"'{text[:40]}'" if len(text) <= 40 else f"'{text[:40]}...'"


def _bad(param: str | None, message: str) -> Refused:
    return Refused(Refusal(status=400, code="invalid_value", message=message, param=param))
