"""A breaker with a clock that stands until it is told to go."""

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
