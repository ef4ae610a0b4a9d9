"""Whether a replica may get requests, by what probes and requests say of it, in virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet import Health, last_resorts
from gateway.fleet._health import (
    LATE_MOST,
    LATE_MOST_BUSY,
    PAUSE_MOST_S,
    PAUSE_S,
    SHARE_LEAST,
    SLOW_START_S,
    STEADY_S,
    TRIAL_S,
)


def serving(now_s: float = 0.0) -> Health:
    """A replica that has answered its first probe."""
    health = Health()
    health.answered(now_s)
    assert (health.state, health.admits, health.share) == ("healthy", True, 1.0)
    return health


def broken(now_s: float) -> Health:
    """A replica whose breaker has opened then."""
    health = serving()
    for _ in range(3):
        health.fault(now_s, "errors", "answered 500")
    assert (health.state, health.reason, health.admits) == ("open", "errors", False)
    return health


def on_trial(health: Health, now_s: float) -> None:
    """Its pause has ended, and one request is sent there."""
    health.tick(now_s)
    assert (health.state, health.admits) == ("half_open", True)
    health.sent(now_s)
    assert (health.state, health.admits) == ("half_open", False)


def test_a_replica_gets_nothing_before_it_has_answered() -> None:
    health = Health()
    assert (health.state, health.reason, health.admits) == ("open", "new", False)


def test_three_faults_in_a_row_open_the_breaker_and_two_do_not() -> None:
    health = serving()
    health.fault(1.0, "lost")
    health.fault(1.0, "lost")
    assert health.admits
    health.fault(1.0, "lost", "reset")
    assert (health.state, health.reason, health.detail) == ("open", "lost", "reset")


def test_faults_among_as_many_good_answers_open_nothing() -> None:
    """What fails a third of a replica's requests is worse at the others: most likely it is the requests."""
    health = serving()
    for second in range(300):
        health.good(second / 10)
        health.good(second / 10)
        health.fault(second / 10, "errors")
    assert health.admits


def test_faults_while_many_streams_run_well_open_nothing() -> None:
    health = serving()
    for _ in range(5):
        health.fault(1.0, "errors", moving=20)
    assert health.admits


def test_faults_far_apart_open_nothing() -> None:
    health = serving()
    for minute in range(10):
        health.fault(60.0 * minute, "lost")
    assert health.admits


def test_one_request_closes_the_breaker_and_its_share_grows() -> None:
    """A trial goes to the replica after the pause, and only one; its success brings the others back, a few at first."""
    health = broken(10.0)
    health.tick(10.0 + PAUSE_S - 0.1)
    assert not health.admits
    on_trial(health, 10.0 + PAUSE_S)
    health.good(13.0, is_trial=True)
    assert (health.state, health.reason, health.admits, health.share) == ("starting", "recovered", True, SHARE_LEAST)
    health.tick(13.0 + SLOW_START_S / 2)
    assert health.share == 0.5
    health.tick(13.0 + SLOW_START_S)
    assert (health.state, health.share) == ("healthy", 1.0)


def test_each_failed_trial_doubles_the_pause_up_to_a_bound() -> None:
    health, now_s, pauses = broken(0.0), 0.0, []
    for _ in range(8):
        began_s = now_s
        while not health.admits:
            now_s += 0.5
            health.tick(now_s)
        pauses.append(now_s - began_s)
        on_trial(health, now_s)
        health.fault(now_s, "errors", is_trial=True)
    assert pauses == [PAUSE_S * 2**number for number in range(5)] + [PAUSE_MOST_S] * 3


def test_a_breaker_that_opens_again_soon_pauses_longer_and_one_that_held_does_not() -> None:
    health = broken(0.0)
    on_trial(health, PAUSE_S)
    health.good(PAUSE_S, is_trial=True)
    for _ in range(3):
        health.fault(3.0, "errors")
    health.tick(3.0 + PAUSE_S)
    assert health.state == "open"
    on_trial(health, 3.0 + 2 * PAUSE_S)
    health.good(8.0, is_trial=True)
    later_s = 8.0 + STEADY_S
    for _ in range(3):
        health.fault(later_s, "errors")
    on_trial(health, later_s + PAUSE_S)


def test_old_answers_close_no_breaker_and_a_void_trial_is_made_again() -> None:
    """Streams from before the breaker opened may end well; a trial whose client hung up has shown nothing."""
    health = broken(0.0)
    on_trial(health, PAUSE_S)
    health.good(PAUSE_S)
    assert health.state == "half_open"
    health.trial_void(PAUSE_S)
    on_trial(health, PAUSE_S)
    health.tick(PAUSE_S + TRIAL_S + 0.1)
    assert health.admits, "a trial that takes this long is not waited for"


def test_a_refused_connection_takes_it_out_and_an_answer_brings_it_back() -> None:
    health = serving()
    health.out(5.0, "refused", "connection refused")
    assert (health.state, health.reason, health.admits, health.refuses) == ("open", "refused", False, True)
    health.answered(7.0)
    assert (health.state, health.reason, health.share) == ("starting", "recovered", SHARE_LEAST)


