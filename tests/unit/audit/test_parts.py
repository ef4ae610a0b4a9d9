"""A request's parts at the replicas it was sent to, as the audit holds them against the engines' counters."""

from __future__ import annotations

from gateway.audit._reconcile import Work
from gateway.audit._span import _Billed, _works
from gateway.metering import FailedAttempt
from gateway.wire import Usage


def bounds(work: Work) -> tuple[int, int, int, int]:
    """The least and the most of its input, then of its output."""
    return work.input, work.input + work.input_beyond, work.output, work.output + work.output_beyond


def test_a_stream_that_three_replicas_wrote() -> None:
    """Each did what was delivered of it at least; the prompt is billed where it was read first, and what the others
    read again is within their bounds. Nothing is billed twice."""
    event = _Billed(
        status="ok",
        arrived_ms=1,
        ended_ms=9,
        replica="c",
        usage=Usage(input_tokens=100, output_tokens=20),
        cached_predicted=True,
        failed_attempts=(
            FailedAttempt(
                replica="a", code="lost", output_tokens=12, delivered_input_tokens=100, delivered_output_tokens=8
            ),
            FailedAttempt(replica="b", code="moved", input_tokens=108, output_tokens=7, delivered_output_tokens=5),
        ),
        replayed_input_tokens=113,
    )
    parts = dict(_works(event))
    assert bounds(parts["a"]) == (100, 100, 8, 20)
    assert bounds(parts["b"]) == (0, 108, 5, 12)
    least_in, most_in, least_out, most_out = bounds(parts["c"])
    assert (least_in, most_in, least_out) == (0, 113, 7)
    assert most_out >= 7
    assert sum(work.input for work in parts.values()) == 100
    assert sum(work.output for work in parts.values()) == 20
