"""The circuit breaker: its states, and when probes go."""

import pytest

from tests.support.watched_breaker import CLOSED, HALF_OPEN, OPEN, Watched


def test_the_numbers_of_the_states() -> None:
    """The states show in the breaker_state metric as 0 closed, 1 half-open, 2 open."""
    assert [int(state) for state in (CLOSED, HALF_OPEN, OPEN)] == [0, 1, 2]


def test_it_opens_at_the_threshold() -> None:
    """The first attempt that makes the threshold opens it, and none before; it says why."""
    watched = Watched(threshold=3)

    watched.fail(2)
    assert watched.changes == []
    watched.fail()

    assert watched.breaker.state is OPEN
    assert not watched.breaker.closed
    assert watched.changes == [OPEN]
    assert watched.breaker.opened_because == "3 first attempts in a row failed"


def test_retries_open_it_after_ten_seconds_without_a_success() -> None:
    """Retries of a few hopeless records are not an outage, unless nothing else succeeds."""
    watched = Watched(threshold=3)
    watched.fail(9, first=False)
    assert watched.breaker.closed
    watched.clock.now += 10.0

    watched.fail(first=False)

    assert watched.breaker.state is OPEN
    assert watched.breaker.opened_because == "10 attempts failed, none succeeded in 10 s"


def test_retries_do_not_open_it_while_others_succeed() -> None:
    """However many of them fail."""
    watched = Watched(threshold=3)
    for _ in range(100):
        watched.clock.now += 9.0
        watched.fail(2, first=False)
        watched.breaker.succeeded()

    assert watched.changes == []


def test_probes_never_get_rarer() -> None:
    """However many have failed, the next one goes an interval after the last."""
    watched = Watched(threshold=1)
    watched.fail()
    waits = []
    for _ in range(50):
        waits.append(watched.wait())
        watched.fail_probe()

    assert waits == [1, *[5] * 49]
    assert watched.changes == [OPEN, *[HALF_OPEN, OPEN] * 50]


def test_an_interval_under_a_second_is_the_longest_wait() -> None:
    """No probe waits longer than the interval that is set."""
    watched = Watched(threshold=1, probe_interval_seconds=0.25)
    watched.fail()

    assert watched.wait() == watched.wait(never_sent=True) == 0.25


@pytest.mark.parametrize("answered", [True, False])
def test_after_several_of_them_they_wait_as_long_as_all(answered: bool) -> None:
    """Then it is an outage: a busy topic does not make the probes more frequent."""
    watched = Watched(threshold=1)
    watched.fail()
    waits = []
    for _ in range(10):
        waits.append(watched.wait(never_sent=True))
        ticket = watched.probe(never_sent=True)
        if answered:
            watched.breaker.failed(ticket, first=True)

    assert waits == [1] * 6 + [5] * 4


def test_a_probe_on_demand() -> None:
    """It may go at once, whatever the interval; with the breaker closed there is none."""
    watched = Watched(threshold=1, probe_interval_seconds=600.0)
    assert not watched.breaker.probe_now()
    watched.fail()
    watched.fail_probe()
    assert watched.wait() == 600

    assert watched.breaker.probe_now()

    assert watched.wait() == watched.wait(never_sent=True) == 0


def test_a_probe_of_an_earlier_outage_says_nothing() -> None:
    """A probe that outlives its outage is a late attempt like any other in the next one."""
    watched = Watched(threshold=1)
    watched.fail()
    watched.fail_probe()
    first_probe = watched.probe()
    watched.breaker.succeeded()  # an attempt from before the outage
    watched.fail()
    second_probe = watched.probe()

    watched.breaker.failed(first_probe, first=True)
    assert watched.breaker.state is HALF_OPEN
    watched.breaker.failed(second_probe, first=True)

    assert watched.breaker.state is OPEN
    assert watched.breaker.failed_probes == 1
