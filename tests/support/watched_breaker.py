"""A breaker with a clock that stands until it is told to go."""

from order_relay.delivery.gate import NO_PROBE
from order_relay.delivery.target_health import Breaker, BreakerState

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


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
