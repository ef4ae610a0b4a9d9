"""The chaos run's audit finds what is missing, doubled or wrong by one, and nothing where everything agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway.metering import UsageEvent
from gateway.wire import Usage
from loadtest.chaos._audit import Books, differences
from loadtest.chaos._clients import Outcome, Question, Seen, Tokens

ENDED_MS = 1_790_000_000_000
MINUTE_S, HOUR_S, DAY_S = 1_789_999_980, 1_789_999_200, 1_789_948_800


def event(request: str, **changes: Any) -> UsageEvent:
    usage = Usage(input_tokens=7, input_cached_tokens=2, output_tokens=3)
    fields = {"id": request, "tenant": "acme", "key": "k", "model": "m", "endpoint": "/e", "status": "ok"}
    return UsageEvent(
        **{**fields, "usage": usage, "cost_nanousd": 11, "arrived_ms": 0, "ended_ms": ENDED_MS, **changes}
    )


def seen(request: str, outcome: Outcome, **changes: Any) -> Seen:
    return Seen(Question(request, "acme", b"", 10), outcome, **changes)


class Run:
    """Two requests: one answered whole, one refused. Everything agrees, until a test changes something."""

    def __init__(self) -> None:
        self.seen = [
            seen("whole", "complete", status=200, tokens=Tokens(7, 2, 3)),
            seen("no", "refused", status=429, code="rate_limit_exceeded"),
        ]
        refused = event("no", status="refused", code="rate_limit_exceeded", usage=Usage(), cost_nanousd=0)
        self.books = Books(events=[event("whole"), refused], spent=11)
        self.journal = list(self.books.events)
        for size, start_s in (("1m", MINUTE_S), ("1h", HOUR_S), ("1d", DAY_S)):
            for metric, n in (("requests", 1), ("input", 7), ("cached", 2), ("output", 3), ("cost_nanousd", 11)):
                self.books.sums[size, start_s, f"{metric} m k /e ok"] = n  # type: ignore[index]
            self.books.sums[size, start_s, "refused:rate_limit_exceeded m k /e refused"] = 1  # type: ignore[index]

    def differences(self) -> list[str]:
        return differences(self.seen, {"acme": self.books}, {"acme": self.journal})


def test_books_that_agree_have_no_differences() -> None:
    assert Run().differences() == []


def lose_event(run: Run) -> None:
    del run.books.events[0]


def double_event(run: Run) -> None:
    run.books.events.append(run.books.events[1])


def bill_a_token_more(run: Run) -> None:
    usage = Usage(input_tokens=7, input_cached_tokens=2, output_tokens=4)
    run.books.events[0] = run.journal[0] = msgspec.structs.replace(run.books.events[0], usage=usage)


def lose_a_bucket(run: Run) -> None:
    del run.books.sums["1h", HOUR_S, "output m k /e ok"]


def spend_a_nano_dollar(run: Run) -> None:
    run.books.spent += 1


def keep_reserved(run: Run) -> None:
    run.books.reserved = 1


def keep_lease(run: Run) -> None:
    run.books.leases = 1


def lose_refusal(run: Run) -> None:
    run.books.events.pop()


def lose_journal_record(run: Run) -> None:
    run.journal.pop()


def double_journal_record(run: Run) -> None:
    run.journal.append(run.journal[0])


def bill_what_was_never_taken(run: Run) -> None:
    run.seen[0] = seen("whole", "unsent")


def bill_nobodys_request(run: Run) -> None:
    del run.seen[0]


def cut_a_long_stream_without_event(run: Run) -> None:
    run.seen.append(seen("long", "cut", status=200, streamed_s=3.0))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lose_event, "whole of acme (complete 200): no event"),
        (double_event, "no of acme (refused 429 rate_limit_exceeded): 2 events: refused, refused"),
        (bill_a_token_more, "the client saw Tokens(input=7, cached=2, output=3)"),
        (lose_a_bucket, f"acme: output m k /e ok in 1h at {HOUR_S}: events 3, bucket 0"),
        (spend_a_nano_dollar, "acme: events cost 11 nano-dollars, the budget has spent 12"),
        (keep_reserved, "acme: 1 nano-dollars are still reserved"),
        (keep_lease, "acme: 1 leases are still held"),
        (lose_refusal, "no of acme (refused 429 rate_limit_exceeded): no event"),
        (lose_journal_record, "no of acme: in the stream, in no journal"),
        (double_journal_record, "whole of acme: twice in the journals"),
        (bill_what_was_never_taken, "whole of acme (unsent 0): 1 events: ok"),
        (bill_nobodys_request, "whole of acme: nobody asked this"),
        (cut_a_long_stream_without_event, "long of acme (cut 200): no event"),
    ],
)
def test_every_difference_is_told(change: Callable[[Run], None], told: str) -> None:
    run = Run()
    change(run)
    found = run.differences()
    assert any(told in difference for difference in found), found
