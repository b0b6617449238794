"""The circuit breaker: during an outage nothing is sent but probes, and no attempt is spent.

closed ──threshold failures in a row──▶ open ──a probe is due──▶ half-open (one is out)
  ▲                                      ▲                        │      │
  └────────────── success ───────────────┼────────── success ─────┘      │
                                         └─────────── failure ───────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

# After the breaker has opened; and from any probe to that of a record that was never sent.
SHORT_WAIT_SECONDS = 1.0
# After so many probes with records that were never sent, bad records alone do not explain the
# failures: the next ones wait as long as all others.
SHORT_WAITS = 5


class BreakerState(IntEnum):
    """The breaker's state; the number is what the ``breaker_state`` metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts failures in a row over all keys, and says when a probe may be sent.

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
            probe_interval_seconds: From one probe to the next, however long the outage lasts.
            clock: Monotonic seconds.
            on_change: Called after whatever changes who may send.
        """
        self._threshold = threshold
        self._interval_seconds = probe_interval_seconds
        self._short_wait_seconds = min(SHORT_WAIT_SECONDS, probe_interval_seconds)
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._probe_at = 0.0
        self._never_sent_probe_at = 0.0
        self._never_sent_probes = 0
        self._last_ticket = 0
        self._out: set[int] = set()
        """Tickets of the probes of this outage that are out."""
        self.state = BreakerState.CLOSED
        self.failed_probes = 0
        """Probes that failed since the breaker opened."""

    @property
    def closed(self) -> bool:
        """Whether deliveries flow freely."""
        return self.state is BreakerState.CLOSED

    def probe_wait(self, *, never_sent: bool) -> float:
        """Return after how many seconds a probe may be sent; 0 now, or while closed.

        Args:
            never_sent: Whether it is made with a record that was never sent. Such a one says more
                than those that failed before: it may go after a second, unless several of them
                have gone.
        """
        if self.closed:
            return 0.0
        due = self._never_sent_probe_at if never_sent else self._probe_at
        return max(due - self._clock(), 0.0)

    def begin_probe(self, *, never_sent: bool) -> int:
        """A probe is sent, whether or not an earlier one is still out; returns its ticket.

        The caller must report ``succeeded``, ``answered``, ``failed`` or ``withdrawn``.
        """
        now = self._clock()
        self._probe_at = now + self._interval_seconds
        self._never_sent_probes += never_sent
        short = self._never_sent_probes <= SHORT_WAITS
        self._never_sent_probe_at = now + self._short_wait_seconds if short else self._probe_at
        self._last_ticket += 1
        self._out.add(self._last_ticket)
        self._move(BreakerState.HALF_OPEN)
        return self._last_ticket

    @property
    def probe_in_seconds(self) -> float | None:
        """After how long the next probe may go out; ``None`` while closed or one is out."""
        if self.state is not BreakerState.OPEN:
            return None
        return self.probe_wait(never_sent=False)

    def succeeded(self) -> None:
        """An attempt was answered 2xx: the logger works."""
        self._failures = self.failed_probes = self._never_sent_probes = 0
        self._out.clear()
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

        Args:
            ticket: The probe's, or 0 for an attempt that began while the breaker was closed. Such
                a one, and a probe of an earlier outage, say nothing new once it is open.
        """
        if ticket in self._out:
            self.failed_probes += 1
            self._back(ticket)
        elif self.state is BreakerState.CLOSED:
            self._failures += 1
            if 0 < self._threshold <= self._failures:
                self._failures = 0
                self._probe_at = self._clock() + self._short_wait_seconds
                self._never_sent_probe_at = self._probe_at
                self._move(BreakerState.OPEN)

    def withdrawn(self, ticket: int) -> None:
        """An attempt that was allowed did not come to an end; a probe is free again."""
        if ticket in self._out:
            self._probe_at = self._never_sent_probe_at = self._clock()
            self._back(ticket)

    def _back(self, ticket: int) -> None:
        self._out.remove(ticket)
        self._move(BreakerState.HALF_OPEN if self._out else BreakerState.OPEN)

    def _move(self, state: BreakerState) -> None:
        self.state = state
        self._on_change(state)
