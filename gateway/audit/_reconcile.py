"""The ledger held against an engine's own counters, for one replica. Pure: intervals and events in, a verdict out.

The engine's counters are known at *edges*, the moments they were read. Between two edges i < j of one engine process

    engine(i, j) = billed + undelivered + platform loss + not ours

where every term counts what the engine did between the edges. The ledger knows each request's tokens, the most that a
cut one cost beyond them, and when it began and ended, but not when within it the engine counted which token. So a
request that lies wholly between the edges counts exactly, and one that straddles an edge with anything from nothing to
all of it:

    least(i, j) = what is billed of requests that began after i and were surely counted by j
    most(i, j)  = what is billed, undelivered or lost at most, of requests that touch (i, j)

The engine did more than `most`: missing, tokens nobody accounts for. Less than `least`: billed more than was
generated. Both are looked for over every pair of edges, not only neighbours: what is lost in one minute's straddling
shows over a longer span, and what a long span's cut answers could hide shows in a minute without any. With sums that
only grow the worst pair is found in one pass.

Exact: between edges at which no request was running, where no answer was cut. Otherwise known within bounds, which are
the straddling requests' own tokens and the cut ones' undelivered maximum; `missing` is then the least that is missing.

Requests are counted the same way, once by the engine (HTTP requests that ended) and once by the gateways (requests they
sent, counted apart from the ledger). The engine ended more than the ledger has, or runs more sequences at an edge than
straddle it: someone else's traffic, unless the gateways sent them too; then their events are lost. With someone else's
traffic there, missing tokens are theirs. Two limits of that: what other traffic used, while it was fewer requests than
of ours straddle the span's edges, is called missing; and tokens that the ledger lost without losing a request, while
there was other traffic, are taken for its.

An engine that restarts counts from 0. What it did between the last reading and its end is in no counter: a gap, with
its bounds, in which nothing is judged. Pairs of edges never reach across one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final, Literal, NamedTuple

import msgspec

EARLY_MS: Final = 1000
"""Clocks may disagree by so much, and an engine adds to its counters that much after it has sent the tokens."""
CUT_LAG_MS: Final = 10_000
"""A cut answer runs on until the engine notices: 0.3 s measured on a GPU, seconds on an engine short of CPU."""
SENT_LAG_MS: Final = 10_000
"""A request that was sent is counted as such within two of the workers' turns."""


