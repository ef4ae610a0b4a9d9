"""The usage event: one per request, refused ones included; of a flood of refusals, one for those alike. Never the
prompt or the answer."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from gateway.errors import RefusedBy
from gateway.routing import Expected
from gateway.wire import NO_USAGE, Usage

Status = Literal["ok", "client_gone", "upstream_lost", "engine_error", "gateway_lost", "refused", "correction"]

EVENT_VERSION: Final = 2
"""Version 1 had no `v`. A reader takes every version up to its own; new fields have defaults."""


class FailedAttempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt at another replica that failed: the platform's loss, billed to nobody.

    `input_tokens` and `output_tokens` are the most it can have burnt there; a replica that refused the connection, or
    said that it is busy, burnt nothing. One that was lost in mid-stream, where another went on, also had done what is
    `delivered`: that is in the event's `usage`, and billed once.
    """

    replica: str
    code: str
    input_tokens: int = 0
    output_tokens: int = 0
    delivered_input_tokens: int = 0
    delivered_output_tokens: int = 0


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request used and cost. Times are Unix milliseconds, money is nano-dollars.

    `id` is the request id the client, the engine and the log know; `pool` the replica's, where its model has several.
    `code` is the refusal's or error's code. `estimated` says that not every count came from the engine,
    `cached_predicted` that the cached share is what the prefix index expected, since vLLM tells it only at the end.
    `samples` is how often the engine counted the input: once per sample, at least. `user` and `tags` are what the
    client's request said of itself, for splitting usage. `policy` is the version of the policies that decided on it,
    `refused_by` the rule of theirs that refused it; `queued_ms` is how long it waited for a replica with room.
    `asked_output_tokens` is the longest answer that its client allowed, 0: it named none; `asked_input_tokens` is what
    its prompt was taken for where it was refused before anybody counted it.

    `placed` is what was expected when it was placed last: first at its replica, then at those it did not go to.

    `continued` is how often another replica went on with what one had begun; `replica` is the last, which was sent a
    prompt of `replayed_input_tokens` for that, the platform's loss.

    An answer that was cut may have cost the engine more than was delivered and billed: at most `undelivered_input_max`
    tokens more than `usage.input_tokens` × `samples`, and `undelivered_output_max` more than `usage.output_tokens`.
    `gateway_lost` is an answer whose gateway died; it was billed at its last
    checkpoint. A `correction` refers to the event it corrects and holds the difference, which may be negative.

    `count` above 1: so many requests alike were refused from `arrived_ms` to `ended_ms`, of which this is the first.
    """

    v: int = msgspec.field(default_factory=lambda: EVENT_VERSION)  # always written, though other defaults are not
    id: str
    tenant: str
    key: str
    model: str
    endpoint: str
    status: Status
    replica: str = ""
    pool: str = ""
    code: str = ""
    usage: Usage = NO_USAGE
    estimated: bool = False
    cached_predicted: bool = False
    cost_nanousd: int = 0
    price_epoch: str = ""
    arrived_ms: int
    admitted_ms: int = 0
    first_token_ms: int = 0
    ended_ms: int
    samples: int = 1
    undelivered_input_max: int = 0
    undelivered_output_max: int = 0
    failed_attempts: tuple[FailedAttempt, ...] = ()
    user: str = ""
    tags: dict[str, str] = {}
    corrects: str = ""
    reason: str = ""
    policy: str = ""
    queued_ms: int = 0
    refused_by: RefusedBy | None = None
    asked_input_tokens: int = 0
    asked_output_tokens: int = 0
    count: int = 1
    continued: int = 0
    replayed_input_tokens: int = 0
    placed: tuple[Expected, ...] = ()
