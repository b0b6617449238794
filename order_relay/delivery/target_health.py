"""Whose fault is it? Decides from the answers whether the target or a record is at fault.

Pure rules with an injected clock. The caller reports the result of every attempt. It asks before it
gives up a record, and before it sends while the breaker is not closed.

* A record is given up only if its failures are not what the target does to all records now: see
  ``TargetHealth.gives_up``. The first attempts of other keys are the evidence. Retries do not
  count: those of hopeless records would make the target look worse than it is.
* During an outage only probes are sent, and no attempt counts: see ``Breaker``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from order_relay.delivery.answer import Answer, RetryPolicy, Verdict
from order_relay.delivery.breaker import Breaker, BreakerState
from order_relay.delivery.first_attempts import EVIDENCE_SECONDS, FirstAttempts

# A record is given up once its failures are less likely than this for a good one.
GIVE_UP_PROBABILITY = 1e-4
MAX_EXPLAINED = GIVE_UP_PROBABILITY * (1.0 + 1e-9)  # rounding
# A 404 is the record's own fault only if at most this share of other keys' first attempts fails.
MAX_SHARE_FAILED_FOR_GONE = 0.2
# A time-out does not come from too many attempts at a time if one that was sent in this last part
# of it has already succeeded, and at most this share of first attempts fails.
QUICK_PART = 0.1
MAX_SHARE_FAILED_IF_QUICK = 0.5


class TargetState(StrEnum):
    """The target's state, as people read it."""

    WORKS = "works"
    THROTTLES = "throttles"
    FAILS_FOR_SOME = "fails for some records"
    DOWN = "is down"
    REFUSES_US = "refuses us"


@dataclass(frozen=True, slots=True)
class Target:
    """The target's current state and the figures behind it.

    Attributes:
        state: The state.
        seconds: How long it has been seen in this state.
        rate: Attempts a second that it accepts; ``None`` unless it throttles.
        share_failed: Share of the last minute's first attempts that failed.
        concurrency: Maximum concurrent attempts now.
        last_status: HTTP status of the last failed attempt; ``None`` without one.
        last_text: The text of that answer.
        last_seconds: Seconds since that answer; ``None`` if there was none.
        next_probe_seconds: Seconds until the next probe; ``None`` while the breaker is closed or a
            probe is under way.
        opened_because: Why the breaker is open; empty while it is closed.
    """

    state: TargetState
    seconds: float
    rate: float | None
    share_failed: float
    concurrency: int
    last_status: int | None
    last_text: str
    last_seconds: float | None
    next_probe_seconds: float | None
    opened_because: str

    def __str__(self) -> str:
        """Return the state as one line of text."""
        text = f"{self.state.value} for {self.seconds:.0f} s"
        if self.rate is not None:
            rate = f"{self.rate:.3g}" if self.rate < 100 else f"{self.rate:,.0f}"
            text += f", takes {rate} a second"
        if self.share_failed:
            text += f", {self.share_failed:.0%} of first attempts fail"
        if self.state is not TargetState.WORKS and self.last_seconds is not None:
            status = f"{self.last_status} " if self.last_status is not None else ""
            text += f"; last said {status}{self.last_text[:200]!r} {self.last_seconds:.0f} s ago"
        if self.next_probe_seconds is not None:
            text += f"; next probe in {self.next_probe_seconds:.1f} s"
        return text


