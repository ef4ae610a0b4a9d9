"""The reconciliation as properties: the truth is never unexplained, and nothing that vanishes stays unseen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import Interval, Reconciliation, Verdict, Work
from gateway.audit._reconcile import CUT_LAG_MS, LOSS, SENT_LAG_MS
from gateway.fleet._counters import Reading, advance

T0_MS = 1_790_000_000_000
SPAN_MS = 300_000
QUIET_MS = max(CUT_LAG_MS, SENT_LAG_MS) + 5_000


@dataclass
class Truth:
    """What an engine did, tick by tick, and what the ledger says of it."""

    ticks: list[tuple[int, str, int]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    running: list[tuple[int, int]] = field(default_factory=list)

    def at(self, restarts: list[int], time_ms: int) -> dict[str, int]:
        """The counters at that time: only what happened since the last restart."""
        began = max((one for one in restarts if one <= time_ms), default=0)
        counters = {"prompt": 0, "generation": 0, "requests": 0}
        for tick_ms, metric, n in self.ticks:
            if began <= tick_ms <= time_ms:
                counters[metric] += n
        return counters


def intervals(truth: Truth, scrapes: list[int], restarts: list[int]) -> list[Interval]:
    """What a scraper would have written down: the increments of each reading, here one interval for each."""
    found: list[Interval] = []
    last: tuple[int, Reading] | None = None
    sent_before = 0
    for at in scrapes:
        started = max((one for one in restarts if one <= at), default=-50_000)
        reading = Reading(
            asked_ms=T0_MS + at,
            answered_ms=T0_MS + at + 40,
            started_ms=T0_MS + started,
            counters=truth.at(restarts, at + 20),
            running=sum(max(began, started) == began <= at + 20 < ended for began, ended in truth.running),
        )
        added = advance(last, reading)
        last = (added.epoch, reading)
        sent = sum(1 for one in truth.sent if one <= at)
        found.append(
            Interval(
                minute_s=0,
                epoch=added.epoch,
                opened_from=added.opened[0],
                opened_to=added.opened[1],
                closed_from=added.closed[0],
                closed_to=added.closed[1],
                input=added.increments.get("prompt", 0),
                output=added.increments.get("generation", 0),
                requests=added.increments.get("requests", 0),
                running=reading.running,
                sent=0 if added.is_first else sent - sent_before,
            )
        )
        sent_before = sent
    return found


def verdict(found: list[Interval], works: list[Work]) -> Verdict:
    reconciliation = Reconciliation(found)
    for work in works:
        reconciliation.add(work._replace(began_ms=work.began_ms + T0_MS, ended_ms=work.ended_ms + T0_MS))
    return reconciliation.verdict()


def spread(draw: Any, truth: Truth, metric: str, total: int, start: int, end: int, restarts: list[int]) -> int:
    """`total` tokens at up to three moments from `start` to `end`; a restart on the way ends it. Returns those done."""
    death = min((one for one in restarts if start < one), default=SPAN_MS * 9)
    done = 0
    for part in (total // 3, total // 3, total - 2 * (total // 3)):
        at = draw(st.integers(start, end))
        if at < death:
            truth.ticks.append((at, metric, part))
            done += part
    return done


@st.composite
def truths(draw: Any, *, foreign: bool = True, cut: bool = True, restarting: bool = True) -> tuple[Truth, list[int]]:
    """Requests of every kind between two quiet times, and the engine's restarts."""
    restarts = sorted(draw(st.sets(st.integers(20_000, SPAN_MS - 20_000), max_size=2))) if restarting else []
    truth = Truth()
    kinds = ["ok", *(["client_gone", "gateway_lost", LOSS] if cut else []), *(["other"] if foreign else [])]
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(kinds))
        began = draw(st.integers(0, SPAN_MS))
        ended = began + draw(st.integers(1, 150_000))
        died = any(began < one <= ended for one in restarts)
        late = ended + draw(st.integers(0, CUT_LAG_MS - 2_000)) if kind != "ok" else ended
        truth.running.append((began, late))
        prompt, output = draw(st.integers(1, 5_000)), draw(st.integers(0, 3_000))
        input_done = spread(draw, truth, "prompt", prompt, began, late, restarts)
        output_done = spread(draw, truth, "generation", output, began, late, restarts)
        if not died:
            truth.ticks.append((late if kind != "ok" else ended, "requests", 1))
        if kind == "other":
            continue
        truth.sent.append(began)
        if kind == LOSS:
            truth.works.append(Work(LOSS, began, ended, 0, 0, 0, prompt, output))
            continue
        reason = "upstream_lost" if died and kind == "ok" else kind
        if reason == "ok":
            truth.works.append(Work(reason, began, ended, input_done, 0, output_done))
            continue
        billed = draw(st.integers(0, output_done))
        billed_input = draw(st.sampled_from([0, input_done]))
        truth.works.append(Work(reason, began, ended, billed_input, 0, billed, prompt - billed_input, output - billed))
    return truth, restarts


