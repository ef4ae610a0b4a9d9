"""Whether a replica may get new requests, and why not: what probes say, a circuit breaker, draining, slow start. Pure.

Two kinds of signs. Active ones come from probes and from connections that cannot be made: they take a replica out at
once and put it back when they are right again. Passive ones come from requests (5xx, resets, silence, garbage): they
open a breaker, which one request after a pause may close. 4xx, 429 and 503 say nothing about a replica's health: peers'
breakers took whole fleets down over clients' long prompts and over engines that only were full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

State = Literal["healthy", "starting", "open", "half_open", "quarantined", "draining"]
"""`open`: nothing is sent there. `half_open`: one request is, to see. `quarantined`: it answers, but not rightly.
`starting`: its share of the requests grows. `draining`: nothing new is sent, since an operator says so."""

Reason = Literal[
    "", "new", "refused", "unhealthy", "late", "errors", "lost", "silent", "stalled", "garbage", "model", "drain",
    "joined", "recovered", "restarted",
]  # fmt: skip
"""Why it is in its state. `new`: no probe has been answered yet; `late`: nor have the last few, and no token comes;
`lost`: connections end before answers do; `silent`: answers did not begin; `model`: it serves another one."""

Fault = Literal["errors", "lost", "silent", "garbage"]

FAULTS_LEAST: Final = 3.0
"""So many faults at once open a breaker, where they are at least half of what ends there; older ones count for less."""
HALF_LIFE_S: Final = 10.0
PAUSE_S: Final = 2.0
"""The first pause of a breaker; each that follows one in which the trial failed is twice as long."""
PAUSE_MOST_S: Final = 60.0
STEADY_S: Final = 60.0
"""So long closed, and the next pause is the first again."""
TRIAL_S: Final = 30.0
"""A trial that has not answered for so long lets another begin: it may be a long answer that comes in one piece."""
LATE_MOST: Final = 3
"""An API server busy with a burst of prompts is late for seconds; only so many late answers in a row are an outage."""
LATE_MOST_BUSY: Final = 10
"""While requests run there that show no token before they end, so many."""
SLOW_START_S: Final = 5.0
"""Simulated on 8 H200 replicas that are restarted one every 4 s, in front of a chat: with 5 s the p99 of the first
token's time is 1.04 s, without a slow start 1.00, with 10 s 1.55 and with 30 s 4.36, since the others get too much."""
SHARE_LEAST: Final = 0.1
"""Part of its share that a replica has when it starts."""

_QUARANTINE: Final = frozenset(("stalled", "garbage", "model"))


