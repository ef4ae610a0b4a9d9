"""Whether tokens come, in virtual time: looks every half second, as the fleet does."""

from __future__ import annotations

from gateway.fleet import Liveness
from gateway.fleet._liveness import SILENCE_LEAST_S, SILENCE_MOST_S


def looks(liveness: Liveness, from_s: float, to_s: float, *, streams: int, last_token_s: float | None) -> list[float]:
    """Looks until then; when it stalled."""
    stalls, now_s = [], from_s
    while now_s < to_s:
        now_s += 0.5
        liveness.look(now_s, streams=streams, last_token_s=last_token_s)
        if liveness.stalls:
            stalls.append(now_s)
    return stalls


def test_silence_of_open_streams_is_a_stall_and_their_next_token_ends_it() -> None:
    liveness = Liveness()
    stalls = looks(liveness, 0, 40, streams=3, last_token_s=10.0)
    assert stalls[0] == 10 + SILENCE_LEAST_S + 0.5
    liveness.look(40.5, streams=3, last_token_s=40.2)
    assert not liveness.stalls


def test_silence_without_streams_is_none() -> None:
    """Whether those that are open are read by their clients is the caller's to know."""
    liveness = Liveness()
    liveness.look(1.0, streams=1, last_token_s=1.0)
    assert looks(liveness, 1, 600, streams=0, last_token_s=1.0) == []
    assert looks(liveness, 600, 600 + SILENCE_LEAST_S - 1, streams=1, last_token_s=1.0) == []


def test_a_replica_of_slow_steps_is_given_longer_up_to_a_bound() -> None:
    liveness = Liveness()
    for second in (0, 12, 24):
        assert looks(liveness, second, second + 12, streams=1, last_token_s=float(second)) == []
    stalls = looks(liveness, 36, 100, streams=1, last_token_s=36.0)
    assert 36 + 30 < stalls[0] < 36 + 37
    assert liveness.silence_most_s <= SILENCE_MOST_S
    liveness.look(200.0, streams=1, last_token_s=199.0)
    assert liveness.silence_most_s == SILENCE_MOST_S


def test_counters_that_stand_still_while_the_engine_has_work_are_a_stall() -> None:
    """Answers that come whole show nothing else before they end; an idle engine's counters stand still too."""
    liveness = Liveness()
    for second in range(0, 300, 10):
        liveness.read(float(second), running=0, tokens=1000)
        liveness.look(float(second), streams=0, last_token_s=None)
        assert not liveness.stalls
    stalls = []
    for second in range(300, 400, 10):
        liveness.read(float(second), running=2, tokens=1000)
        liveness.look(float(second), streams=0, last_token_s=None)
        stalls.append(liveness.stalls)
    assert stalls == [False] * 7 + [True] * 3
    liveness.read(400.0, running=2, tokens=1001)
    liveness.look(400.5, streams=0, last_token_s=None)
    assert not liveness.stalls