class TargetHealth:
    """Judges the target, and single records, by the results of all attempts.

    Attributes:
        breaker: Decides whether records may be sent.
        last_failure: The answer to the last attempt that did not succeed; ``None`` before it.
        last_failure_at: When that was, by the injected clock.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float],
        *,
        breaker_threshold: int,
        breaker_probe_interval_seconds: float,
        on_breaker_change: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        """Start without any evidence.

        Args:
            policy: The retries that every record gets.
            clock: Monotonic seconds.
            breaker_threshold: See ``Breaker``. With 0, records are also given up without evidence.
            breaker_probe_interval_seconds: See ``Breaker``.
            on_breaker_change: See ``Breaker``.
        """
        self._policy = policy
        self._clock = clock
        self._needs_evidence = breaker_threshold > 0
        self._first_attempts = FirstAttempts()
        self._successes = _LatestByKey()
        self._failures = _LatestByKey()
        # Without those that another record of the batch may have caused.
        self._own_failures = _LatestByKey()
        # First attempts that ended, also those of records that are still in doubt.
        self._ended = self._ended_in_failure = 0
        self._doubts: set[_Doubt] = set()
        self._refused_us = self._failed_locally = False
        # When the latest of the attempts that succeeded was sent.
        self._worked_at = float("-inf")
        self._state = TargetState.WORKS
        self._state_since = clock()
        self.breaker = Breaker(
            breaker_threshold, breaker_probe_interval_seconds, clock, on_breaker_change, policy.vary
        )
        self.last_failure: Answer | None = None
        self.last_failure_at = 0.0

    # --- results of attempts ---------------------------------------------------------------------

    def succeeded(self, key: Hashable, *, first: bool, sent_at: float = float("-inf")) -> None:
        """Report a success."""
        now = self._clock()
        self._worked_at = max(self._worked_at, sent_at)
        self._failed_locally = False
        self._successes.add(key, now)
        if first:
            self._first_attempts.add(key, False, now)
            self._ended += 1
            if self._doubts:
                self._decide(sent_at, worked=True)
        self.breaker.succeeded(first=first)

    def rejected(self, key: Hashable, answer: Answer, *, first: bool) -> None:
        """Report a message that was rejected for its content: the target works."""
        self._note(answer)
        if first:
            self._first_attempts.add(key, failed=False, now=self._clock())
        self.breaker.succeeded()

    def gone(
        self, key: Hashable, answer: Answer, *, first: bool, sent_at: float = math.inf
    ) -> None:
        """Report a 404, 405 or 410; the caller then reports ``failed`` or ``rejected``."""
        self._note(answer)
        self._failed(key, answer)
        if first and not answer.batch_index:
            self._first_failed(sent_at)

    def failed(
        self,
        key: Hashable,
        answer: Answer,
        ticket: int,
        *,
        first: bool,
        sent_at: float = math.inf,
    ) -> None:
        """Report a failed attempt, whether the target or the record is at fault.

        If one that was sent later has succeeded, it does not show an outage: records that hang end
        long after all others, and all at once.
        """
        self._note(answer)
        self._refused_us = answer.verdict is Verdict.OUTAGE
        now = self._failed(key, answer)
        if answer.batch_index:
            return
        if first:
            self._first_attempts.add(key, failed=True, now=now, sent_at=sent_at)
            if answer.verdict is not Verdict.GONE:  # which ``gone`` has counted
                self._first_failed(sent_at)
        if ticket or sent_at > self._worked_at:
            self.breaker.failed(ticket, first=first)

    def _failed(self, key: Hashable, answer: Answer) -> float:
        now = self._clock()
        self._failures.add(key, now)
        if not answer.failed_batch:
            self._own_failures.add(key, now)
        return now

    def throttled(self, answer: Answer, ticket: int) -> None:
        """Report a throttled attempt: it counts against neither the target nor the record."""
        self._note(answer)
        if ticket:
            self.breaker.succeeded()

    def failed_locally(self, answer: Answer, ticket: int) -> None:
        """Report an attempt that failed because of this host."""
        self._note(answer)
        self.breaker.ended(ticket)

    # --- whose fault is it? ----------------------------------------------------------------------

    def gives_up(
        self,
        key: Hashable,
        failures: int,
        failing_since: float,
        sent_at: Sequence[float] = (),
    ) -> bool:
        """Whether a record whose attempts all failed is given up.

        Let p be the share of other keys' first attempts that failed. It is taken over the last
        minute (or since this record began to fail, if that is longer), or over the last ten
        seconds if that is worse. Above 0.1 one standard error is added. The target explains the
        record's failures as long as p to the power of their number is above 1 in 10,000: p = 0.1
        explains up to three, p = 0.5 up to 13, and p = 1 any number. A failure whose attempt was
        sent while the share was larger counts with that share: the target may fail in waves, and
        few others may be sent while it does. Without attempts of other keys, the retries alone
        decide. If all that were made since its first one failed, an outage may have begun on a
        quiet topic: one more failure is needed.

        Args:
            key: The record's key.
            failures: Its failed attempts in a row.
            failing_since: When its first attempt was made, by the injected clock.
            sent_at: When the attempts that failed were sent, as far as it is known.
        """
        if not self._policy.exhausted(failures):
            return False
        if not self._needs_evidence:
            return True
        now = self._clock()
        seconds = max(EVIDENCE_SECONDS, now - failing_since)
        share = self._first_attempts.share_failed(now, key, seconds)
        if share is None:
            return True
        explained = share**failures
        if explained <= MAX_EXPLAINED and share > 0.0:
            for at in sent_at:
                explained *= max(self._first_attempts.share_nearby(at, key) / share, 1.0)
        if explained > MAX_EXPLAINED:
            return False
        attempts, failed = self._first_attempts.count(now - failing_since, now, key)
        return not 0 < attempts == failed or self._policy.exhausted(failures - 1)

    def explains(self, key: Hashable, failures: int) -> bool:
        """Whether so many failures in a row may be what the target does to other keys, too."""
        share = self._first_attempts.share_failed(self._clock(), key) or 0.0
        return share**failures > MAX_EXPLAINED

    def works_for_other_keys(self, key: Hashable) -> bool:
        """Whether a 404, 405 or 410 is about this key alone.

        It is if another key succeeded in the last minute, no other key failed after that, and few
        first attempts of other keys fail.
        """
        now = self._clock()
        succeeded_at = self._successes.of_others(key)
        if not self.breaker.closed or now - succeeded_at > EVIDENCE_SECONDS:
            return False
        share = self._first_attempts.share_failed(now, key) or 0.0
        return succeeded_at > self._failures.of_others(key) and share <= MAX_SHARE_FAILED_FOR_GONE

    @contextmanager
    def doubt(self, key: Hashable, sent_at: float) -> Iterator[Callable[[], bool]]:
        """Watch what other keys get after a 404, 405 or 410 of this key.

        Args:
            key: The record's key.
            sent_at: When the attempt was sent, by the injected clock.

        Yields:
            Whether the answer is about this key alone: ``works_for_other_keys``; and meanwhile no
            outage began, few first attempts ended in failure, and so did not the first one of
            those that were sent after this attempt.
        """
        doubt, outages = _Doubt(sent_at), self.breaker.outages
        ended, failed = self._ended, self._ended_in_failure

        def is_alone() -> bool:
            allowed = (self._ended - ended) * MAX_SHARE_FAILED_FOR_GONE
            return (
                doubt.next_worked
                and self._ended_in_failure - failed <= allowed
                and outages == self.breaker.outages
                and self.works_for_other_keys(key)
            )

        self._doubts.add(doubt)
        try:
            yield is_alone
        finally:
            self._doubts.discard(doubt)

    def _first_failed(self, sent_at: float) -> None:
        self._ended += 1
        self._ended_in_failure += 1
        self._decide(sent_at, worked=False)

    def _decide(self, sent_at: float, *, worked: bool) -> None:
        for doubt in [one for one in self._doubts if one.sent_at <= sent_at]:
            doubt.next_worked = worked
            self._doubts.remove(doubt)

    def is_quick(self, seconds: float) -> bool:
        """Whether others were answered quickly when an attempt timed out, after ``seconds``."""
        quick = self._clock() - self._worked_at <= QUICK_PART * seconds
        return quick and self.share_failed <= MAX_SHARE_FAILED_IF_QUICK

    def fails_for_others(self, key: Hashable) -> bool:
        """Whether first attempts of other keys failed in the last minute, too."""
        return bool(self._first_attempts.share_failed(self._clock(), key))

    def other_keys_failed(self, key: Hashable) -> bool:
        """Whether any attempt of another key failed in the last minute; a 404 is among them."""
        return self._clock() - self._own_failures.of_others(key) <= EVIDENCE_SECONDS

    def accepted_others(self, key: Hashable, since: float) -> bool:
        """Whether a record of another key succeeded since then."""
        return self._successes.of_others(key) > since

    @property
    def share_failed(self) -> float:
        """The share of the last minute's first attempts that failed."""
        attempts, failures = self._first_attempts.count(EVIDENCE_SECONDS, self._clock())
        return failures / attempts if attempts else 0.0

    # --- the target's state ----------------------------------------------------------------------

    def state(self, *, throttles: bool) -> tuple[TargetState, float]:
        """Return the target's state, and for how many seconds it has been seen in it."""
        now = self._clock()
        if self._failed_locally:
            state = TargetState.DOWN  # as seen from here
        elif not self.breaker.closed:
            state = TargetState.REFUSES_US if self._refused_us else TargetState.DOWN
        elif throttles:
            state = TargetState.THROTTLES
        elif self.share_failed:
            state = TargetState.FAILS_FOR_SOME
        else:
            state = TargetState.WORKS
        if state is not self._state:
            self._state, self._state_since = state, now
        return state, now - self._state_since

    def _note(self, answer: Answer) -> None:
        self._failed_locally = answer.verdict is Verdict.LOCAL
        self.last_failure, self.last_failure_at = answer, self._clock()


@dataclass(slots=True, eq=False)
class _Doubt:
    """A record with a 404, until the first attempt of another one that was sent later has ended.

    Attributes:
        sent_at: When its attempt was sent.
        next_worked: Whether the other attempt succeeded, as far as it is known.
    """

    sent_at: float
    next_worked: bool = True


class _LatestByKey:
    """Remembers when something last happened to a key other than a given one."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._at = self._at_others = float("-inf")

    def add(self, key: Hashable, now: float) -> None:
        if key != self._key:
            self._at_others = self._at
            self._key = key
        self._at = now

    def of_others(self, key: Hashable) -> float:
        return self._at_others if key == self._key else self._at
