"""The circuit breaker under attempts that begin and end in any order, beside a model."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.watched_breaker import CLOSED, HALF_OPEN, NO_PROBE, OPEN, Watched


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
