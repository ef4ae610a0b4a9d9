"""Requests as they came: when, whose, for what, and how large. Never what they said."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from sys import intern

import msgspec

from gateway.metering import UsageEvent

NOT_SERVED = ("refused", "upstream_lost", "gateway_lost")
"""Of these the sizes of prompt and answer may be missing."""

Sizes = tuple[int, int, int]
"""Input tokens, of which cached, and output tokens."""


class Arrival(msgspec.Struct, gc=False, kw_only=True):
    """One request. The names are those of `mtok usage export --format jsonl`, whose lines can be read as they are; what
    else is in them is not looked at. `arrived_ms` is Unix milliseconds; `input_tokens` includes the cached ones.
    """

    arrived_ms: int
    tenant: str
    model: str
    key: str = ""
    endpoint: str = ""
    status: str = "ok"
    input_tokens: int = 0
    input_cached_tokens: int = 0
    output_tokens: int = 0


_decoder = msgspec.json.Decoder(Arrival)


def arrival_of(event: UsageEvent) -> Arrival:
    """The request behind a usage event."""
    usage = event.usage
    return Arrival(
        arrived_ms=event.arrived_ms,
        tenant=event.tenant,
        model=event.model,
        key=event.key,
        endpoint=event.endpoint,
        status=event.status,
        input_tokens=usage.input_tokens,
        input_cached_tokens=usage.input_cached_tokens,
        output_tokens=usage.output_tokens,
    )


def read_lines(lines: Iterable[bytes]) -> Iterator[Arrival]:
    """Arrivals of a file of JSON lines.

    Raises:
        ValueError: a line is none; the message says which and why.
    """
    decode = _decoder.decode
    for number, line in enumerate(lines, 1):
        try:
            yield decode(line)
        except msgspec.DecodeError as error:
            if line.strip():
                raise ValueError(f"line {number} is no arrival: {error}") from error


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals in the order in which they came. Of those whose sizes are not known `imputed` have the sizes of another
    request of their tenant, or of anybody; `left_out` came to no model, or nobody's sizes are known."""

    arrivals: list[Arrival]
    imputed: int
    left_out: int


def prepared(found: Iterable[Arrival], *, seed: int = 0) -> Prepared:
    """Sorts them and gives a size to those that were refused before anything was counted: that of a request that was
    served, drawn from the same tenant's for the same model, else from the tenant's, else from all of them. Corrections
    are no requests. The same seed draws the same."""
    arrivals: list[Arrival] = []
    unknown: list[Arrival] = []
    known: defaultdict[tuple[str, str], list[Sizes]] = defaultdict(list)
    left_out = 0
    for one in found:
        if one.status == "correction":
            continue
        if not one.model:
            left_out += 1
            continue
        one.tenant, one.model, one.key = intern(one.tenant), intern(one.model), intern(one.key)
        one.endpoint, one.status = intern(one.endpoint), intern(one.status)
        arrivals.append(one)
        if one.input_tokens:
            if one.status not in NOT_SERVED:
                sizes = (one.input_tokens, one.input_cached_tokens, one.output_tokens)
                for where in ((one.tenant, one.model), (one.tenant, ""), ("", "")):
                    known[where].append(sizes)
        else:
            unknown.append(one)
    arrivals.sort(key=_when)
    unknown.sort(key=_when)
    dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
    imputed = 0
    for one in unknown:
        pool = known.get((one.tenant, one.model)) or known.get((one.tenant, "")) or known.get(("", ""))
        if pool is not None:
            one.input_tokens, one.input_cached_tokens, one.output_tokens = dice.choice(pool)
            imputed += 1
    if imputed < len(unknown):
        left_out += len(unknown)
        arrivals = [one for one in arrivals if one.input_tokens]
    return Prepared(arrivals=arrivals, imputed=imputed, left_out=left_out)


def _when(one: Arrival) -> tuple[int, str, str]:
    return one.arrived_ms, one.tenant, one.key
