"""The circuit breaker: attempts in any order beside a model, and its texts."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from order_relay.delivery.breaker import MAX_SHORT_WAITS, Breaker, BreakerState
from order_relay.delivery.gate import NO_PROBE
from tests.support.fakes import StandingClock

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Watched:
    """A breaker with its clock, and the changes that it reported."""

    def __init__(self, threshold: int, probe_interval_seconds: float = 5.0) -> None:
        self.clock = StandingClock()
        self.changes: list[BreakerState] = []
        self.breaker = Breaker(threshold, probe_interval_seconds, self.clock, self.changes.append)

    def fail(self, times: int = 1, *, first: bool = True) -> None:
        for _ in range(times):
            assert self.breaker.closed
            self.breaker.failed(NO_PROBE, first=first)

    def wait(self, *, never_sent: bool = False) -> float:
        """How long a probe has to wait now."""
        return self.breaker.probe_wait(never_sent=never_sent)

    def probe(self, *, never_sent: bool = False) -> int:
        """Wait until the probe is due and start it; returns its ticket."""
        self.clock.now += self.wait(never_sent=never_sent)
        ticket = self.breaker.begin_probe(never_sent=never_sent)
        assert self.breaker.state is HALF_OPEN
        return ticket

    def fail_probe(self, *, never_sent: bool = False) -> None:
        """Wait until a probe is due, and let it fail at once."""
        self.breaker.failed(self.probe(never_sent=never_sent), first=never_sent)


def test_the_numbers_of_the_states() -> None:
    """The states show in the breaker_state metric as 0 closed, 1 half-open, 2 open."""
    assert [int(state) for state in (CLOSED, HALF_OPEN, OPEN)] == [0, 1, 2]


def test_it_says_why_it_opened() -> None:
    """First attempts in a row failed, or all attempts of ten seconds and more."""
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
    """It is sent at once, whatever the interval; a closed breaker has none."""
    watched = Watched(threshold=1, probe_interval_seconds=600.0)
    assert not watched.breaker.probe_now()
    watched.fail()
    watched.fail_probe()
    assert watched.wait() == 600

    assert watched.breaker.probe_now()

    assert watched.wait() == watched.wait(never_sent=True) == 0


INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An attempt that the breaker allowed, with its ticket."""

    ticket: int


class AnyOrder(RuleBasedStateMachine):
    """Attempts that begin and end in any order, beside a model of the design."""

    @initialize(threshold=st.sampled_from([0, 1, 2, 4]))
    def start(self, threshold: int) -> None:
        self.watched = Watched(threshold, INTERVAL_SECONDS)
        self.breaker = self.watched.breaker
        self.threshold = threshold
        self.out: list[Sent] = []
        self.failures = self.first_failures = 0
        self.succeeded_at = self.now
        self.open = False
        self.probes: set[Sent] = set()
        self.never_sent_probes = self.failed_probes = 0
        self.due = {False: 0.0, True: 0.0}

    @property
    def now(self) -> float:
        return self.watched.clock.now

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.watched.clock.now += seconds

    @rule(never_sent=st.booleans())
    def send_if_allowed(self, never_sent: bool) -> None:
        wait = self.watched.wait(never_sent=never_sent)
        assert wait == (max(self.due[never_sent] - self.now, 0) if self.open else 0)
        if wait:
            return
        if not self.open:
            self.out.append(Sent(NO_PROBE))
            return
        ticket = self.breaker.begin_probe(never_sent=never_sent)
        assert ticket != NO_PROBE
        assert ticket not in {sent.ticket for sent in self.out if sent not in self.probes}
        probe = Sent(ticket)
        self.probes.add(probe)
        self.out.append(probe)
        self.never_sent_probes += never_sent
        short = self.never_sent_probes <= MAX_SHORT_WAITS
        self.due = {
            False: self.now + INTERVAL_SECONDS,
            True: self.now + (1.0 if short else INTERVAL_SECONDS),
        }

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        end=st.sampled_from(["succeeded", "failed", "failed", "withdrawn", "ended"]),
        first=st.booleans(),
    )
    def end(self, data: st.DataObject, end: str, first: bool) -> None:
        sent = data.draw(st.sampled_from(self.out))
        self.out.remove(sent)
        if end == "succeeded":
            self.breaker.succeeded()
        elif end == "failed":
            self.breaker.failed(sent.ticket, first=first)
        else:
            getattr(self.breaker, end)(sent.ticket)
        self._model(sent, end, first)

    def _model(self, sent: Sent, end: str, first: bool) -> None:
        if end == "succeeded":
            self.failures = self.first_failures = 0
            self.never_sent_probes = self.failed_probes = 0
            self.succeeded_at = self.now
            self.open, self.probes = False, set()
        elif end == "failed" and not self.open:
            self.failures += 1
            self.first_failures += first
            long = self.now - self.succeeded_at >= 10.0
            if 0 < self.threshold <= (self.failures if long else self.first_failures):
                self.failures = self.first_failures = 0
                self.open = True
                self.due = dict.fromkeys((False, True), self.now + 1.0)
        elif sent in self.probes:
            self.probes.remove(sent)
            self.failed_probes += end == "failed"
            if end == "withdrawn":
                self.due = dict.fromkeys((False, True), self.now)

    @invariant()
    def the_state_is_the_models(self) -> None:
        expected = CLOSED if not self.open else HALF_OPEN if self.probes else OPEN
        assert self.breaker.state is expected
        assert self.breaker.closed is not self.open
        assert self.breaker.failed_probes == self.failed_probes


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40)
