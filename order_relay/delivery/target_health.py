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
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import islice
from operator import attrgetter

from order_relay.delivery.answer import Answer, RetryPolicy, Verdict

# How long first attempts are evidence. For a record that has failed for longer, its own failing
# time counts, up to the maximum.
EVIDENCE_SECONDS = 60
MAX_EVIDENCE_SECONDS = 600
# The most recent attempts decide where they are worse, and at least this many.
RECENT_SECONDS = 10
RECENT_ATTEMPTS = 5
# For a single failure, the attempts sent in the same second and in so many before and after it
# decide where they are worse, and so many of them failed.
NEARBY_SECONDS = 1
NEARBY_FAILURES = 5
# Up to this share no standard error is added: four failures are evidence enough.
EXACT_SHARE = 0.1
# A record is given up once its failures are less likely than this for a good one.
GIVE_UP_PROBABILITY = 1e-4
MAX_EXPLAINED = GIVE_UP_PROBABILITY * (1.0 + 1e-9)  # rounding
# A 404 is the record's own fault only if at most this share of other keys' first attempts fails.
MAX_SHARE_FAILED_FOR_GONE = 0.2
# Keys counted separately in each second. A second with more keys has enough evidence anyway.
KEYS_EACH_SECOND = 32

# Failures of any kind open the breaker, too, if there was no success for this long.
WITHOUT_SUCCESS_SECONDS = 10.0
# Wait for the first probe, and from any probe to that of a record that was never sent.
SHORT_WAIT_SECONDS = 1.0
# After this many failed probes with records that were never sent, bad records alone do not explain
# the failures: then these records wait for the probe interval, too.
MAX_SHORT_WAITS = 5


class FirstAttempts:
    """Counts the first attempts of the last ten minutes, and their failures.

    The counts are kept for each second and key, so that one key can be excluded. Memory is bounded:
    in each second, keys beyond KEYS_EACH_SECOND are counted together.
    """

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=MAX_EVIDENCE_SECONDS + 1)
        self._latest = _Second(-1)
        # Failures by the second in which they were sent: time-outs end long after that.
        self._failures_sent: dict[int, dict[Hashable, int]] = {}

    def add(self, key: Hashable, failed: bool, now: float, sent_at: float = math.inf) -> None:
        """Count an attempt that ended now; ``now`` must not decrease."""
        second = self._latest
        if now >= second.number + 1:
            second = self._latest = _Second(int(now))
            self._seconds.append(second)
        second.attempts += 1
        second.failures += failed
        of_key = second.of_keys.get(key)
        if of_key is not None:
            of_key[0] += 1
            of_key[1] += failed
        elif len(second.of_keys) < KEYS_EACH_SECOND:
            second.of_keys[key] = [1, int(failed)]
        if failed:
            self._add_sent(key, int(min(sent_at, now)))

    def _add_sent(self, key: Hashable, number: int) -> None:
        of_keys = self._failures_sent.get(number)
        if of_keys is None:
            of_keys = self._failures_sent[number] = {}
            if len(self._failures_sent) > MAX_EVIDENCE_SECONDS:
                del self._failures_sent[next(iter(self._failures_sent))]
        if key not in of_keys and len(of_keys) >= KEYS_EACH_SECOND:
            key = _OTHER_KEYS
        of_keys[key] = of_keys.get(key, 0) + 1

    def share_nearby(self, sent_at: float, without: Hashable = None) -> float:
        """Return the share of the attempts sent at about the same time that failed.

        Two standard errors less, since a few attempts are a rough measure. 0 if few failed.
        """
        first = int(sent_at) - NEARBY_SECONDS
        last = first + 2 * NEARBY_SECONDS
        failures = 0
        for number in range(first, last + 1):
            of_keys = self._failures_sent.get(number, {})
            failures += sum(of_keys.values()) - of_keys.get(without, 0)
        if failures < NEARBY_FAILURES:
            return 0.0
        successes = 0  # they end soon after they were sent
        begin = bisect_left(self._seconds, first, key=_number)
        for second in islice(self._seconds, begin, begin + last + 1 - first):
            if second.number <= last:
                own_attempts, own_failures = second.of_keys.get(without, (0, 0))
                successes += second.attempts - second.failures - own_attempts + own_failures
        attempts = failures + successes
        share = failures / attempts
        return max(share - 2.0 * math.sqrt(share * (1.0 - share) / attempts), 0.0)

    def count(self, seconds: float, now: float, without: Hashable = None) -> tuple[int, int]:
        """Return attempts and failures of the last ``seconds``, excluding one key."""
        attempts = failures = 0
        for second in reversed(self._seconds):
            if second.number + 1 <= now - seconds:
                break
            own_attempts, own_failures = second.of_keys.get(without, (0, 0))
            attempts += second.attempts - own_attempts
            failures += second.failures - own_failures
        return attempts, failures

    def share_failed(
        self, now: float, without: Hashable = None, seconds: float = EVIDENCE_SECONDS
    ) -> float | None:
        """Return the share that failed in the last ``seconds``, or recently if that is worse.

        Above EXACT_SHARE one standard error is added, since a few attempts are a rough measure.

        ``None`` if there was no attempt.
        """
        attempts, failures = self.count(seconds, now, without)
        if not attempts:
            return None
        share = _share(attempts, failures)
        attempts, failures = self.count(RECENT_SECONDS, now, without)
        if attempts >= RECENT_ATTEMPTS:
            share = max(share, _share(attempts, failures))
        return share


