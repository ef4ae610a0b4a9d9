"""Requests as they came: when, whose, for what, and how large. Never what they said."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from sys import intern

import msgspec
from msgspec.structs import replace

from gateway.metering import UsageEvent

NOT_SERVED = ("refused", "upstream_lost", "gateway_lost")
"""Of these the sizes of prompt and answer may be missing."""

Sizes = tuple[int, int, int]
"""Input tokens, of which cached, and output tokens."""


class Arrival(msgspec.Struct, gc=False, kw_only=True):
    """One request. The names are those of `mtok usage export --format jsonl`, whose lines can be read as they are; what
    else is in them is not looked at. `arrived_ms` is Unix milliseconds; `input_tokens` includes the cached ones.
    `asked_output_tokens` is the client's own bound, 0 where it named none; `asked_input_tokens` is what a prompt was
    taken for that nobody counted. `count` above 1: so many alike that came from then until
    `ended_ms`, which matters only there.
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
    asked_input_tokens: int = 0
    asked_output_tokens: int = 0
    ended_ms: int = 0
    count: int = 1


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
        asked_input_tokens=event.asked_input_tokens,
        asked_output_tokens=event.asked_output_tokens,
        ended_ms=event.ended_ms if event.count > 1 else 0,
        count=event.count,
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
    """Arrivals in the order in which they came. Of those that nobody counted `imputed` have the answer, and where even
    that is not known the prompt, of another request; `left_out` came to no model, or nobody's sizes are known."""

    arrivals: list[Arrival]
    imputed: int
    left_out: int


def prepared(found: Iterable[Arrival], *, seed: int = 0) -> Prepared:
    """Sorts them and gives sizes to those that were refused before anything was counted: those of a request that was
    served, drawn from the same tenant's for the same model, else from the tenant's, else from all of them; where its
    prompt was estimated that stays, and an answer is no longer than its client allowed. Corrections are no requests.
    The same seed draws the same."""
    arrivals: list[Arrival] = []
    unknown: list[Arrival] = []
    known: defaultdict[tuple[str, str], list[Sizes]] = defaultdict(list)
    left_out = 0
    for one in found:
        if one.status == "correction":
            continue
        if not one.model:
            left_out += one.count
            continue
        one.tenant, one.model, one.key = intern(one.tenant), intern(one.model), intern(one.key)
        one.endpoint, one.status = intern(one.endpoint), intern(one.status)
        alike = [one] if one.count == 1 else _apart(one)
        arrivals += alike
        if not one.input_tokens:
            unknown += alike
        elif one.status not in NOT_SERVED:
            sizes = (one.input_tokens, one.input_cached_tokens, one.output_tokens)
            for where in ((one.tenant, one.model), (one.tenant, ""), ("", "")):
                known[where].append(sizes)
    arrivals.sort(key=_when)
    unknown.sort(key=_when)
    dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
    imputed = 0
    for one in unknown:
        pool = known.get((one.tenant, one.model)) or known.get((one.tenant, "")) or known.get(("", ""))
        if pool is not None:
            _impute(one, dice.choice(pool))
            imputed += 1
    if imputed < len(unknown):
        left_out += len(unknown)
        arrivals = [one for one in arrivals if one.input_tokens]
    return Prepared(arrivals=arrivals, imputed=imputed, left_out=left_out)


def _apart(flood: Arrival) -> list[Arrival]:
    """The requests that it stands for, spread evenly over its time."""
    span_ms = max(0, flood.ended_ms - flood.arrived_ms)
    return [
        replace(flood, arrived_ms=flood.arrived_ms + number * span_ms // flood.count, count=1)
        for number in range(flood.count)
    ]


def _impute(one: Arrival, sizes: Sizes) -> None:
    one.input_tokens, one.input_cached_tokens, one.output_tokens = sizes
    if one.asked_input_tokens:
        one.input_cached_tokens = one.input_cached_tokens * one.asked_input_tokens // one.input_tokens
        one.input_tokens = one.asked_input_tokens
    if one.asked_output_tokens:
        one.output_tokens = min(one.output_tokens, one.asked_output_tokens)


def _when(one: Arrival) -> tuple[int, str, str]:
    return one.arrived_ms, one.tenant, one.key
