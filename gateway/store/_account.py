"""The Python face of scripts/account.lua: what it is called with and what it answers. That file says what it does.

Both sides are MessagePack arrays; the structs here keep the script's order of fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, Literal

import msgspec

from ._coalescer import Call
from ._keys import SHARED_PREFIX, BucketSize, TenantKeys

EXACT_MAX: Final = 2**53 - 1
"""Lua's numbers are doubles: integers are exact up to here. In nano-dollars: 9.007 million dollars."""

CALL_MAX: Final = 500
"""Asks, settlements or renewals of one call at most: Lua unpacks up to three values for each, and has room for 8000."""

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

DIMENSIONS: Final[tuple[Dimension | None, ...]] = (
    None,
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
)
"""What refused, by the script's number; None is granted."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a period: `limit` tokens or nano-dollars, as `dimension` has it, in the window named `name`, which
    ends at `end_s` (Unix seconds)."""

    dimension: Dimension
    name: str
    limit: int
    end_s: int

    def __post_init__(self) -> None:
        assert 0 <= self.limit <= EXACT_MAX


class Mode(IntEnum):
    """What a scope's limits do: refuse, tell how much of them is used, or tell that they would have refused."""

    ENFORCE = 0
    SOFT = 1
    AUDIT = 2


class ScopeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one scope is checked against. -1 is unlimited; the `windows` are of budgets, and of tokens. The `name` of a
    scope that tenants share begins with "@", and so do those of its windows; the tenant's own has none."""

    name: str = ""
    mode: Mode = Mode.ENFORCE
    requests_per_minute: int = -1
    tokens_per_minute: int = -1
    concurrent_requests: int = -1
    input_tokens_per_minute: int = -1
    output_tokens_per_minute: int = -1
    concurrent_tokens: int = -1
    windows: tuple[Window, ...] = ()

    @property
    def has_state(self) -> bool:
        """Whether leases have to name it: it has buckets to refund, or counts what runs."""
        return (
            self.requests_per_minute >= 0
            or self.tokens_per_minute >= 0
            or self.concurrent_requests >= 0
            or self.input_tokens_per_minute >= 0
            or self.output_tokens_per_minute >= 0
            or self.concurrent_tokens >= 0
        )

    def limit_of(self, dimension: Dimension) -> tuple[int, Window | None]:
        """One of its limits, which may be -1, and the window that it is of, if it is a window's."""
        for window in self.windows:
            if window.dimension == dimension:
                return window.limit, window
        return getattr(self, dimension), None

    @property
    def has_more(self) -> bool:
        """Whether there are limits beside the first ones; if not, the script does nothing for them."""
        return (
            self.input_tokens_per_minute >= 0
            or self.output_tokens_per_minute >= 0
            or self.concurrent_tokens >= 0
            or bool(self.windows)
        )

    def __post_init__(self) -> None:
        assert self.input_tokens_per_minute <= PER_MINUTE_MAX
        assert self.output_tokens_per_minute <= PER_MINUTE_MAX
        assert self.requests_per_minute <= PER_MINUTE_MAX
        assert self.tokens_per_minute <= PER_MINUTE_MAX


class AccountLimits(ScopeLimits, frozen=True, kw_only=True):
    """The tenant's own. `period` names the budget's current period."""

    budget_nanousd: int = -1
    period: str

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.budget_nanousd <= EXACT_MAX


PER_MINUTE_MAX: Final = 10**10
"""Highest limit per minute: the script counts in 1/60000 units, and a capacity and its refill stay exact."""

WINDOW_TTL_S: Final = 40 * 86_400
"""A window is kept so long after its last new field: a month, and whatever is still booked in it afterwards."""

Settlement = tuple[int, str, str, str, int, int, int, int, int, int, int, int, int]
"""number of its record, member, period, windows (with commas between), reserved_tokens, reserved_ms, used_tokens,
cost_nanousd, requests_back, reserved_input, used_input, reserved_output, used_output"""

Release = tuple[str, int, int, int, int]
"""member, tokens, reserved_ms, input_tokens, output_tokens"""

AskPart = str | int | bool | tuple[int, ...]

UsageSums = tuple[BucketSize, int, dict[str, int]]
"""bucket size, its start in Unix seconds, increments by field"""


