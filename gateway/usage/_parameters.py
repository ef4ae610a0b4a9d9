"""The query strings of the usage pages: each fault is a 400 that names the parameter and what to send."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from gateway.errors import Refusal, Refused

_Choice = TypeVar("_Choice", bound=str)

_YEAR_MAX_S: Final = 253_402_300_800  # the year 10000
_FIELDS_MAX: Final = 1000


class Parameters:
    """A query string's parameters, once each, or often: `a=1&a=2` and `a[]=1&a[]=2` are the same for those in
    `repeated`, and `a=1,2` too for those in `lists`."""

    def __init__(
        self,
        query_string: bytes,
        known: Collection[str],
        *,
        lists: Collection[str] = (),
        repeated: Collection[str] = (),
    ) -> None:
        """Raises `Refused` for what is not readable, not known, or there twice."""
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX
            )
        except ValueError:  # UnicodeDecodeError too
            names = ", ".join(sorted(known))
            raise bad(None, f"The query string is not readable; known parameters are {names}.") from None
        self._single: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        for raw_name, value in pairs:
            name = raw_name.removesuffix("[]")
            if name not in known:
                raise bad(name, f"Unknown parameter {quoted(name)}; known are {', '.join(sorted(known))}.")
            if name in lists:
                self._lists.setdefault(name, []).extend(value.split(","))
            elif name in repeated:
                self._lists.setdefault(name, []).append(value)
            elif name in self._single:
                raise bad(name, f"{name} is given twice; send it once.")
            else:
                self._single[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._single or name in self._lists

    def text(self, name: str) -> str | None:
        return self._single.get(name)

    def items(self, name: str) -> list[str]:
        """Of a list; empty when it was not sent."""
        return self._lists.get(name, [])

    def choice(self, name: str, options: Collection[_Choice], default: _Choice) -> _Choice:
        """One of `options`."""
        text = self._single.get(name, default)
        for option in options:
            if option == text:
                return option
        raise bad(name, f"{name} is {quoted(text)}; it is one of {', '.join(options)}.")

    def number(self, name: str, *, default: int, most: int) -> int:
        """A whole number from 1 to `most`."""
        text = self._single.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 12 and 1 <= int(text) <= most):
            raise bad(name, f"{name} is {quoted(text)}; send a whole number from 1 to {most}.")
        return int(text)

    def flag(self, name: str) -> bool | None:
        """`true` or `false`; None when it was not sent."""
        if name not in self._single:
            return None
        return self.choice(name, ("true", "false"), "true") == "true"

    def time_s(self, name: str) -> int | None:
        """Unix seconds from Unix seconds or RFC 3339; None when it was not sent."""
        text = self._single.get(name)
        return None if text is None else _time_s(name, text)

    def span_s(self, start: str, end: str, *, now_s: int, default_s: int) -> tuple[int, int]:
        """`start` <= time < `end`: without an end until now, without a start `default_s` before the end."""
        given_end_s, given_start_s = self.time_s(end), self.time_s(start)
        end_s = now_s + 1 if given_end_s is None else given_end_s  # exclusive, and now belongs to it
        start_s = max(0, end_s - default_s) if given_start_s is None else given_start_s
        if start_s >= end_s:
            if start_s >= now_s and given_end_s is None:
                raise bad(start, f"{start} ({start_s}) lies in the future; now is {now_s}.")
            raise bad(start, f"{start} ({start_s}) has to come before {end} ({end_s}), which is exclusive.")
        return start_s, end_s


def parse_time(name: str, text: str) -> int | Refusal:
    """A time as queries write it, in Unix seconds, or the refusal that says how to write it."""
    try:
        return _time_s(name, text)
    except Refused as refused:
        return refused.refusal


def _time_s(name: str, text: str) -> int:
    """A fraction of a second is cut off."""
    try:
        if text.isascii() and text.isdigit() and len(text) <= 12:
            seconds = int(text)
        else:
            moment = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + arrives as a space
            seconds = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        seconds = -1
    if not 0 <= seconds < _YEAR_MAX_S:
        raise bad(name, f"{name} is {quoted(text)}; send Unix seconds (1790000000) or RFC 3339 (2026-09-21T13:46:40Z).")
    return seconds


def quoted(text: str) -> str:
    """A client's own words in a message, not too many of them."""
    return f"'{text[:40]}'" if len(text) <= 40 else f"'{text[:40]}...'"


def bad(param: str | None, message: str) -> Refused:
    """400, and why."""
    return Refused(Refusal(status=400, code="invalid_value", message=message, param=param))
