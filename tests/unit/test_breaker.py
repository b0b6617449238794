"""The circuit breaker: its states, its waits, and one probe at a time."""

import pytest

from tests.support.watched_breaker import CLOSED, HALF_OPEN, NO_PROBE, OPEN, Watched


def test_the_numbers_of_the_states() -> None:
    """The states show in the breaker_state metric as 0 closed, 1 half-open, 2 open."""
    assert [int(state) for state in (CLOSED, HALF_OPEN, OPEN)] == [0, 1, 2]


def test_it_opens_at_the_threshold() -> None:
    """The failure that makes the threshold opens it, and none before."""
    watched = Watched(threshold=3)

    watched.fail(2)
    assert watched.changes == []
    watched.fail()

    assert watched.breaker.state is OPEN
    assert not watched.breaker.closed
    assert watched.changes == [OPEN]


def test_a_success_between_begins_the_count_anew() -> None:
    """Only failures in a row count."""
    watched = Watched(threshold=3)

    watched.fail(2)
    watched.breaker.succeeded()
    watched.fail(2)

    assert watched.breaker.closed
    assert watched.changes == []


def test_an_answer_about_a_message_does_not_end_a_run_of_failures() -> None:
    """A 4xx of the message's own fault is no success: the failures around it are in a row."""
    watched = Watched(threshold=3)

    watched.fail(2)
    watched.breaker.answered()
    watched.fail()

    assert watched.breaker.state is OPEN


def test_a_threshold_of_0_never_opens() -> None:
    """0 switches the breaker off."""
    watched = Watched(threshold=0)

    watched.fail(10_000)

    assert watched.breaker.closed


def test_the_first_probe_waits_for_the_interval() -> None:
    """While open nobody may send; the time that is left is told, and then one may."""
    watched = Watched(threshold=1)
    watched.fail()

    assert watched.breaker.ask() == 5
    watched.clock.now += 4
    assert watched.breaker.ask() == 1
    assert watched.breaker.state is OPEN
    watched.clock.now += 1
    assert watched.breaker.ask() == 0
    assert watched.breaker.state is HALF_OPEN


def test_one_probe_at_a_time() -> None:
    """While a probe is out everybody else waits without end, however late it gets."""
    watched = Watched(threshold=1)
    watched.fail()
    watched.probe()

    watched.clock.now += 10_000

    assert watched.breaker.ask() == float("inf")


def test_the_waits_double_to_a_minute() -> None:
    """Each probe that fails doubles the wait, up to 60 s."""
    watched = Watched(threshold=1)
    watched.fail()
    waits = []
    for _ in range(7):
        waits.append(watched.breaker.ask())
        watched.breaker.failed(watched.probe())

    assert waits == [5, 10, 20, 40, 60, 60, 60]
    assert watched.changes == [OPEN, *[HALF_OPEN, OPEN] * 7]


def test_an_interval_over_a_minute_stays() -> None:
    """Who asks for a longer interval than 60 s gets it, unchanged from probe to probe."""
    watched = Watched(threshold=1, probe_interval_seconds=90)
    watched.fail()
    watched.breaker.failed(watched.probe())

    assert watched.breaker.ask() == 90


@pytest.mark.parametrize("end", ["succeeded", "answered"])
def test_a_probe_that_is_answered_closes_it(end: str) -> None:
    """A 2xx, or a 4xx about the message, shows that the logger works: all flows, counts anew."""
    watched = Watched(threshold=2)
    watched.fail(2)
    watched.breaker.failed(watched.probe())
    watched.probe()

    getattr(watched.breaker, end)()

    assert watched.breaker.closed
    watched.fail()
    assert watched.breaker.closed
    watched.fail()
    assert watched.breaker.ask() == 5


def test_a_late_success_closes_it() -> None:
    """An attempt from before the outage that succeeds shows that the logger works."""
    watched = Watched(threshold=1)
    watched.fail()

    watched.breaker.succeeded()

    assert watched.breaker.closed


def test_late_failures_say_nothing() -> None:
    """Attempts from before the outage that fail neither lengthen a wait nor end a probe."""
    watched = Watched(threshold=1)
    watched.fail()
    watched.breaker.failed(NO_PROBE)
    assert watched.breaker.ask() == 5
    probe = watched.probe()

    watched.breaker.failed(NO_PROBE)

    assert watched.breaker.state is HALF_OPEN
    watched.breaker.failed(probe)
    assert watched.breaker.ask() == 10


def test_a_withdrawn_probe_is_free_again() -> None:
    """A probe that was broken off says nothing: the next may begin at once, waits unchanged."""
    watched = Watched(threshold=1)
    watched.fail()
    probe = watched.probe()

    watched.breaker.withdrawn(probe)

    assert watched.breaker.state is OPEN
    assert watched.breaker.ask() == 0
    watched.breaker.failed(watched.breaker.ticket)
    assert watched.breaker.ask() == 10


def test_a_probe_of_an_earlier_outage_says_nothing() -> None:
    """A probe that outlives its outage is a late attempt like any other in the next one."""
    watched = Watched(threshold=1)
    watched.fail()
    first_probe = watched.probe()
    watched.breaker.succeeded()  # an attempt from before the outage
    watched.fail()
    watched.probe()

    watched.breaker.failed(first_probe)

    assert watched.breaker.state is HALF_OPEN
    assert watched.breaker.ask() == float("inf")


def test_other_attempts_that_are_withdrawn_change_nothing() -> None:
    """Breaking off an attempt that is not the probe changes no state."""
    watched = Watched(threshold=1)
    watched.breaker.withdrawn(NO_PROBE)
    assert watched.breaker.closed
    watched.fail()
    watched.probe()

    watched.breaker.withdrawn(NO_PROBE)

    assert watched.breaker.state is HALF_OPEN
