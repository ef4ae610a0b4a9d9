"""The usage event: one per request, refused ones included. Never the prompt or the answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.wire import Usage

Status = Literal["ok", "client_gone", "upstream_lost", "engine_error", "refused"]


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used and cost. Times are Unix milliseconds, money is nano-dollars.

    `id` is the request id the client, the engine and the log know. `code` is the refusal's or error's code. `estimated`
    says that not every count came from the engine. `cached_tokens` of an answer that was cut are unknown to vLLM and 0.
    """

    id: str
    tenant: str
    key: str
    model: str
    endpoint: str
    status: Status
    replica: str = ""
    code: str = ""
    usage: Usage = Usage()
    estimated: bool = False
    cost_nanousd: int = 0
    price_epoch: str = ""
    arrived_ms: int
    admitted_ms: int = 0
    first_token_ms: int = 0
    ended_ms: int
