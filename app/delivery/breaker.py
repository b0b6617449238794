"""The circuit breaker: during an outage nothing is sent and no attempt is spent.

closed ──threshold failures in a row──▶ open ──wait is over──▶ half-open (one probe)
  ▲                                      ▲                        │      │
  └────────────── success ───────────────┼────────── success ─────┘      │
                                         └── failure: the wait doubles ──┘
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

MAX_PROBE_INTERVAL_SECONDS = 60.0


class BreakerState(IntEnum):
    """The breaker's state; the number is what the ``breaker_state`` metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts failures in a row over all keys, and says who may send.

    Pure state: the caller tells it what happened and asks it before each attempt. The clock is
    injected and monotonic, in seconds.
    """

    def __init__(
        self,
        threshold: int,
        probe_interval_seconds: float,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        """Make a closed breaker.

        Args:
            threshold: Failures in a row that open it; 0 never opens it.
            probe_interval_seconds: Wait before the first probe; doubles to 60 s (or stays, where
                it is longer than that).
            clock: Monotonic seconds.
            on_change: Called after every change of state.
        """
        self._threshold = threshold
        self._first_interval_seconds = probe_interval_seconds
        self._max_interval_seconds = max(probe_interval_seconds, MAX_PROBE_INTERVAL_SECONDS)
        self._interval_seconds = probe_interval_seconds
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._probe_at = 0.0
        self._probes = 0
        self.state = BreakerState.CLOSED
        self.failed_probes = 0
        """Probes that failed since the breaker opened."""

    @property
    def closed(self) -> bool:
        """Whether deliveries flow freely."""
        return self.state is BreakerState.CLOSED

    def ask(self) -> float:
        """Ask to send one attempt.

        Returns:
            0 when the caller may send; it notes ``ticket`` and then must report ``succeeded``,
            ``answered``, ``failed`` or ``withdrawn``. Otherwise the seconds after which asking
            again can help, at the most: a change of state may come before (infinite while
            another's probe is out).
        """
        if self.state is BreakerState.CLOSED:
            return 0.0
        if self.state is BreakerState.HALF_OPEN:
            return float("inf")
        wait = self._probe_at - self._clock()
        if wait > 0:
            return wait
        self._probes += 1
        self._move(BreakerState.HALF_OPEN)
        return 0.0

    @property
    def ticket(self) -> int:
        """The number of the probe that is out; 0 while there is none.

        Read right after ``ask`` said 0, it tells what the attempt is: a late failure of an
        earlier outage's probe must not be taken for one of the probe that is out now.
        """
        return self._probes if self.state is BreakerState.HALF_OPEN else 0

    @property
    def probe_in_seconds(self) -> float | None:
        """After how long the next probe may go out; ``None`` while closed or one is out."""
        if self.state is not BreakerState.OPEN:
            return None
        return max(self._probe_at - self._clock(), 0.0)

    def succeeded(self) -> None:
        """An attempt was answered 2xx: the logger works."""
        self._failures = self.failed_probes = 0
        self._interval_seconds = self._first_interval_seconds
        if self.state is not BreakerState.CLOSED:
            self._move(BreakerState.CLOSED)

    def answered(self) -> None:
        """The logger judged a message (a 4xx of its own fault): it works, yet it is no success.

        It ends an outage, but not a run of failures.
        """
        if self.state is not BreakerState.CLOSED:
            self.succeeded()

    def failed(self, ticket: int) -> None:
        """An attempt failed in a way that speaks of an outage.

        Attempts that began before the breaker opened say nothing new.
        """
        if self.state is BreakerState.HALF_OPEN and ticket == self._probes:
            self._interval_seconds = min(self._interval_seconds * 2, self._max_interval_seconds)
            self.failed_probes += 1
            self._open()
        elif self.state is BreakerState.CLOSED:
            self._failures += 1
            if 0 < self._threshold <= self._failures:
                self._open()

    def withdrawn(self, ticket: int) -> None:
        """An attempt that was allowed did not come to an end; a probe is free again."""
        if self.state is BreakerState.HALF_OPEN and ticket == self._probes:
            self._open(wait_seconds=0.0)

    def _open(self, wait_seconds: float | None = None) -> None:
        self._failures = 0
        wait = self._interval_seconds if wait_seconds is None else wait_seconds
        self._probe_at = self._clock() + wait
        self._move(BreakerState.OPEN)

    def _move(self, state: BreakerState) -> None:
        self.state = state
        self._on_change(state)