class Health:
    """One replica's. `admits`: it may get new requests; `share`: the part of its even share that it should have now.

    `now_s` is any clock that does not go back. `changed` is called whenever state, reason, or `admits` has changed.
    """

    __slots__ = (
        "_at_s",
        "_changed",
        "_closed_s",
        "_draining",
        "_faults",
        "_good",
        "_is_open",
        "_late",
        "_late_since_s",
        "_out",
        "_pause_s",
        "_ramp",
        "_ramp_s",
        "_reason_open",
        "_resumes_s",
        "_slow_start_s",
        "_trial_s",
        "admits",
        "detail",
        "is_last_resort",
        "reason",
        "share",
        "since_s",
        "state",
        "well",
    )

    def __init__(self, *, slow_start_s: float = SLOW_START_S, changed: Callable[[], None] | None = None) -> None:
        """It admits nothing until a probe was answered."""
        self.state: State = "open"
        self.reason: Reason = "new"
        self.detail = ""
        self.since_s = 0.0
        self.admits = False
        self.share = 1.0
        self.is_last_resort = False
        """It admits though its breaker is open, since no other replica of a model does either."""
        self.well = 0
        """Requests that were answered rightly since it was looked at: one more may be counted here, where none is on
        trial."""
        self._slow_start_s = slow_start_s
        self._changed = changed or _nobody
        self._draining = False
        self._out: Reason = "new"
        self._late = 0
        self._late_since_s = 0.0
        self._faults = self._good = self._at_s = 0.0
        self._is_open = False
        self._reason_open: Reason = "errors"
        self._resumes_s: float | None = None
        self._trial_s: float | None = None
        self._pause_s = PAUSE_S
        self._closed_s = 0.0
        self._ramp: Reason = ""
        self._ramp_s = 0.0

    @property
    def is_there(self) -> bool:
        """Whether its machine is, and is paid for: something listens, however it does."""
        return self._out not in ("new", "refused")

    @property
    def answers(self) -> bool:
        """Whether its probes say that it is right: only requests may say otherwise."""
        return not self._out

    @property
    def refuses(self) -> bool:
        """Whether no connection could be made last."""
        return self._out == "refused"

    @property
    def is_trial(self) -> bool:
        """Whether the next request is the one that shows whether it is right again."""
        return self.state == "half_open"

    # What probes and connections say.

    def answered(self, now_s: float, *, joins: bool = False) -> None:
        """A probe was answered, and is right. `joins`: a replica that comes to a fleet which serves already."""
        self._late = 0
        if self._out:
            if self._out != "new" or joins:
                self._start(now_s, "joined" if self._out == "new" else "recovered")
            self._out = ""
            self.detail = ""
            if self._is_open:  # it may be another process by now: the next request tells
                self._resumes_s = now_s
        self._settle(now_s)

    def out(self, now_s: float, reason: Literal["refused", "unhealthy", "model"], detail: str = "") -> None:
        """A probe says that it is not right, or no connection can be made."""
        self._out, self.detail = reason, detail
        self._settle(now_s)

    def late(self, now_s: float, *, moved_s: float | None, busy: bool = False) -> None:
        """A probe was not answered in time. As long as tokens come, last at `moved_s`, that alone says nothing.
        `busy`: requests run there."""
        if moved_s is not None and moved_s >= self._late_since_s:
            self._late = 0
        self._late += 1
        if self._late == 1:
            self._late_since_s = now_s
        if not self._out and self._late >= (LATE_MOST_BUSY if busy else LATE_MOST):
            self._out, self.detail = "late", f"{self._late} probes unanswered"
        self._settle(now_s)

    # What requests say.

    def sent(self, now_s: float) -> None:
        """A request has been sent there; to be called where `is_trial`."""
        if self._is_open and self._trial_s is None:
            self._trial_s = now_s
            self._settle(now_s)

    def good(self, now_s: float, *, is_trial: bool = False) -> None:
        """A request was answered rightly."""
        self.well += 1
        if self._is_open and is_trial:
            self._close(now_s)

    def trial_void(self, now_s: float) -> None:
        """The trial ended in a way that says nothing: it is to be made again."""
        self._trial_s = None
        self._settle(now_s)

    def fault(self, now_s: float, kind: Fault, detail: str = "", *, moving: int = 0, is_trial: bool = False) -> None:
        """A request ended by the replica's fault. `moving` others get tokens there right now."""
        self._age(now_s)
        self._faults += 1
        if self._is_open:
            if is_trial:
                self._open(now_s, kind, detail)
        elif self._faults >= FAULTS_LEAST and self._faults >= self._good + moving:
            self._open(now_s, kind, detail)

    def stalled(self, now_s: float, detail: str) -> None:
        """Streams are open there and no token comes; until `moved`, or `emptied`."""
        if not (self._is_open and self._reason_open == "stalled" and self._resumes_s is None):
            self._open(now_s, "stalled", detail)
            self._resumes_s = None
            self._settle(now_s)

    def moved(self, now_s: float) -> None:
        """Tokens come again, of those that did not."""
        if self._is_open and self._reason_open == "stalled":
            self._close(now_s)

    def emptied(self, now_s: float) -> None:
        """The streams whose tokens did not come have ended: after a pause another request tells."""
        if self._is_open and self._resumes_s is None:
            self._resumes_s = now_s + self._pause_s
            self._settle(now_s)

    def restarted(self, now_s: float) -> None:
        """Its process is another one than before, with nothing in its cache, and no faults of its own."""
        self._faults = self._good = 0.0
        self.well = 0
        if not self._out and not self._is_open:
            self._start(now_s, "restarted")
        self._settle(now_s)

    def drain(self, now_s: float, *, on: bool) -> None:
        """An operator wants nothing new sent there, or no longer wants that."""
        if on != self._draining:
            self._draining = on
            self._settle(now_s)

    def tick(self, now_s: float) -> None:
        """About twice a second: pauses end, shares grow."""
        self._age(now_s)
        if self._trial_s is not None and now_s - self._trial_s > TRIAL_S:
            self._trial_s = None
        self._settle(now_s)

    def use_as_last_resort(self, now_s: float, *, on: bool) -> None:
        """See `last_resorts`."""
        if on != self.is_last_resort:
            self.is_last_resort = on
            self._settle(now_s)

    def _age(self, now_s: float) -> None:
        if now_s > self._at_s:
            weight = 0.5 ** ((now_s - self._at_s) / HALF_LIFE_S)
            self._faults *= weight
            self._good *= weight
            self._at_s = now_s
        self._good += self.well
        self.well = 0

    def _open(self, now_s: float, reason: Reason, detail: str) -> None:
        if self._is_open or (self._closed_s and now_s - self._closed_s < STEADY_S):
            self._pause_s = min(PAUSE_MOST_S, 2 * self._pause_s)
        else:
            self._pause_s = PAUSE_S
        self._is_open, self._reason_open, self.detail = True, reason, detail
        self._resumes_s = now_s + self._pause_s
        self._trial_s = None
        self._settle(now_s)

    def _close(self, now_s: float) -> None:
        self._is_open, self._trial_s, self.detail = False, None, ""
        self._faults = self._good = 0.0
        self.well = 0
        self._closed_s = now_s
        self._start(now_s, "recovered")
        self._settle(now_s)

    def _start(self, now_s: float, reason: Reason) -> None:
        if self._slow_start_s > 0:
            self._ramp, self._ramp_s = reason, now_s

    def _settle(self, now_s: float) -> None:
        """State, reason and what follows from them."""
        if self._ramp:
            grown = (now_s - self._ramp_s) / self._slow_start_s
            self.share = min(1.0, max(SHARE_LEAST, grown))
            if grown >= 1:
                self._ramp = ""
        admits = False
        if self._draining:
            now: tuple[State, Reason] = "draining", "drain"
        elif self._out:
            now = ("quarantined" if self._out in _QUARANTINE else "open"), self._out
        elif self._is_open and (self._resumes_s is None or now_s < self._resumes_s):
            now = ("quarantined" if self._reason_open in _QUARANTINE else "open"), self._reason_open
            admits = self.is_last_resort
        elif self._is_open:
            now = "half_open", self._reason_open
            admits = self._trial_s is None or self.is_last_resort
        else:
            now = ("starting", self._ramp) if self._ramp else ("healthy", "")
            admits = True
        if now != (self.state, self.reason) or admits != self.admits:
            if now != (self.state, self.reason):
                self.since_s = now_s
            (self.state, self.reason), self.admits = now, admits
            self._changed()


def last_resorts(replicas: Iterable[Health]) -> list[Health]:
    """Those of one model's that admit requests by necessity: where none admits any by itself, all that answer their
    probes and are out by what requests said alone. What breaks every replica is more likely the requests, and an
    engine that fails half of them still serves half of them.
    """
    able = [health for health in replicas if health.state != "draining" and health.answers]
    if any(health.state in ("healthy", "starting") for health in able):
        return []
    return able


def _nobody() -> None:
    """Nobody hears of changes."""
