"""The circuit breaker: opens in an outage, during which only probes are sent."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

# Failures of any kind open the breaker, too, if there was no success for this long.
WITHOUT_SUCCESS_SECONDS = 10.0
# Wait for the first probe, and from any probe to that of a record that was never sent.
SHORT_WAIT_SECONDS = 1.0
# After this many failed probes with records that were never sent, bad records alone do not explain
# the failures: then these records wait for the probe interval, too.
MAX_SHORT_WAITS = 5
# From then on, after so many of them comes one that has failed before: a target may refuse each
# record at first, and accept it when it is sent again.
PROBES_BETWEEN_RETRIES = 3


class BreakerState(IntEnum):
    """The breaker's state; the number is what the ``breaker_state`` metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Opens in an outage, and decides when a probe may be sent.

    closed ──first attempts or all attempts fail──▶ open ──a probe is due──▶ half-open (one is out)
      ▲                                              ▲                        │      │
      └────────────────── success ───────────────────┼──────── success ───────┘      │
                                                     └───────────── failure ─────────┘
    """

    def __init__(
        self,
        threshold: int,
        probe_interval_seconds: float,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], None] = lambda state: None,
        vary: Callable[[float], float] = float,
    ) -> None:
        """Create a closed breaker.

        Args:
            threshold: Failed first attempts in a row that open it; or as many failed attempts of
                any kind, without a success for WITHOUT_SUCCESS_SECONDS. 0: it never opens.
            probe_interval_seconds: Time between two probes, however long the outage lasts.
            clock: Monotonic seconds.
            on_change: Called after each change of what may be sent.
            vary: See ``RetryPolicy``.
        """
        self._threshold = threshold
        self._interval_seconds = probe_interval_seconds
        self._short_wait_seconds = min(SHORT_WAIT_SECONDS, probe_interval_seconds)
        self._clock = clock
        self._on_change = on_change
        self._vary = vary
        self._first_failures = 0
        self._failures = 0
        # Whether the last outage ended with a retry, and no first attempt has succeeded since.
        self._only_retries_succeed = False
        self.succeeded_at = clock()
        """When an attempt succeeded last, or the start."""
        self._probe_at = 0.0
        self._never_sent_probe_at = 0.0
        self._never_sent_probes = self._before_retry = 0
        self.outages = 0
        """How often it opened; the tickets of all probes of an outage have its number."""
        self._probes_out = 0
        self.state = BreakerState.CLOSED
        self.closed = True
        """Whether records may be sent without a probe."""
        self.opened_because = ""
        """Why it opened last, as text."""
        self.failed_probes = 0
        """Probes that failed since the breaker opened."""

    def probe_wait(self, *, never_sent: bool) -> float:
        """Return the seconds until a probe may be sent; 0 while closed.

        Args:
            never_sent: Whether the probe is a record that was never sent. Its result says more
                than that of one that failed before, so it may be sent after
                SHORT_WAIT_SECONDS, up to MAX_SHORT_WAITS times.
        """
        if self.closed:
            return 0.0
        due = self._never_sent_probe_at if never_sent else self._probe_at
        return max(due - self._clock(), 0.0)

    @property
    def retry_is_next(self) -> bool:
        """Whether the next probe is a record that has failed before, if there is one."""
        probes = self._never_sent_probes
        return probes > MAX_SHORT_WAITS and probes - self._before_retry >= PROBES_BETWEEN_RETRIES

    def begin_probe(self, *, never_sent: bool) -> int:
        """Register a new probe and return its ticket; earlier ones may still be under way.

        The caller must report ``succeeded``, ``failed``, ``ended`` or ``withdrawn``, once.
        """
        now = self._clock()
        self._probe_at = now + self._vary(self._interval_seconds)
        self._never_sent_probes += never_sent
        if not never_sent:
            self._before_retry = self._never_sent_probes
        short = self._never_sent_probes <= MAX_SHORT_WAITS
        short_wait_seconds = self._vary(self._short_wait_seconds)
        self._never_sent_probe_at = now + short_wait_seconds if short else self._probe_at
        self._probes_out += 1
        self._move(BreakerState.HALF_OPEN)
        return self.outages

    def probe_now(self) -> bool:
        """Allow the next probe at once; returns ``False`` while closed."""
        if self.closed:
            return False
        self._probe_at = self._never_sent_probe_at = self._clock()
        self._on_change(self.state)
        return True

    @property
    def probe_in_seconds(self) -> float | None:
        """Seconds until the next probe; ``None`` while closed or while one is under way."""
        if self.state is not BreakerState.OPEN:
            return None
        return self.probe_wait(never_sent=False)

    def succeeded(self, *, first: bool = True) -> None:
        """Report that the target works: it accepted a message, or rejected it for its content.

        Args:
            first: Whether it was the record's first attempt. If an outage ended without one, first
                attempts alone do not open the breaker until one succeeds.
        """
        self.succeeded_at = self._clock()
        self._first_failures = self._failures = 0
        if first:
            self._only_retries_succeed = False
        if not self.closed:
            self._only_retries_succeed = not first
            self.failed_probes = self._never_sent_probes = self._before_retry = 0
            self._probes_out = 0
            self._move(BreakerState.CLOSED)

    def failed(self, ticket: int, *, first: bool) -> None:
        """Report an attempt that failed in a way that an outage explains.

        Args:
            ticket: The probe's ticket, or 0 for an attempt that began while the breaker was
                closed. While it is open, only this outage's own probes change anything.
            first: Whether it was the record's first attempt.
        """
        if self._is_out(ticket):
            self.failed_probes += 1
            self.ended(ticket)
        elif self.state is BreakerState.CLOSED:
            self._failures += 1
            self._first_failures += first
            self._open_if_due()

    def ended(self, ticket: int) -> None:
        """Report an attempt that says nothing about the target; the next probe keeps its time."""
        if self._is_out(ticket):
            self._probes_out -= 1
            self._move(BreakerState.HALF_OPEN if self._probes_out else BreakerState.OPEN)

    def withdrawn(self, ticket: int) -> None:
        """Report an attempt that was cancelled; if it was a probe, the next one may go at once."""
        if self._is_out(ticket):
            self._probe_at = self._never_sent_probe_at = self._clock()
            self.ended(ticket)

    def _is_out(self, ticket: int) -> bool:
        """Whether it is a probe of this outage."""
        return not self.closed and ticket == self.outages

    def _open_if_due(self) -> None:
        since = self._clock() - self.succeeded_at
        if not 0 < self._threshold <= self._failures:
            return
        if self._first_failures >= self._threshold and not self._only_retries_succeed:
            self.opened_because = f"{self._first_failures} first attempts in a row failed"
        elif since >= WITHOUT_SUCCESS_SECONDS:
            self.opened_because = (
                f"{self._failures} attempts failed, none succeeded in {since:.0f} s"
            )
        else:
            return
        self._first_failures = self._failures = 0
        self.outages += 1
        self._probe_at = self._clock() + self._vary(self._short_wait_seconds)
        self._never_sent_probe_at = self._probe_at
        self._move(BreakerState.OPEN)

    def _move(self, state: BreakerState) -> None:
        self.state = state
        self.closed = state is BreakerState.CLOSED
        self._on_change(state)
