"""The circuit breaker's words, and probes on demand; the rest is in test_breaker_any_order."""

from tests.support.watched_breaker import CLOSED, HALF_OPEN, OPEN, Watched


def test_the_numbers_of_the_states() -> None:
    """The states show in the breaker_state metric as 0 closed, 1 half-open, 2 open."""
    assert [int(state) for state in (CLOSED, HALF_OPEN, OPEN)] == [0, 1, 2]


def test_it_says_why_it_opened() -> None:
    """First attempts in a row, or attempts of any kind where none succeeds for ten seconds."""
    watched = Watched(threshold=3)
    watched.fail(3)
    assert watched.changes == [OPEN]
    assert watched.breaker.opened_because == "3 first attempts in a row failed"
    watched = Watched(threshold=3)
    watched.fail(9, first=False)
    watched.clock.now += 10.0
    watched.fail(first=False)
    assert watched.breaker.opened_because == "10 attempts failed, none succeeded in 10 s"


def test_an_interval_under_a_second_is_the_longest_wait() -> None:
    """No probe waits longer than the interval that is set."""
    watched = Watched(threshold=1, probe_interval_seconds=0.25)
    watched.fail()

    assert watched.wait() == watched.wait(never_sent=True) == 0.25


def test_a_probe_on_demand() -> None:
    """It may go at once, whatever the interval; with the breaker closed there is none."""
    watched = Watched(threshold=1, probe_interval_seconds=600.0)
    assert not watched.breaker.probe_now()
    watched.fail()
    watched.fail_probe()
    assert watched.wait() == 600

    assert watched.breaker.probe_now()

    assert watched.wait() == watched.wait(never_sent=True) == 0
