"""What is asked of a tenant's account and what it answers. Money is nano-dollars, times are milliseconds."""

from __future__ import annotations

from typing import Literal

import msgspec

Dimension = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "budget_usd",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "concurrent_tokens",
    "tokens_per_day",
    "usd_per_hour",
    "usd_per_day",
    "usd_per_month",
]


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What one request may use. `lease_id` is the request's id; it need not be unique.

    `tokens`, of which `input_tokens` and `output_tokens`, is what it will probably use: limits per minute are held to
    that, and what it uses beyond is their debt. `most_tokens` and `nanousd` are the most it can use: what runs at once,
    and what a day or a budget holds, is held to those. `key` is the public id of the key it came with.
    """

    lease_id: str
    tokens: int
    nanousd: int
    input_tokens: int = 0
    output_tokens: int = 0
    most_tokens: int = 0


class Lease(msgspec.Struct, frozen=True, gc=False):
    """What an admitted request holds until it is settled.

    `member` is its entry in the account, unique. `period` is the budget period that pays for it, even if the request
    ends in a later one; so are the `windows` of its other limits, such as `day:2026-10-03`. `reserved_ms` is the
    account's time when it was taken. `slices` extend it: each holds more of the same, and takes no place of its own.
    """

    member: str
    tenant: str
    period: str
    tokens: int
    nanousd: int
    reserved_ms: int
    input_tokens: int = 0
    output_tokens: int = 0
    windows: tuple[str, ...] = ()
    slices: tuple[Lease, ...] = ()


class Note(msgspec.Struct, frozen=True):
    """What a limit that does not refuse has to tell: `percent` used of a soft one, from 50 on; of an audited one None,
    it would have refused. `scope` is whose it is, empty for the tenant's own; `kind` and `of` name it in metrics. Of a
    limit that has one, `period` (`month:2026-10`) ends at `resets_at_s` (Unix)."""

    kind: str
    of: str
    scope: str
    dimension: Dimension
    limit: int
    percent: int | None
    period: str = ""
    resets_at_s: int = 0

    def holds_until_ms(self, now_ms: int) -> int:
        """When it says nothing any more, if nothing newer does. Without a period that is a minute on: a limit per
        minute has refilled by then."""
        return self.resets_at_s * 1000 or now_ms + 60_000


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How the rate limits stand after a decision. A limit of None is unlimited and its other numbers mean nothing.

    `reset_ms` is the time until the limit is whole again, as OpenAI's headers mean it.
    """

    requests_limit: int | None
    requests_remaining: int
    requests_reset_ms: int
    tokens_limit: int | None
    tokens_remaining: int
    tokens_reset_ms: int


class Grant(msgspec.Struct, frozen=True, gc=False):
    """The request may run. The lease has to be settled, whatever happens."""

    lease: Lease
    standing: Standing
    notes: tuple[Note, ...] = ()


class Denial(msgspec.Struct, frozen=True, kw_only=True):
    """The request may not run; nothing was taken. Of several refusing dimensions this is the one that takes longest.

    `limit`, `asked` and `remaining` are in the dimension's unit: requests, tokens, requests running, nano-dollars.
    `retry_after_ms` is None where waiting does not help. For a budget in dollars the money of `period` splits into
    `spent_nanousd` and what running requests have reserved; `resets_at_s` (Unix) is when the period ends. `scope` is
    whose limit it is, such as `key acme-ci` or `model tiny`; empty for the tenant's own.
    """

    dimension: Dimension
    limit: int
    asked: int
    remaining: int
    retry_after_ms: int | None
    standing: Standing
    spent_nanousd: int = 0
    reserved_nanousd: int = 0
    period: str = ""
    resets_at_s: int = 0
    scope: str = ""
    notes: tuple[Note, ...] = ()

    @property
    def scope_kind(self) -> str:
        """What `scope` is one of: tenant, key, group, model or fleet."""
        return {"": "tenant", "the fleet": "fleet"}.get(self.scope) or self.scope.partition(" ")[0]
