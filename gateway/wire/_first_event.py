"""The first event of a stream, looked at before the status goes out: some engines tell an error there, under a 200.

SGLang answers a stream that it will not run with 200 and `data: {"error": {"code": 503, ...}}`; vLLM does so for what
it finds out after its headers are sent; Anthropic's dialect has `event: error`.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

FIRST_EVENT_MAX_BYTES = 64 * 1024
"""A longer first event is no error: of those vLLM's are the longest, which quote the request."""


class InBandError(Struct, frozen=True):
    """An error that a stream began with, as the HTTP answer that it should have been."""

    status: int
    body: bytes


class _Error(Struct):
    code: int | str | None = None
    status_code: int | str | None = None
    type: str | None = None


class _Event(Struct):
    error: Raw | UnsetType = UNSET
    error_type: str | None = None
    type: str | None = None
    code: int | str | None = None
    message: Raw | UnsetType = UNSET


_event = msgspec.json.Decoder(_Event)
_error = msgspec.json.Decoder(_Error)
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "ServiceUnavailableError": 503,
    "service_unavailable_error": 503,
    "validation": 422,
    "generation": 424,
    "overloaded": 429,
}


def first_event_is_whole(data: bytes) -> bool:
    """Whether what has come of a stream holds its first event."""
    return b"\n\n" in data or b"\r\n\r\n" in data


def in_band_error(data: bytes) -> InBandError | None:
    """The error that the first event of a stream is, if it is one."""
    if b'"error"' not in data:
        return None
    head = data.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    payload = b"\n".join(line[5:].strip() for line in head.split(b"\n") if line.startswith(b"data:"))
    try:
        event = _event.decode(payload)
        if event.error is not UNSET and bytes(event.error)[:1] == b"{":
            error = _error.decode(event.error)
            return InBandError(_status(error), b'{"error":%b}' % bytes(event.error))
    except _UNREADABLE:
        return None
    if event.error is not UNSET and bytes(event.error)[:1] == b'"':  # TGI, as in its HTTP answers
        return InBandError(_status(_Error(type=event.error_type)), payload)
    if event.type == "error":
        return InBandError(_status(_Error(code=event.code)), b'{"error":%b}' % payload)
    return None


def _status(error: _Error) -> int:
    for told in (error.code, error.status_code):
        if isinstance(told, int) or (isinstance(told, str) and told.isdecimal()):
            status = int(told)
            if 400 <= status <= 599:
                return status
        elif told in _STATUS_BY_TYPE:
            return _STATUS_BY_TYPE[told]
    return _STATUS_BY_TYPE.get(error.type or "", 500)