class Booking(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one producer, numbered from `first`: applied once, and only after the one before. A resend changes
    nothing; with `skips` the ones before `first` are given up.

    Events that were booked before `events_after_ms` leave the stream. `bucket_kept_s` is how long a bucket is kept
    after its last new field, in seconds; absent or 0 is for ever.
    """

    first: int
    skips: bool
    producer_ttl_s: int
    events_after_ms: int
    events: Sequence[bytes]
    settlements: Sequence[Settlement]
    usage: Sequence[UsageSums]
    bucket_kept_s: Mapping[BucketSize, int] = {}


class Verdict(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the script decided on one ask; -1 stands for unlimited, and for no use in waiting. Scopes are numbers of
    those that were sent, from 1; 0 is the tenant's own. `notes` are flat: scope, dimension, percent used or -1.
    `member` is the lease's where it is not the one asked for."""

    dimension: int
    requests_remaining: int
    requests_reset_ms: int
    tokens_remaining: int
    tokens_reset_ms: int
    asked: int = 0
    available: int = 0
    retry_after_ms: int = 0
    spent_nanousd: int = 0
    reserved_nanousd: int = 0
    scope: int = 0
    requests_scope: int = 0
    tokens_scope: int = 0
    notes: tuple[int, ...] = ()
    member: str = ""


class AccountReply(msgspec.Struct, frozen=True, array_like=True):
    """One call's answer. `now_ms` is the account's time, never before an earlier call's. `last` is the producer's last
    record that is booked."""

    now_ms: int
    last: int
    verdicts: list[Verdict]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AccountReply).decode


def account_call(
    keys: TenantKeys,
    *,
    now_ms: int,
    lease_ttl_ms: int,
    limits: AccountLimits,
    budget_ttl_s: int,
    producer: str,
    away_ms: int = 0,
    renewals: Sequence[str] = (),
    releases: Sequence[Release] = (),
    asks: Sequence[AskPart] = (),
    scopes: Sequence[ScopeLimits] = (),
    shared_by: str = "",
    booking: Booking | None = None,
) -> Call:
    """One call of account.lua. `asks` is flat: member, tokens, nanousd, input_tokens, output_tokens, most_tokens,
    numbers of `scopes` (from 1) or False, member, ... `producer` is whose last record is asked for, and whose booking
    it is. `shared_by` is the tenant's name if leases of it may be of shared scopes."""
    assert len(renewals) <= CALL_MAX
    assert len(releases) <= CALL_MAX
    assert len(asks) <= 7 * CALL_MAX
    names = [keys.limits, keys.leases, keys.events, keys.producer(producer)]
    packed: object = False
    events: Sequence[bytes] = ()
    if booking is not None:
        assert len(booking.settlements) <= CALL_MAX
        events = booking.events
        names.extend(keys.usage(size, start_s) for size, start_s, _ in booking.usage)
        packed = (
            booking.first,
            int(booking.skips),
            producer,
            booking.producer_ttl_s,
            booking.events_after_ms,
            [value for settlement in booking.settlements for value in settlement],
            [_flat_sums(booking.bucket_kept_s.get(size, 0), sums) for size, _, sums in booking.usage],
        )
    payload = (
        now_ms,
        lease_ttl_ms,
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrent_requests,
        limits.budget_nanousd,
        limits.period,
        keys.budget_prefix,
        budget_ttl_s,
        away_ms,
        renewals,
        [value for release in releases for value in release],
        asks,
        packed,
        keys.window_prefix,
        WINDOW_TTL_S,
        _more(limits),
        [_scope(scope) for scope in scopes] or False,
        SHARED_PREFIX,
        shared_by,
    )
    return Call(names, [_encode(payload), *events])


def account_reply(reply: bytes) -> AccountReply:
    """Reads account.lua's answer."""
    return _decode(reply)


def _scope(limits: ScopeLimits) -> object:
    return (
        limits.name,
        int(limits.mode),
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrent_requests,
        _more(limits),
    )


def _more(limits: ScopeLimits) -> object:
    if not limits.has_more:
        return False
    checks: list[str | int] = []
    for window in limits.windows:
        checks += (DIMENSIONS.index(window.dimension), window.name, window.limit, window.end_s * 1000)
    return (limits.input_tokens_per_minute, limits.output_tokens_per_minute, limits.concurrent_tokens, checks)


def _flat_sums(ttl_s: int, sums: dict[str, int]) -> list[str | int]:
    flat: list[str | int] = [ttl_s]
    for field, increment in sums.items():
        flat.append(field)
        flat.append(str(increment))
    return flat
