"""The circuit breaker: its states, its waits, and one probe at a time."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.delivery.breaker import Breaker, BreakerState

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
NO_PROBE = 0  # the ticket of attempts that began while the breaker was closed


class Clock:
    """A clock that stands until it is told to go."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A breaker with its clock, and what it said about its changes."""

    def __init__(self, threshold: int, probe_interval_seconds: float = 5.0) -> None:
        self.clock = Clock()
        self.changes: list[BreakerState] = []
        self.breaker = Breaker(threshold, probe_interval_seconds, self.clock, self.changes.append)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.breaker.ask() == 0
            self.breaker.failed(self.breaker.ticket)

    def probe(self) -> int:
        """Wait until the probe is due and start it; returns its ticket."""
        if wait := self.breaker.ask():
            self.clock.now += wait
            assert self.breaker.ask() == 0
        assert self.breaker.state is HALF_OPEN
        return self.breaker.ticket


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


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An attempt that the breaker allowed, with its ticket: as a probe or not, in which outage."""

    ticket: int
    probe: bool
    outage: int


class AnyOrder(RuleBasedStateMachine):
    """Attempts that begin and end in any order, beside a model of what the design says."""

    @initialize(threshold=st.sampled_from([0, 1, 2, 4]))
    def start(self, threshold: int) -> None:
        self.watched = Watched(threshold)
        self.breaker = self.watched.breaker
        self.threshold = threshold
        self.out: list[Sent] = []
        self.failures = 0
        self.outage = 0
        self.failed_probes = 0
        self.opened_at = 0.0

    @property
    def due_at(self) -> float:
        waits = [5.0, 10.0, 20.0, 40.0, 60.0]
        return self.opened_at + waits[min(self.failed_probes, 4)]

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 30.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.watched.clock.now += seconds

    @rule()
    def ask(self) -> None:
        before = self.breaker.state
        wait = self.breaker.ask()
        if before is CLOSED:
            assert wait == 0
        elif any(sent.probe and sent.outage == self.outage for sent in self.out):
            assert wait == float("inf")
        else:
            assert wait == max(self.due_at - self.watched.clock.now, 0)
        if wait == 0:
            assert (self.breaker.ticket != NO_PROBE) == (before is not CLOSED)
            self.out.append(Sent(self.breaker.ticket, before is not CLOSED, self.outage))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), end=st.sampled_from(["succeeded", "answered", "failed", "withdrawn"]))
    def end(self, data: st.DataObject, end: str) -> None:
        sent = data.draw(st.sampled_from(self.out))
        self.out.remove(sent)
        if end in {"failed", "withdrawn"}:
            getattr(self.breaker, end)(sent.ticket)
        else:
            getattr(self.breaker, end)()
        self._model(sent, end)

    def _model(self, sent: Sent, end: str) -> None:
        if end == "succeeded" or (end == "answered" and self.outage % 2):
            self.failures = 0
            if self.outage % 2:
                self.outage += 1
        elif end == "failed" and not self.outage % 2:
            self.failures += 1
            if 0 < self.threshold <= self.failures:
                self.failures = self.failed_probes = 0
                self.outage += 1
                self.opened_at = self.watched.clock.now
        elif sent.probe and sent.outage == self.outage:
            if end == "failed":
                self.failed_probes += 1
                self.opened_at = self.watched.clock.now
            elif end == "withdrawn":
                self.opened_at = float("-inf")

    @invariant()
    def the_state_is_the_models(self) -> None:
        if self.outage % 2 == 0:
            expected = CLOSED
        elif any(sent.probe and sent.outage == self.outage for sent in self.out):
            expected = HALF_OPEN
        else:
            expected = OPEN
        assert self.breaker.state is expected


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40)