Direction = Literal["input", "output"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("input", "output")
_KINDS: Final = ("engine", "billed", "undelivered", "loss", "not_ours", "in_flight", "unexplained")


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's counters grew by between two readings, summed up by minute. Times are Unix milliseconds: each
    reading lies between a `_from` and a `_to`. `epoch` names the engine's process. `input`, `cached` and `output` are
    tokens, `requests` HTTP requests for GPU time that ended there, `sent` those that gateways sent. `running`
    sequences had not ended when it closed.
    """

    minute_s: int
    epoch: int
    opened_from: int
    opened_to: int
    closed_from: int
    closed_to: int
    input: int = 0
    cached: int = 0
    output: int = 0
    requests: int = 0
    sent: int = 0
    running: int = 0


class Work(NamedTuple):
    """One request's part at this replica, from its event. Tokens as the engine counts them: a prompt once per sample.

    `reason` is the event's status, or `failed_attempt`, of which all is the platform's loss. `cached` is the engine's
    own word only.
    """

    reason: str
    began_ms: int
    ended_ms: int
    input: int = 0
    cached: int = 0
    output: int = 0
    input_beyond: int = 0
    output_beyond: int = 0
    samples: int = 1


LOSS: Final = "failed_attempt"


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """From the last reading of one engine process to the beginning of the next: what was done then is in no counter."""

    start_ms: int
    end_ms: int


class Tokens(msgspec.Struct, kw_only=True):
    """One direction's tokens. `engine` = `billed` + `undelivered` + `loss` + `not_ours` + `in_flight` + `missing` -
    `overbilled`.

    `undelivered_max` is the bound by reason; `undelivered` is what of it the engine did. `in_flight` is of requests
    that straddle an edge, and negative where they were counted before it. `unexplained` alarms.
    """

    engine: int = 0
    billed: int = 0
    undelivered: int = 0
    undelivered_max: dict[str, int] = {}
    loss: int = 0
    not_ours: int = 0
    in_flight: int = 0
    missing: int = 0
    overbilled: int = 0

    @property
    def unexplained(self) -> int:
        return self.missing + self.overbilled


class Row(msgspec.Struct, kw_only=True):
    """A minute, or a whole span. `requests_lost` were sent and have no event; `requests_not_ours` came from elsewhere.
    Times are Unix milliseconds.
    """

    start_ms: int
    end_ms: int
    input: Tokens
    output: Tokens
    cached_engine: int = 0
    cached_billed: int = 0
    cached_overbilled: int = 0
    requests_engine: int = 0
    requests_ledger: int = 0
    requests_not_ours: int = 0
    requests_lost: int = 0

    @property
    def unexplained(self) -> bool:
        tokens = self.input.unexplained + self.output.unexplained + self.cached_overbilled
        return bool(tokens or self.requests_lost)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one replica's tokens: minute by minute, and over everything between gaps, which sees more."""

    rows: list[Row]
    spans: list[Row]
    gaps: list[Gap]

    @property
    def unexplained(self) -> bool:
        return any(row.unexplained for row in (*self.spans, *self.rows))

    def totals(self, direction: Direction) -> dict[str, int]:
        """Tokens of all spans by what became of them."""
        tokens = [span.input if direction == "input" else span.output for span in self.spans]
        return {kind: sum(getattr(one, kind) for one in tokens) for kind in _KINDS}


class _Sums:
    """One quantity at every edge: the engine's count; the ledger's least and most, at the earliest and the latest."""

    def __init__(self, increments: Sequence[int]) -> None:
        self.engine = [0, *accumulate(increments)]
        edges = len(self.engine)
        self._least_counted, self._least_begun = [0] * edges, [0] * edges
        self._most_counted, self._most_begun = [0] * edges, [0] * edges
        self._billed = [0] * edges

    def add(self, begun: int, ended: int, counted: int, least: int, most: int) -> None:
        """Tokens that began before edge `begun`, whose event ended before edge `ended`, counted before `counted`."""
        edges = len(self.engine)
        if begun < edges:
            self._least_begun[begun] += least
            self._most_begun[begun] += most
        if ended < edges:
            self._billed[ended] += least
        if counted < edges:
            self._least_counted[counted] += least
            self._most_counted[counted] += most

    def seal(self) -> None:
        """No more is added."""
        for sums in (self._least_counted, self._least_begun, self._most_counted, self._most_begun, self._billed):
            sums[:] = accumulate(sums)

    def engine_in(self, i: int, j: int) -> int:
        return self.engine[j] - self.engine[i]

    def billed_in(self, i: int, j: int) -> int:
        return self._billed[j] - self._billed[i]

    def straddling(self, edge: int) -> int:
        """The most there can be of what has begun before an edge and was not surely counted by then."""
        return self._most_begun[edge] - self._most_counted[edge]

    def missing(self, first: int, last: int, engine: Sequence[int] | None = None) -> int:
        """The most that any pair of edges in between lacks; `engine` is another count to hold against the ledger."""
        engine = self.engine if engine is None else engine
        most = [count - begun for count, begun in zip(engine, self._most_begun, strict=True)]
        least = [counted - count for count, counted in zip(engine, self._most_counted, strict=True)]
        return _worst(least, most, first, last)

    def overbilled(self, first: int, last: int) -> int:
        """The most by which the engine did less than what is billed, over any pair of edges in between."""
        counted = [least - count for count, least in zip(self.engine, self._least_counted, strict=True)]
        begun = [count - least for count, least in zip(self.engine, self._least_begun, strict=True)]
        return _worst(begun, counted, first, last)


def _worst(opened: Sequence[int], closed: Sequence[int], first: int, last: int) -> int:
    """max(0, opened[i] + closed[j]) over first <= i < j <= last."""
    worst, best = 0, opened[first]
    for j in range(first + 1, last + 1):
        worst = max(worst, best + closed[j])
        best = max(best, opened[j])
    return worst


class _Segment:
    """Edges of one engine process without a gap between them."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self.intervals = intervals
        self.early = [intervals[0].opened_from, *(one.closed_from for one in intervals)]
        self.late = [intervals[0].opened_to, *(one.closed_to for one in intervals)]
        self.input = _Sums([one.input for one in intervals])
        self.output = _Sums([one.output for one in intervals])
        self.cached = _Sums([one.cached for one in intervals])
        self.requests = _Sums([one.requests for one in intervals])
        self.sequences = _Sums([0] * len(intervals))
        self.sent = [0, *accumulate(one.sent for one in intervals)]
        self.input_beyond: list[Counter[str]] = [Counter() for _ in intervals]
        self.output_beyond: list[Counter[str]] = [Counter() for _ in intervals]

    def add(self, work: Work) -> None:
        begun = bisect_left(self.late, work.began_ms - EARLY_MS + 1)
        if begun == len(self.late):
            return
        ended = bisect_left(self.early, work.ended_ms)
        counted = bisect_left(self.early, work.ended_ms + (EARLY_MS if work.reason == "ok" else CUT_LAG_MS))
        self.input.add(begun, ended, counted, work.input, work.input + work.input_beyond)
        self.output.add(begun, ended, counted, work.output, work.output + work.output_beyond)
        self.cached.add(begun, ended, counted, work.cached, work.cached)
        gone = bisect_left(self.early, work.ended_ms + SENT_LAG_MS)
        self.requests.add(begun, ended, gone, 1, 1)
        self.sequences.add(begun, ended, gone, 0, work.samples)
        if 0 < ended < len(self.early) and (work.input_beyond or work.output_beyond):
            self.input_beyond[ended - 1][work.reason] += work.input_beyond
            self.output_beyond[ended - 1][work.reason] += work.output_beyond

    def seal(self) -> None:
        for sums in (self.input, self.output, self.cached, self.requests, self.sequences):
            sums.seal()

    def row(self, i: int, j: int, *, others: bool) -> Row:
        """Everything between edges `i` and `j`. `others`: what is missing is other traffic's."""
        requests = self.requests
        return Row(
            start_ms=self.early[i],
            end_ms=self.late[j],
            input=_tokens(self.input, self.input_beyond, i, j, others=others),
            output=_tokens(self.output, self.output_beyond, i, j, others=others),
            cached_engine=self.cached.engine_in(i, j),
            cached_billed=self.cached.billed_in(i, j),
            cached_overbilled=self.cached.overbilled(i, j),
            requests_engine=requests.engine_in(i, j),
            requests_ledger=requests.billed_in(i, j),
            requests_not_ours=0 if requests.missing(i, j, self.sent) else requests.missing(i, j),
            requests_lost=requests.missing(i, j, self.sent),
        )

    def rows(self) -> tuple[Row, list[Row]]:
        """The whole, then interval by interval."""
        last = len(self.intervals)
        seen = self.requests.missing(0, last) > 0 or any(
            one.running > self.sequences.straddling(edge) for edge, one in enumerate(self.intervals, start=1)
        )
        others = seen and not self.requests.missing(0, last, self.sent)
        return self.row(0, last, others=others), [self.row(k, k + 1, others=others) for k in range(last)]


def _tokens(sums: _Sums, beyond: Sequence[Counter[str]], i: int, j: int, *, others: bool) -> Tokens:
    bounds: Counter[str] = Counter()
    for counts in beyond[i:j]:
        bounds.update(counts)
    loss_max = bounds.pop(LOSS, 0)
    missing, overbilled = sums.missing(i, j), sums.overbilled(i, j)
    engine, billed = sums.engine_in(i, j), sums.billed_in(i, j)
    rest = engine - billed - missing + overbilled
    undelivered = min(max(rest, 0), sum(bounds.values()))
    loss = min(max(rest - undelivered, 0), loss_max)
    return Tokens(
        engine=engine,
        billed=billed,
        undelivered=undelivered,
        undelivered_max={reason: n for reason, n in sorted(bounds.items()) if n},
        loss=loss,
        not_ours=missing if others else 0,
        in_flight=rest - undelivered - loss,
        missing=0 if others else missing,
        overbilled=overbilled,
    )


class Reconciliation:
    """One replica's intervals, to which its events are added one by one, in any order; then `verdict`, once."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        """`intervals` in any order; those whose edges all lie before what is settled."""
        runs: list[list[Interval]] = []
        for one in sorted(intervals, key=lambda one: (one.closed_from, one.opened_from)):
            if runs and runs[-1][-1].epoch == one.epoch and runs[-1][-1].closed_from == one.opened_from:
                runs[-1].append(one)
            else:
                runs.append([one])
        self._segments = [_Segment(run) for run in runs]
        self._gaps = [
            Gap(start_ms=before[-1].closed_to, end_ms=after[0].opened_from) for before, after in pairwise(runs)
        ]

    def add(self, work: Work) -> None:
        """Takes one request's part into account."""
        for segment in self._segments:
            segment.add(work)

    def verdict(self) -> Verdict:
        """What became of the engine's tokens."""
        spans, rows = [], []
        for segment in self._segments:
            segment.seal()
            whole, parts = segment.rows()
            spans.append(whole)
            rows += parts
        return Verdict(rows=rows, spans=spans, gaps=self._gaps)