def readings() -> st.SearchStrategy[list[int]]:
    """Readings at any time, the first and the last of them when all is quiet."""
    times = st.sets(st.integers(0, SPAN_MS + 150_000), max_size=30)
    first, last = -QUIET_MS, SPAN_MS + 150_000 + CUT_LAG_MS + QUIET_MS
    return times.map(lambda found: [first, *sorted(found), last])


@settings(max_examples=200, deadline=None)
@given(truths(foreign=False) | truths(restarting=False), readings())
def test_the_truth_is_explained(case: tuple[Truth, list[int]], scrapes: list[int]) -> None:
    """Finished, cut, straddling, failed and other people's requests, restarts in between: nothing is unexplained, and
    what the rows say adds up to what the engine counted. Not other people's and restarts at once: a restart may come
    while one of theirs runs beside one of ours, which cannot be told from tokens lost."""
    truth, restarts = case
    found = intervals(truth, scrapes, restarts)
    told = verdict(found, truth.works)
    for row in (*told.spans, *told.rows):
        assert not row.unexplained, row
        for tokens in (row.input, row.output):
            parts = tokens.billed + tokens.undelivered + tokens.loss + tokens.not_ours + tokens.in_flight
            assert tokens.engine == parts + tokens.missing - tokens.overbilled
    assert sum(row.output.engine for row in told.rows) == sum(one.output for one in found)
    assert len(told.gaps) == len(told.spans) - 1


@settings(max_examples=200, deadline=None)
@given(truths(foreign=False, cut=False, restarting=False), readings(), st.data())
def test_what_vanishes_is_unexplained(case: tuple[Truth, list[int]], scrapes: list[int], data: st.DataObject) -> None:
    """An event that is lost, tokens billed less or more than were generated: found, and to the token."""
    truth, restarts = case
    if not truth.works:
        return
    victim = data.draw(st.integers(0, len(truth.works) - 1))
    work = truth.works[victim]
    how = data.draw(st.sampled_from(["event", "less", "more"]))
    works = list(truth.works)
    k = data.draw(st.integers(1, 500))
    if how == "event":
        del works[victim]
        told = verdict(intervals(truth, scrapes, restarts), works)
        assert told.spans[0].requests_lost == 1
        assert told.spans[0].output.missing == work.output
        assert told.spans[0].input.missing == work.input
    else:
        sign = 1 if how == "more" else -1
        k = min(k, work.input) if sign < 0 else k
        works[victim] = work._replace(input=work.input + sign * k)
        told = verdict(intervals(truth, scrapes, restarts), works)
        tokens = told.spans[0].input
        assert (tokens.overbilled if sign > 0 else tokens.missing) == k
        assert tokens.engine == tokens.billed + tokens.missing - tokens.overbilled
    assert told.unexplained


def test_what_others_send_is_not_ours() -> None:
    """A request that did not come through a gateway: its tokens are not ours, and nobody's fault."""
    truth = Truth(ticks=[(1_000, "prompt", 7), (2_000, "generation", 20), (2_000, "requests", 1)])
    span = verdict(intervals(truth, [-60_000, 60_000], []), []).spans[0]
    assert (span.input.not_ours, span.output.not_ours, span.requests_not_ours) == (7, 20, 1)
    assert not span.unexplained


def test_what_a_cut_answer_cost_beyond_its_bill_is_told_by_reason() -> None:
    """20 tokens generated, 12 billed, at most 10 more: 8 are undelivered, since the client left."""
    truth = Truth(
        ticks=[(1_000, "prompt", 7), (2_000, "generation", 20), (2_000, "requests", 1)],
        sent=[500],
        works=[Work("client_gone", 500, 1_900, 7, 0, 12, 0, 10)],
    )
    tokens = verdict(intervals(truth, [-60_000, 60_000], []), truth.works).spans[0].output
    assert (tokens.engine, tokens.billed, tokens.undelivered) == (20, 12, 8)
    assert tokens.undelivered_max == {"client_gone": 10}


def test_a_restart_is_a_gap_with_its_bounds() -> None:
    """From the last reading to the new process nothing is known; the new counters count whole."""
    truth = Truth(ticks=[(10_000, "generation", 5), (25_000, "generation", 9), (41_000, "generation", 3)])
    told = verdict(intervals(truth, [0, 20_000, 50_000, 60_000], [40_000]), [])
    assert [(gap.start_ms - T0_MS, gap.end_ms - T0_MS) for gap in told.gaps] == [(20_040, 40_000)]
    assert [span.output.engine for span in told.spans] == [5, 3]
