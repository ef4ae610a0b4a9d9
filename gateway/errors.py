"""Every refusal a client can meet: status, OpenAI error JSON, headers.

A `Refusal` is a value. Decisions return it or, where a step has no other answer, raise it inside `Refused`; the
lifecycle turns it into an answer in one place. OpenAI's error object has four keys, all present:
`{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

__all__ = ["Refusal", "Refused", "RefusedBy", "error_body"]

_TYPE_BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
    504: "upstream_error",
}

LONG_WAIT_MS = 60_000
"""Waits above this are not worth an SDK's retry: openai-python up to 1.x stops obeying `Retry-After` at 60 s."""


class RefusedBy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The rule that refused, with its numbers: what the usage event keeps of a refusal, for whoever asks why.

    `dimension` is the rule's name in the policies; `scope` is whose rule it is where it is not the tenant's own, such
    as `key acme-ci`. `limit`, `asked` and `remaining` are in the dimension's unit: requests, tokens, nano-dollars,
    milliseconds of waiting. `reserved` is what requests that still ran held of it. `retry_after_ms` is None where
    waiting alone does not help.
    """

    dimension: str
    scope: str = ""
    limit: int = 0
    asked: int = 0
    remaining: int = 0
    reserved: int = 0
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was not served, as the client reads it.

    `message` says what to change. `retry_after_ms` is when the same request may pass; None when waiting alone does
    not help. `should_retry` False tells OpenAI's SDKs (`x-should-retry`) not to spend their retries on it.
    `refused_by` is for the operator: the event keeps it, the client's answer does not show it.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    type: str | None = None
    retry_after_ms: int | None = None
    should_retry: bool | None = None
    refused_by: RefusedBy | None = None

    def error_type(self) -> str:
        """OpenAI's `type` for this refusal."""
        return self.type or _TYPE_BY_STATUS.get(self.status, "invalid_request_error")

    def body(self) -> bytes:
        """The answer's JSON."""
        return error_body(self.message, type_=self.error_type(), param=self.param, code=self.code)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Retry headers: `Retry-After` in whole seconds (at least 1), `retry-after-ms` exact, `x-should-retry`."""
        headers: list[tuple[bytes, bytes]] = []
        should_retry = self.should_retry
        if self.retry_after_ms is not None:
            wait_ms = max(1, self.retry_after_ms)
            headers.append((b"retry-after", b"%d" % -(-wait_ms // 1000)))
            headers.append((b"retry-after-ms", b"%d" % wait_ms))
            if should_retry is None and wait_ms > LONG_WAIT_MS:
                should_retry = False
        if should_retry is not None:
            headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
        return headers


class Refused(Exception):
    """Carries a `Refusal` out of a step that cannot return one."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def error_body(message: str, *, type_: str, param: str | None, code: str | None) -> bytes:
    """OpenAI's error object as JSON bytes."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})