def _share(attempts: int, failures: int) -> float:
    share = failures / attempts
    if share > EXACT_SHARE:
        share += math.sqrt(share * (1.0 - share) / attempts)
    return min(share, 1.0)


# Keys that are counted together.
_OTHER_KEYS = object()
_number = attrgetter("number")


class _Second:
    __slots__ = ("attempts", "failures", "number", "of_keys")

    def __init__(self, number: int) -> None:
        self.number = number
        self.attempts = self.failures = 0
        self.of_keys: dict[Hashable, list[int]] = {}


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
        self.succeeded_at = clock()
        """When an attempt succeeded last, or the start."""
        self._probe_at = 0.0
        self._never_sent_probe_at = 0.0
        self._never_sent_probes = 0
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

    def begin_probe(self, *, never_sent: bool) -> int:
        """Register a new probe and return its ticket; earlier ones may still be under way.

        The caller must report ``succeeded``, ``failed``, ``ended`` or ``withdrawn``, once.
        """
        now = self._clock()
        self._probe_at = now + self._vary(self._interval_seconds)
        self._never_sent_probes += never_sent
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

    def succeeded(self, now: float | None = None) -> None:
        """Report that the target works: it accepted a message, or rejected it for its content."""
        self.succeeded_at = self._clock() if now is None else now
        self._first_failures = self._failures = 0
        if not self.closed:
            self.failed_probes = self._never_sent_probes = 0
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
        if self._first_failures >= self._threshold:
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

    def succeeded(
        self,
        key: Hashable,
        *,
        first: bool,
        sent_at: float = float("-inf"),
        now: float | None = None,
    ) -> None:
        """Report a success; ``now`` is the injected clock's time, if the caller knows it."""
        now = self._clock() if now is None else now
        self._worked_at = max(self._worked_at, sent_at)
        self._failed_locally = False
        self._successes.add(key, now)
        if first:
            self._first_attempts.add(key, False, now)
            self._ended += 1
            if self._doubts:
                self._decide(sent_at, worked=True)
        self.breaker.succeeded(now)

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
        self._failures.add(key, self._clock())
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
        now = self._clock()
        self._failures.add(key, now)
        if answer.batch_index:
            return
        if first:
            self._first_attempts.add(key, failed=True, now=now, sent_at=sent_at)
            if answer.verdict is not Verdict.GONE:  # which ``gone`` has counted
                self._first_failed(sent_at)
        if ticket or sent_at > self._worked_at:
            self.breaker.failed(ticket, first=first)

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

    def fails_for_others(self, key: Hashable) -> bool:
        """Whether first attempts of other keys failed in the last minute, too."""
        return bool(self._first_attempts.share_failed(self._clock(), key))

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