def test_a_late_health_page_ejects_nobody_whose_tokens_come() -> None:
    """A busy vLLM answers `/health` late; one that gives no token either is away."""
    health = serving()
    for second in range(0, 100, 2):
        health.late(float(second), moved_s=second - 0.1)
        assert health.admits
    for second in range(100, 98 + 2 * LATE_MOST, 2):
        assert health.admits
        health.late(float(second), moved_s=97.9)
    assert (health.state, health.reason) == ("open", "late")


def test_a_late_health_page_weighs_less_while_answers_run_that_show_no_token() -> None:
    """Those that come whole: the engine may be busy with them."""
    health = serving()
    for second in range(LATE_MOST_BUSY - 1):
        health.late(float(second), moved_s=None, busy=True)
    assert health.admits
    health.late(100.0, moved_s=None, busy=True)
    assert (health.state, health.reason) == ("open", "late")


def test_late_probes_count_in_a_row() -> None:
    health = serving()
    for second in range(0, 40, 4):
        health.late(float(second), moved_s=None)
        health.late(second + 1.0, moved_s=None)
        health.answered(second + 2.0)
    assert health.state == "healthy"


def test_the_wrong_model_and_stalls_are_quarantines() -> None:
    health = serving()
    health.out(1.0, "model", "it serves x")
    assert (health.state, health.reason) == ("quarantined", "model")
    health.answered(3.0)
    assert health.admits
    health.stalled(4.0, "no token")
    assert (health.state, health.reason) == ("quarantined", "stalled")
    health.tick(1000.0)
    assert not health.admits, "as long as nothing comes there is nothing to try"
    health.moved(1001.0)
    assert (health.state, health.reason) == ("starting", "recovered")


def test_a_stalled_replica_without_streams_left_gets_a_trial() -> None:
    health = serving()
    health.stalled(4.0, "no token")
    health.emptied(10.0)
    assert not health.admits
    on_trial(health, 10.0 + PAUSE_S)
    health.fault(20.0, "silent", is_trial=True)
    assert (health.state, health.reason) == ("open", "silent")


def test_draining_goes_before_everything_and_can_be_undone() -> None:
    health = serving()
    health.drain(1.0, on=True)
    assert (health.state, health.reason, health.admits) == ("draining", "drain", False)
    health.out(2.0, "refused")
    health.answered(3.0)
    assert health.state == "draining"
    health.drain(SLOW_START_S + 3.0, on=False)
    assert (health.state, health.admits) == ("healthy", True)


def test_a_replica_that_joins_or_restarts_starts_slowly_and_those_at_the_start_do_not() -> None:
    joined = Health()
    joined.answered(0.0, joins=True)
    assert (joined.state, joined.reason, joined.share) == ("starting", "joined", SHARE_LEAST)
    health = serving()
    health.restarted(1.0)
    assert (health.state, health.reason, health.share) == ("starting", "restarted", SHARE_LEAST)
    at_once = Health(slow_start_s=0)
    at_once.answered(0.0, joins=True)
    assert (at_once.state, at_once.share) == ("healthy", 1.0)


def test_the_last_of_a_model_serve_on_where_only_requests_speak_against_them() -> None:
    """A fleet does not go to zero by passive signs; nor is one kept that refuses connections, or drains."""
    one, two, gone, leaving = broken(0.0), broken(0.0), serving(), serving()
    gone.out(0.0, "refused")
    leaving.drain(0.0, on=True)
    assert last_resorts([one, two, gone, leaving]) == [one, two]
    one.use_as_last_resort(0.0, on=True)
    assert (one.state, one.admits) == ("open", True)
    one.use_as_last_resort(0.0, on=False)
    assert not one.admits
    assert last_resorts([one, two, serving()]) == []
    assert last_resorts([gone]) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["answered", "out", "late", "good", "fault", "trial", "void", "stalled", "moved", "emptied", "restart"]
        ),
        st.integers(0, 100),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_a_replica_that_answers_well_again_is_healthy(steps: list[tuple[str, int]]) -> None:
    health, now_s = Health(), 0.0
    for step, after_s in steps:
        now_s += after_s
        health.tick(now_s)
        match step:
            case "answered":
                health.answered(now_s)
            case "out":
                health.out(now_s, "unhealthy")
            case "late":
                health.late(now_s, moved_s=None)
            case "good":
                health.good(now_s)
            case "fault":
                health.fault(now_s, "lost", is_trial=health.is_trial)
            case "trial":
                if health.is_trial:
                    health.sent(now_s)
            case "void":
                health.trial_void(now_s)
            case "stalled":
                health.stalled(now_s, "")
            case "moved":
                health.moved(now_s)
            case "emptied":
                health.emptied(now_s)
            case "restart":
                health.restarted(now_s)
        assert SHARE_LEAST <= health.share <= 1
    health.answered(now_s)
    health.emptied(now_s)
    now_s += PAUSE_MOST_S + TRIAL_S
    health.tick(now_s)
    assert health.admits
    if health.is_trial:
        health.sent(now_s)
        health.good(now_s, is_trial=True)
    health.tick(now_s + SLOW_START_S)
    assert (health.state, health.share) == ("healthy", 1.0)


def test_a_machine_is_there_however_its_engine_does() -> None:
    """Its GPUs are paid for while something listens: broken, draining or not; not before it was seen, nor when nothing
    takes connections any more."""
    assert not Health().is_there
    assert serving().is_there
    assert broken(1.0).is_there
    gone = serving()
    gone.out(1.0, "refused", "connection refused")
    assert not gone.is_there
